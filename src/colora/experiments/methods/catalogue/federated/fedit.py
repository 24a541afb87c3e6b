"""FedIT: federated averaging of LoRA's factors (Zhang et al., arXiv:2305.05644, on McMahan et al., arXiv:1602.05629).

    client k:  A_k, B_k ← Adam(∇ L_k), from the server's A, B
    server:    A = mean_k A_k,  B = mean_k B_k              one model for all: W_k = W0 + s · B A

mean(B_k) mean(A_k) is not mean(B_k A_k): the cross terms are noise.
"""

from colora.experiments.methods.method import MEAN, Method, Term

__all__ = ["FEDIT"]

FEDIT = Method(
    "fedit",
    "FedIT",
    "Federated: A and B are averaged each round.",
    "Zhang et al., arXiv:2305.05644",
    terms=(Term(A=MEAN, B=MEAN),),
    federated=True,
)
