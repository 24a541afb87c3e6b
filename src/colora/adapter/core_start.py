"""Where the cores of a new bank start: at the identity, or turned so that no two tasks begin alike.

With B = 0 and every core at the identity, the first steps move B by the sum of all tasks' gradients, and what the tasks
want differently cancels; the cores themselves have no gradient yet. If core k starts at a rotation Q_k of its own, the
first step already moves task j by s · B Q_j A with B ∝ Σ_k G_k Aᵀ Q_kᵀ: of this, task j's own gradient comes back
whole, and those of the others turned at random. Cores still have r × r numbers, and the update still starts at zero.

    Λ_k = diag(I, Q_k)        Q_k random orthogonal, m × m with m = rotated · r; the first r − m directions are common

(docs/decisions/training.md, "cores may start turned")
"""

import torch
from jaxtyping import Float
from torch import Tensor

from colora.algebra import fresh_core

__all__ = ["rotated_cores"]


def rotated_cores(
    tasks: int, r: int, rotated: float, generator: torch.Generator | None = None
) -> Float[Tensor, "{tasks} {r} {r}"]:
    """A core for each task, orthogonal, with the first directions in common: (tasks, r, r), float32.

    Args:
        tasks: K.
        r: the rank.
        rotated: share of the r directions that are turned, in [0, 1]; 0: all cores are the identity.
        generator: draws the rotations; torch's own by default.
    """
    cores = fresh_core(r, torch.float32).repeat(tasks, 1, 1)
    if turned := round(rotated * r):
        Q, R = torch.linalg.qr(torch.randn(tasks, turned, turned, generator=generator))
        # Without the signs Q would not be drawn evenly from all rotations (Mezzadri, arXiv:math-ph/0609050).
        cores[:, r - turned :, r - turned :] = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    return cores
