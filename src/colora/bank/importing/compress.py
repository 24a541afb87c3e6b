"""K low-rank updates of one layer as shared factors and cores: B_k A_k ≈ B Λ_k A, with nothing of size d_out × d_in.

All B_k lie in the span of their own columns, at most m = Σ r_k dimensions, and all A_k likewise. In orthonormal bases
of these two spans, from one QR each, every update is an m × m product, and the joint diagonalisation costs nothing
that grows with d. Where K r exceeds d the spans are the whole spaces, and m = d.

Balance. The gauge of the result is free (see `colora.algebra`), so it is chosen for training to go on: A has orthogonal
rows of norm 1/√3, the norm that Kaiming's start gives them; the cores have the size of the identity they usually start
from, ‖Λ_k‖² = r in the mean over tasks; B has orthogonal columns, all of one norm, and absorbs the rest. So the usual
rates of A and of the cores suit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.algebra import fresh_core, joint_diagonalisation

__all__ = ["SharedLayer", "share_layer"]

ROW_NORM = 1 / math.sqrt(3)


@dataclass(frozen=True)
class SharedLayer:
    """One layer of a bank with scale 1, and what was lost on the way.

    Attributes:
        A (r, d_in), B (d_out, r), cores (K, r, r).
        lost: ‖B_k A_k − B Λ_k A‖² of each task (K,).
        energy: ‖B_k A_k‖² of each task (K,).
    """

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    cores: Float[Tensor, "K r r"]
    lost: Float[Tensor, " K"]
    energy: Float[Tensor, " K"]


def share_layer(
    B: Sequence[Float[Tensor, "d_out _"]],
    A: Sequence[Float[Tensor, "_ d_in"]],
    rank: int,
    norms: Sequence[float] | None = None,
) -> SharedLayer:
    """The shared factors of K updates B_k A_k of different ranks, in the precision of the arguments.

    Args:
        B: K matrices (d_out, r_k); r_k = 0 is an update of zero.
        A: K matrices (r_k, d_in).
        rank: r of the result, at most d_out and d_in. Directions that no update needs are filled with orthonormal ones
            that the cores do not use, so that training can.
        norms: of the tasks. What is minimised is Σ_k ‖B_k A_k − B Λ_k A‖² / norm_k²; all are 1 by default.

    Examples:
        >>> B = [torch.randn(6, 1, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)]
        >>> A = [torch.randn(1, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)]
        >>> layer = share_layer(B, A, rank=4)
        >>> torch.allclose(layer.B @ layer.cores[1] @ layer.A, B[1] @ A[1])
        True
    """
    span_B, small_B = torch.linalg.qr(torch.cat(list(B), dim=1))
    span_A, small_A = torch.linalg.qr(torch.cat(list(A), dim=0).mT)
    widths = [one.shape[1] for one in B]
    stack_B = small_B.new_zeros(len(widths), small_B.shape[0], max(widths))
    stack_A = small_A.new_zeros(len(widths), max(widths), small_A.shape[0])
    for task, (own_B, own_A) in enumerate(zip(small_B.split(widths, 1), small_A.split(widths, 1), strict=True)):
        stack_B[task, :, : widths[task]] = own_B
        stack_A[task, : widths[task]] = own_A.mT
    kept = min(rank, small_B.shape[0], small_A.shape[0])
    unit = stack_B.new_tensor(norms if norms is not None else [1.0] * len(widths))[:, None, None]
    U, cores, V = joint_diagonalisation(stack_B / unit, stack_A, kept)
    cores = unit * cores
    lost, energy = _lost(stack_B, stack_A, U, V), _product_norm(stack_B, stack_A)

    size = float((cores.square().sum() / (len(widths) * kept)).sqrt())
    own = cores.new_zeros(len(widths), rank, rank)
    if size > 0:
        own[:, :kept, :kept] = cores / size
    else:  # no update at all: as a layer that training has not touched
        own.copy_(fresh_core(rank, own.dtype))
    return SharedLayer(
        A=ROW_NORM * _completed(span_A @ V, rank).mT,
        B=size / ROW_NORM * _completed(span_B @ U, rank),
        cores=own,
        lost=lost,
        energy=energy,
    )


def _lost(
    B: Float[Tensor, "K d_out r"],
    A: Float[Tensor, "K r d_in"],
    U: Float[Tensor, "d_out rank"],
    V: Float[Tensor, "d_in rank"],
) -> Float[Tensor, " K"]:
    """‖B_k A_k − U Uᵀ B_k A_k V Vᵀ‖², (K,), from its two orthogonal parts.

    ‖B_k A_k‖² − ‖Uᵀ B_k A_k V‖² is the same, but a difference of nearly equal numbers: of relative errors under 1e-8 it
    would show noise.
    """
    inside = U.mT @ B
    rest_A = A - (A @ V) @ V.mT
    return _product_norm(B - U @ inside, A) + _product_norm(inside, rest_A)


def _product_norm(B: Float[Tensor, "K d_out r"], A: Float[Tensor, "K r d_in"]) -> Float[Tensor, " K"]:
    """‖B_k A_k‖² as the trace of (B_kᵀ B_k)(A_k A_kᵀ), which needs r × r matrices only."""
    return ((B.mT @ B) * (A @ A.mT)).sum((1, 2)).clamp(min=0)  # rounding must not make it negative


def _completed(basis: Float[Tensor, "d k"], columns: int) -> Float[Tensor, "d {columns}"]:
    """Orthonormal columns (d, k) with further ones up to (d, columns), always the same ones."""
    missing = columns - basis.shape[1]
    if missing == 0:
        return basis
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(basis.shape[0], missing, generator=generator, dtype=basis.dtype)
    for _ in range(2):  # twice is enough for orthogonality to the last digits
        more = torch.linalg.qr(more - basis @ (basis.mT @ more)).Q
    return torch.cat([basis, more], dim=1)
