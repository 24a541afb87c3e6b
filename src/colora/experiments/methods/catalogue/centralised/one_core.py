"""CoLoRA with one core for many layers: W_k = W0 + s · B Λ_k A, A and B each layer's own and for all tasks.

    colora-one-core:    a task has one r × r core for all layers of the model
    colora-kind-cores:  a task has one for each kind of layer, as q_proj or down_proj, in all blocks

    A, B ← Adam(∇ Σ_k L_k) in each layer;  Λ_k ← Adam(∇ L_k), its gradient the sum over the layers that share it

Sharing over layers is the idea of MetaTT (Lopez-Piqueres et al., arXiv:2506.09105), one tensor train for all layers,
kinds of layers and tasks, and of TinyLoRA (Morris et al., arXiv:2602.04118), which gets by with a handful of trained
numbers for a whole model. These are neither: the factors here are as CoLoRA's, trained and each layer's own, so that a
comparison with `colora` shows what cores of each layer are worth. `pull` and `release` are as there.
"""

from colora.experiments.methods.catalogue.centralised.colora import PULL
from colora.experiments.methods.method import OWN, SHARED, Method, Term

__all__ = ["COLORA_KIND_CORES", "COLORA_ONE_CORE"]

_REFERENCE = "arXiv:2602.07218; after Lopez-Piqueres et al., arXiv:2506.09105, and Morris et al., arXiv:2602.04118"

COLORA_ONE_CORE = Method(
    "colora-one-core",
    "CoLoRA, one core for all layers",
    "As colora, with one core of a task for all layers.",
    _REFERENCE,
    terms=(Term(A=SHARED, B=SHARED, core=OWN, one_core="model"),),
    core_rate=True,
    options=PULL,
)
COLORA_KIND_CORES = Method(
    "colora-kind-cores",
    "CoLoRA, one core for each kind of layer",
    "As colora, with one core of a task for all layers of a kind.",
    _REFERENCE,
    terms=(Term(A=SHARED, B=SHARED, core=OWN, one_core="kind"),),
    core_rate=True,
    options=PULL,
)
