"""FedEx-LoRA: what averaging the factors loses is added to the weight (Singhal et al., arXiv:2410.09432).

    client k:  A_k, B_k ← Adam(∇ L_k)
    server:    A = mean_k A_k,  B = mean_k B_k,  W0 ← W0 + s · (mean_k B_k A_k − B A)

So the new model is the mean of the clients' models. The residual travels as two factors of rank (K + 1) r.
"""

from colora.experiments.methods.method import MEAN, Method, Term

__all__ = ["FEDEX_LORA"]

FEDEX_LORA = Method(
    "fedex-lora",
    "FedEx-LoRA",
    "Federated: A and B are averaged, and what the averages miss is added to the base weights.",
    "Singhal et al., arXiv:2410.09432",
    terms=(Term(A=MEAN, B=MEAN),),
    federated=True,
    folds_residual=True,
)
