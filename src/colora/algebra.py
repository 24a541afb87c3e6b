"""The algebra of shared factors and task-specific cores: W_k − W0 = s · B Λ_k A.

Shapes throughout: A (r, d_in), B (d_out, r), cores (K, r, r). The triple is a Tucker-2 decomposition of the stack
of updates, so (B P, P⁻¹ Λ_k Q⁻¹, Q A) is the same model for every invertible P, Q (the gauge). Compare, average or
regularise cores only after `canonical_gauge`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["canonical_gauge", "compose", "core_gram", "fresh_core", "joint_diagonalisation"]


def compose(
    A: Float[Tensor, "*#K r d_in"],
    B: Float[Tensor, "*#K d_out r"],
    core: Float[Tensor, "*#K r r"],
    scaling: float = 1.0,
) -> Float[Tensor, "*#K d_out d_in"]:
    """The full update s · B Λ A, shape (d_out, d_in); for cores of shape (K, r, r), shape (K, d_out, d_in).

    A and B may have an axis of tasks as well: a copy of each task's.
    """
    return scaling * (B @ core @ A)


def canonical_gauge(
    A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"], cores: Float[Tensor, "*K r r"]
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"], Float[Tensor, "*K r r"]]:
    """The same model with orthonormal factors: B = Q_B R_B and Aᵀ = Q_A R_A, triangular parts moved into the cores.

    In this gauge ⟨W_i − W0, W_j − W0⟩ = s² ⟨Λ_i, Λ_j⟩. The signs are fixed by R_ii ≥ 0, so that the gauge is unique
    for factors of full rank and two equal models get equal cores.

    Returns:
        A' (r, d_in) with A' A'ᵀ = I, B' (d_out, r) with B'ᵀ B' = I, cores (K, r, r).
    """
    q_b, r_b = _positive_qr(B)
    q_a, r_a = _positive_qr(A.mT)
    return q_a.mT, q_b, r_b @ cores @ r_a.mT


def core_gram(canonical: Float[Tensor, "K r r"], scaling: float = 1.0) -> Float[Tensor, "K K"]:
    """Inner products of all K full updates, at cost O(K² r²) instead of O(K² d_out d_in).

    Args:
        canonical: the cores in the gauge of `canonical_gauge`.
    """
    flat = canonical.flatten(1)
    return scaling**2 * (flat @ flat.mT)


def _positive_qr(matrix: Float[Tensor, "d r"]) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r r"]]:
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(matrix.dtype)
    return q * signs, signs[:, None] * r


def joint_diagonalisation(
    B: Float[Tensor, "K d_out r"],
    A: Float[Tensor, "K r d_in"],
    rank: int,
    iterations: int = 20,
    tolerance: float = 1e-9,
) -> tuple[Float[Tensor, "d_out {rank}"], Float[Tensor, "K {rank} {rank}"], Float[Tensor, "d_in {rank}"]]:
    """Shared orthonormal factors for K low-rank updates: min over U, V, Σ_k of Σ_k ‖B_k A_k − U Σ_k Vᵀ‖².

    For given V the best U spans the leading left singular space of [B_1 A_1 V, ..., B_K A_K V], and the other way
    round; Σ_k = Uᵀ B_k A_k V. Starts from the leading right singular space of the stack and alternates until the kept
    energy Σ ‖Σ_k‖² grows by less than `tolerance` of itself (a Tucker-2 decomposition by orthogonal iteration; as
    "compress then serve", arXiv:2407.00066). A d_out × d_in matrix is never formed.

    Args:
        B: (K, d_out, r). A: (K, r, d_in).
        rank: columns of U and V, at most d_out and d_in.
        iterations: the most of them.

    Returns:
        U (d_out, rank), Σ (K, rank, rank), V (d_in, rank).

    Examples:
        >>> B, A = torch.randn(3, 6, 1, dtype=torch.float64), torch.randn(3, 1, 5, dtype=torch.float64)
        >>> U, cores, V = joint_diagonalisation(B, A, rank=3)
        >>> torch.allclose(U @ cores @ V.T, B @ A)
        True
    """
    # With B_k = Q_k R_k the stack has the right singular space of the stacked R_k A_k, K r rows instead of K d_out.
    small = torch.linalg.qr(B).R @ A
    V = _leading_left(small.flatten(0, 1).T, rank)
    energy, before = torch.zeros((), dtype=A.dtype, device=A.device), -1.0
    for _ in range(iterations):
        U = _leading_left((B @ (A @ V)).transpose(0, 1).flatten(1), rank)
        V = _leading_left((A.mT @ (B.mT @ U)).transpose(0, 1).flatten(1), rank)
        cores = (U.T @ B) @ (A @ V)
        energy = cores.square().sum()
        if float(energy) - before <= tolerance * float(energy):
            break
        before = float(energy)
    return U, cores, V


def _leading_left(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows {rank}"]:
    """Orthonormal basis of the leading left singular space; completed if the matrix has fewer columns than `rank`."""
    U = torch.linalg.svd(matrix, full_matrices=matrix.shape[1] < rank).U
    return U[:, :rank]


def fresh_core(
    r: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Float[Tensor, "{r} {r}"]:
    """The core of a task that has not been trained: the identity, with which the task's update is s · B A."""
    return torch.eye(r, dtype=dtype, device=device)
