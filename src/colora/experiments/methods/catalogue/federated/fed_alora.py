"""Fed-ALoRA: B shared, A stays at home (Ban and Ji, arXiv:2509.25414).

client k:  A_k, B_k ← Adam(∇ L_k)
server:    B = mean_k B_k              W_k = W0 + s · B A_k
"""

from colora.experiments.methods.method import MEAN, OWN, Method, Term

__all__ = ["FED_ALORA"]

FED_ALORA = Method(
    "fed-alora",
    "Fed-ALoRA",
    "Federated: B is averaged, each client keeps its own A.",
    "Ban and Ji, arXiv:2509.25414",
    terms=(Term(A=OWN, B=MEAN),),
    federated=True,
)
