"""The algebra of shared factors and personal cores: W_k − W0 = s · B Λ_k A.

Shapes throughout: A (r, d_in), B (d_out, r), cores (K, r, r). The triple is a Tucker-2 decomposition of the stack
of updates, so (B P, P⁻¹ Λ_k Q⁻¹, Q A) is the same model for every invertible P, Q (the gauge). Compare, average or
regularise cores only after `canonical_gauge`.
"""

import torch
from torch import Tensor

__all__ = ["canonical_gauge", "compose", "core_gram"]


def compose(A: Tensor, B: Tensor, core: Tensor, scaling: float = 1.0) -> Tensor:
    """The full update s · B Λ A, shape (d_out, d_in); for cores of shape (K, r, r), shape (K, d_out, d_in)."""
    return scaling * (B @ core @ A)


def canonical_gauge(A: Tensor, B: Tensor, cores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same model with orthonormal factors: B = Q_B R_B and Aᵀ = Q_A R_A, triangular parts moved into the cores.

    In this gauge ⟨W_i − W0, W_j − W0⟩ = s² ⟨Λ_i, Λ_j⟩. The signs are fixed by R_ii ≥ 0, so that the gauge is unique
    for factors of full rank and two equal models get equal cores.

    Returns:
        A' (r, d_in) with A' A'ᵀ = I, B' (d_out, r) with B'ᵀ B' = I, cores (K, r, r).
    """
    q_b, r_b = _positive_qr(B)
    q_a, r_a = _positive_qr(A.mT)
    return q_a.mT, q_b, r_b @ cores @ r_a.mT


def core_gram(A: Tensor, B: Tensor, cores: Tensor, scaling: float = 1.0) -> Tensor:
    """Inner products of all K full updates, shape (K, K), at cost O(K² r²) instead of O(K² d_out d_in)."""
    _, _, canonical = canonical_gauge(A, B, cores)
    flat = canonical.flatten(1)
    return scaling**2 * (flat @ flat.mT)


def _positive_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(matrix.dtype)
    return q * signs, signs[:, None] * r
