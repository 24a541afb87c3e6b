"""CoLoRA: shared factors and personal cores, W_k = W0 + s · B Λ_k A (arXiv:2602.07218).

    joint:        A, B ← Adam(∇ Σ_k L_k) and Λ_k ← Adam(∇ L_k), in every step
    alternating:  the two in turns of `turn` steps each, A and B first, for at B = 0 the cores have no gradient
    diagonal:     Λ_k is diagonal
    mean:         joint, with `pull` 1 where nothing else is said
    residual:     W_k = W0 + s · (B Λ_k A + B'_k A'_k), a small LoRA of rank `residual_rank` of the task's own beside
    own-a:        W_k = W0 + s · (B Λ_k A + B' A'_k), a small A of rank `own_rank` of the task's own beside, under a
                  second B that all tasks share

The cores have their own learning rate. All take the options

    pull:     after each step that moves the cores, Λ_k ← Λ_k − η · pull · (Λ_k − mean_j Λ_j), η the cores' rate:
              proximal regularisation (L2-SP), which in the limit makes it pooled LoRA with a shared core. Not invariant
              under the gauge
    release:  the share of the steps after which the pull falls linearly to zero; 1: it never does
    rotated:  the share of the r directions in which each core starts at a rotation of its own (not if diagonal); 0: all
              cores start at the identity
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term, rank_option
from colora.experiments.methods.schedule import Moment, Turn
from colora.training.loop.schedule import frozen_roles

__all__ = [
    "COLORA",
    "COLORA_ALTERNATING",
    "COLORA_DIAGONAL",
    "COLORA_MEAN",
    "COLORA_OWN_A",
    "COLORA_RESIDUAL",
    "PULL",
]

PULL = {"pull": 0.0, "release": 1.0}
CORES = PULL | {"rotated": 0.0}

_JOINT = Term(A=SHARED, B=SHARED, core=OWN)
_PARTS = {"core": frozenset({"core"}), "shared": frozenset({"A", "B"})}


def _one_half_a_turn(moment: Moment) -> Turn:
    roles = frozen_roles("alternating", moment.step, int(moment.options["turn"]))
    return Turn(frozenset().union(*(_PARTS[role] for role in roles)))


COLORA = Method(
    "colora",
    "CoLoRA",
    "Shared factors A and B, and a small core for each task.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
    options=CORES,
)
COLORA_ALTERNATING = Method(
    "colora-alternating",
    "CoLoRA, alternating",
    "As colora, the factors and the cores trained in turns.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
    schedule=_one_half_a_turn,
    options={"turn": 5} | CORES,
)
COLORA_DIAGONAL = Method(
    "colora-diagonal",
    "CoLoRA, diagonal cores",
    "As colora, with diagonal cores.",
    "arXiv:2602.07218",
    terms=(Term(A=SHARED, B=SHARED, core=OWN, diagonal=True),),
    core_rate=True,
    options=PULL,
)
COLORA_MEAN = Method(
    "colora-mean",
    "CoLoRA, cores regularised to their mean",
    "As colora, with a proximal step of every core towards the mean of all cores after each step.",
    "arXiv:2602.07218",
    terms=(_JOINT,),
    core_rate=True,
    options=CORES | {"pull": 1.0},
)
COLORA_RESIDUAL = Method(
    "colora-residual",
    "CoLoRA and a small LoRA each",
    "As colora, with a small LoRA of its own for each task beside the shared factors.",
    "arXiv:2602.07218",
    terms=(_JOINT, Term(A=OWN, B=OWN, rank=lambda sizes: int(sizes.options["residual_rank"]))),
    core_rate=True,
    options={"residual_rank": 1} | CORES,
)
COLORA_OWN_A = Method(
    "colora-own-a",
    "CoLoRA and a small A each",
    "As colora, with a small A of its own for each task under a second shared B.",
    "arXiv:2602.07218",
    terms=(_JOINT, Term(A=OWN, B=SHARED, rank=rank_option("own_rank"))),
    core_rate=True,
    options={"own_rank": 2} | CORES,
)
