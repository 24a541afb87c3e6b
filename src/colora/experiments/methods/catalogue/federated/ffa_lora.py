"""FFA-LoRA: A frozen at random, B averaged (Sun et al., arXiv:2403.12313).

    client k:  B_k ← Adam(∇ L_k)
    server:    B = mean_k B_k              W_k = W0 + s · B A0

The average is exact, and half travels.
"""

from colora.experiments.methods.method import FROZEN, MEAN, Method, Term

__all__ = ["FFA_LORA"]

FFA_LORA = Method(
    "ffa-lora",
    "FFA-LoRA",
    "Federated: A stays as drawn, B is averaged.",
    "Sun et al., arXiv:2403.12313",
    terms=(Term(A=FROZEN, B=MEAN),),
    federated=True,
)
