"""The spectral start: A, B and the cores of a new bank from the gradients of its tasks at the base model.

In each adapted layer the tasks' gradients are decomposed jointly, G_k ≈ U Σ_k Vᵀ (`joint_diagonalisation`), in the
gauge in which the mean core is diagonal with positive entries. The rows of A become those of Vᵀ with the norm 1/√3
that they have in an ordinary start. Three starts differ in the rest:

spectral           B = −b U and Λ_k = Σ_k / σ, with σ such that the cores are as large as identities: a step
                   W_k − W0 = −c U Σ_k Vᵀ down each task's own gradient, of about the same norm s b √(r/3) in every
                   layer. b is the best of a few on the same examples, among those at which no task's loss rises.
spectral_neutral   B = 0 and Λ_k = I + (Σ_k − mean) / σ: training starts at the base model, and already its first
                   step in B is another one for each task, the more so the less alike their gradients are.
spectral_factors   B = 0 and Λ_k = I: only the directions of A are the gradients'.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from colora.algebra import fresh_core, joint_diagonalisation

__all__ = ["ROW_NORM", "layer_start"]

ROW_NORM = 1 / math.sqrt(3)
"""Of A's rows, as `kaiming_uniform_(A, a=√5)` has them on average."""
ITERATIONS = 4
"""Of the decomposition; it begins so near its end that more do not change what is trained."""


def layer_start(
    A: Float[Tensor, "K rank d_in"], B: Float[Tensor, "K d_out rank"], r: int, kind: str
) -> tuple[Float[Tensor, "{r} d_in"], Float[Tensor, "d_out {r}"], Float[Tensor, "K {r} {r}"]]:
    """A (r, d_in), B (d_out, r) and cores (K, r, r) of one layer.

    For "spectral" B Λ_k A = −c U Σ_k Vᵀ with one c for all tasks, and B has orthonormal columns (b = 1).

    Args:
        A, B: the tasks' gradients G_k = B_k A_k, (K, rank, d_in) and (K, d_out, rank).
        r: rank of the bank.
        kind: one of `SPECTRAL`.
    """
    U, cores, V = joint_diagonalisation(B, A, r, ITERATIONS)
    left, _, right = torch.linalg.svd(cores.mean(0))
    U, cores, V = U @ left, left.mT @ cores @ right.mT, V @ right.mT
    first = ROW_NORM * V.mT
    size = _size(cores, r)
    if kind == "spectral":
        return first, -U, cores / size
    identity = fresh_core(r, cores.dtype, cores.device).expand_as(cores)
    if kind == "spectral_neutral":
        return first, torch.zeros_like(U), identity + (cores - cores.mean(0)) / size
    return first, torch.zeros_like(U), identity


def _size(cores: Float[Tensor, "K r r"], r: int) -> Float[Tensor, ""]:
    """What to divide cores by for a root mean square norm of √r, the identity's; 1 if there is nothing to divide."""
    size = (cores.square().sum() / (len(cores) * r)).sqrt()
    return size if bool(size > torch.finfo(cores.dtype).tiny) else torch.ones_like(size)
