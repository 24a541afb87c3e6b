"""CoLoRA: shared factors and personal cores, W_k = W0 + s · B Λ_k A (arXiv:2602.07218).

    joint:        A, B ← Adam(∇ Σ_k L_k) and Λ_k ← Adam(∇ L_k), in every step
    alternating:  the two in turns of `turn` steps each, A and B first, for at B = 0 the cores have no gradient
    diagonal:     Λ_k is diagonal
    mean:         after each step Λ_k ← Λ_k − η · pull · (Λ_k − mean_j Λ_j), η the core's rate: proximal regularisation
                  (L2-SP), which in the limit makes it pooled LoRA with a shared core. Not invariant under the gauge
    residual:     W_k = W0 + s · (B Λ_k A + B'_k A'_k), a small LoRA of rank `residual_rank` of the task's own beside

The cores start at the identity and have their own learning rate.
"""

from collections.abc import Mapping

from colora.experiments.methods.method import OWN, SHARED, Method, Term
from colora.training.loop.schedule import frozen_roles

__all__ = ["COLORA", "COLORA_ALTERNATING", "COLORA_DIAGONAL", "COLORA_MEAN", "COLORA_RESIDUAL"]

_JOINT = Term(A=SHARED, B=SHARED, core=OWN)
_PARTS = {"core": frozenset({"core"}), "shared": frozenset({"A", "B"})}


def _one_half_a_turn(step: int, round_number: int, options: Mapping[str, float]) -> frozenset[str]:
    return frozenset().union(*(_PARTS[role] for role in frozen_roles("alternating", step, int(options["turn"]))))


COLORA = Method(
    "colora",
    "CoLoRA",
    "Shared factors A and B, and a small core for each task.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
)
COLORA_ALTERNATING = Method(
    "colora-alternating",
    "CoLoRA, alternating",
    "As colora, the factors and the cores trained in turns.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
    frozen=_one_half_a_turn,
    options={"turn": 5},
)
COLORA_DIAGONAL = Method(
    "colora-diagonal",
    "CoLoRA, diagonal cores",
    "As colora, with diagonal cores.",
    "arXiv:2602.07218",
    terms=(Term(A=SHARED, B=SHARED, core=OWN, diagonal=True),),
    core_rate=True,
)
COLORA_MEAN = Method(
    "colora-mean",
    "CoLoRA, cores regularised to their mean",
    "As colora, with a proximal step of every core towards the mean of all cores after each step.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
    options={"pull": 1.0},
)
COLORA_RESIDUAL = Method(
    "colora-residual",
    "CoLoRA and a small LoRA each",
    "As colora, with a small LoRA of its own for each task beside the shared factors.",
    "arXiv:2602.07218",
    terms=(_JOINT, Term(A=OWN, B=OWN, rank=lambda sizes: int(sizes.options["residual_rank"]))),
    core_rate=True,
    options={"residual_rank": 1},
)
