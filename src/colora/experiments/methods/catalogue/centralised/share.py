"""Share: a basis from local LoRAs, and each task's coefficients in it refitted (Kaushik et al., arXiv:2602.06043).

    stage 1:  A_k, B_k ← Adam(∇ L_k)                                    W_k = W0 + s · B_k A_k
    between:  B' = the leading left singular vectors of (B_1, ..., B_K), A'ᵀ those of (A_1ᵀ, ..., A_Kᵀ),
              Λ'_k = B'ᵀ B_k A_k A'ᵀ
    stage 2:  Λ'_k ← Adam(∇ L_k), A' and B' frozen                      W_k = W0 + s · B' Λ'_k A'

The first stage has the share `first` of the steps; each stage has its own warm-up and fall of the rates, and the
coefficients move at the rate of the cores. `basis_rank` is how many directions the basis has, 0 for the comparison's
rank. Departures: the paper meets the tasks one after the other and lets its basis grow, here all are there at once; and
a task's coefficients are one r × r matrix here, whatever they belong to, A or B.
"""

from colora.experiments.methods.method import FROZEN, OWN, Method, Term, rank_option
from colora.experiments.methods.schedule import Moment, Turn

__all__ = ["SHARE"]


def _local_then_coefficients(moment: Moment) -> Turn:
    if moment.stage == 0:
        return Turn(frozen=frozenset({"core'"}), silent=frozenset({1}))
    return Turn(frozen=frozenset({"A", "B"}), silent=frozenset({0}))


SHARE = Method(
    "share",
    "Share: basis of local LoRAs, coefficients refitted",
    "Local LoRAs, a basis of them, and then each task's coefficients trained in this basis.",
    "Kaushik et al., arXiv:2602.06043",
    terms=(Term(A=OWN, B=OWN), Term(A=FROZEN, B=FROZEN, core=OWN, rank=rank_option("basis_rank"))),
    schedule=_local_then_coefficients,
    staged=True,
    makes_basis=True,
    unused=frozenset({0}),
    core_rate=True,
    options={"first": 0.5, "basis_rank": 0},
)
