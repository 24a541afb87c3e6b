"""Federated CoLoRA: A and B averaged, the core stays at home (arXiv:2602.07218).

    simultaneous:  client k: A_k, B_k, Λ_k ← Adam(∇ L_k);     server: A = mean_k A_k, B = mean_k B_k
    alternating:   even rounds: B_k, Λ_k move and B is averaged; odd rounds: A_k, Λ_k move and A is averaged

    W_k = W0 + s · B Λ_k A

In alternating rounds every client's weight is linear in what is averaged. Option `rotated`: the share of the r
directions in which each client's core starts at a rotation of its own.
"""

from colora.experiments.methods.catalogue.federated.rolora import one_factor_a_round
from colora.experiments.methods.method import MEAN, OWN, Method, Term

__all__ = ["FED_COLORA", "FED_COLORA_ALTERNATING"]

_TERMS = (Term(A=MEAN, B=MEAN, core=OWN),)

FED_COLORA = Method(
    "fed-colora",
    "CoLoRA, federated",
    "Federated colora: A and B are averaged, each client keeps its core.",
    "arXiv:2602.07218",
    terms=_TERMS,
    federated=True,
    core_rate=True,
    options={"rotated": 0.0},
)
FED_COLORA_ALTERNATING = Method(
    "fed-colora-alternating",
    "CoLoRA, federated, alternating rounds",
    "As fed-colora, A and B trained and averaged in alternating rounds.",
    "arXiv:2602.07218",
    terms=_TERMS,
    federated=True,
    core_rate=True,
    options={"rotated": 0.0},
    schedule=one_factor_a_round,
)
