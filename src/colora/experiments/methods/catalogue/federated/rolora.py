"""RoLoRA: rounds of B and rounds of A in turn (Chen et al., arXiv:2502.01755).

    round 0, 2, ...:  client k: B_k ← Adam(∇ L_k), A frozen; server: B = mean_k B_k
    round 1, 3, ...:  client k: A_k ← Adam(∇ L_k), B frozen; server: A = mean_k A_k

Each average is exact, for the model is linear in what moves. B first: at B = 0 the factor A has no gradient.
"""

from colora.experiments.methods.method import MEAN, Method, Term
from colora.experiments.methods.schedule import Moment, Turn

__all__ = ["ROLORA", "one_factor_a_round"]


def one_factor_a_round(moment: Moment) -> Turn:
    """A is frozen in even rounds, B in odd ones."""
    return Turn(frozenset({"B"} if moment.round_number % 2 else {"A"}))


ROLORA = Method(
    "rolora",
    "RoLoRA",
    "Federated: A and B are trained and averaged in alternating rounds.",
    "Chen et al., arXiv:2502.01755",
    terms=(Term(A=MEAN, B=MEAN),),
    federated=True,
    schedule=one_factor_a_round,
)
