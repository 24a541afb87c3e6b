"""FedSA-LoRA: A shared, B stays at home (Guo et al., arXiv:2410.01463).

client k:  A_k, B_k ← Adam(∇ L_k)
server:    A = mean_k A_k              W_k = W0 + s · B_k A
"""

from colora.experiments.methods.method import MEAN, OWN, Method, Term

__all__ = ["FEDSA_LORA"]

FEDSA_LORA = Method(
    "fedsa-lora",
    "FedSA-LoRA",
    "Federated: A is averaged, each client keeps its own B.",
    "Guo et al., arXiv:2410.01463",
    terms=(Term(A=MEAN, B=OWN),),
    federated=True,
)
