"""LoRA-XS: factors frozen from the SVD of W0, r × r parameters trained (Bałazy et al., arXiv:2405.17604).

    W0 ≈ U Σ Vᵀ (leading r),  B = U Σ,  A = Vᵀ,  Λ_k near 0
    Λ_k ← Adam(∇ L_k)

One core for each task, which moves at the rate of the cores: a task costs as much as with CoLoRA. (The paper names the
factors the other way round.)
"""

from colora.experiments.methods.method import FROZEN, OWN, Method, Term

__all__ = ["LORA_XS"]

LORA_XS = Method(
    "lora-xs",
    "LoRA-XS",
    "A and B from the singular vectors of the base weights, frozen; only the cores are trained.",
    "Bałazy et al., arXiv:2405.17604",
    terms=(Term(A=FROZEN, B=FROZEN, core=OWN),),
    start="weights",
    core_rate=True,
)
