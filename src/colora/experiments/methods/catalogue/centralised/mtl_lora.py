"""MTL-LoRA with one up-projection: W_k = W0 + s · B Λ_k A (Yang et al., arXiv:2410.09437).

    A, B ← Adam(∇ Σ_k L_k), Λ_k ← Adam(∇ L_k), all at one learning rate

With several up-projections B_i the method mixes them by learnt weights; with one that mixture is the identity, and the
model is CoLoRA's. What remains of the difference is the training: the task matrices move at the rate of A and B.
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term

__all__ = ["MTL_LORA"]

MTL_LORA = Method(
    "mtl-lora",
    "MTL-LoRA, one up-projection",
    "Multi-task LoRA with one up-projection: as colora, the cores trained at the rate of A and B.",
    "Yang et al., arXiv:2410.09437",
    terms=(Term(A=SHARED, B=SHARED, core=OWN),),
)
