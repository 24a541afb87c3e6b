"""Coverage: how much of a new task's gradient lies in the shared subspace, where its core can follow it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from colora.training.task_gradients import TaskGradients

__all__ = ["Coverage", "coverage"]


@dataclass(frozen=True)
class Coverage:
    """Squares of a task's gradient G, summed over all layers.

    Attributes:
        shared: the share of ‖G‖² in the shared subspace, ‖P_B G P_A‖² / ‖G‖².
        own: the most that two subspaces of the same rank could hold: those of the gradient's leading directions.
        layers: `shared` for each layer by itself.
    """

    shared: float
    own: float
    layers: dict[str, float]

    @property
    def relative(self) -> float:
        """What the shared subspace holds of what one made for this task alone would hold, 0 to 1."""
        return self.shared / self.own if self.own else 0.0


def coverage(gradients: TaskGradients, index: int, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Coverage:
    """The coverage of the gradient of task `index` by a bank's A (r, d_in) and B (d_out, r), given for each layer."""
    inside, leading, total = {}, 0.0, {}
    for layer, (A, B) in factors.items():
        left, right = (factor[index].double() for factor in gradients.factors[layer])
        projected = (orthonormal(B).mT @ left) @ (right @ orthonormal(A.mT))
        inside[layer] = float(projected.square().sum())
        total[layer] = float((left @ torch.linalg.qr(right.mT).R.mT).square().sum())
        leading += float(torch.linalg.svdvals(right)[: A.shape[0]].square().sum())  # left has orthonormal columns
    whole = sum(total.values()) or 1.0
    shares = {layer: value / (total[layer] or 1.0) for layer, value in inside.items()}
    return Coverage(sum(inside.values()) / whole, leading / whole, shares)


def orthonormal(matrix: Tensor) -> Tensor:
    """A basis (d, rank) of the columns of a matrix (d, r); a column that the others make has no place in it."""
    U, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U[:, values > 1e-7 * values[0].clamp_min(1e-300)]
