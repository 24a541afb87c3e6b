"""Compress afterwards: local LoRAs, then their joint diagonalisation (Brüel-Gabrielsson et al., arXiv:2407.00066).

    A_k, B_k ← Adam(∇ L_k)          as local LoRA
    min over U, V orthonormal and Σ_k of  Σ_k ‖B_k A_k − U Σ_k Vᵀ‖²        then  A = Vᵀ, B = U, Λ_k = Σ_k

The result has CoLoRA's form and size, r × r parameters per task; but no task helped another while learning.
"""

from colora.experiments.methods.method import OWN, Method, Term

__all__ = ["POST_HOC"]

POST_HOC = Method(
    "post-hoc",
    "local LoRA, compressed jointly",
    "Local LoRAs, brought to shared factors and cores after training.",
    "Brüel-Gabrielsson et al., arXiv:2407.00066",
    terms=(Term(A=OWN, B=OWN),),
    compresses=True,
)
