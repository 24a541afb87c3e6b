"""Similarity of tasks: cosines of their full updates after training, or of their gradients before it.

Updates: in the gauge of `canonical_gauge` ⟨W_i − W0, W_j − W0⟩ = s² ⟨Λ_i, Λ_j⟩, so that no d_out × d_in matrix is
formed. Gradients: ⟨B_i A_i, B_j A_j⟩ = ⟨B_iᵀ B_j, A_i A_jᵀ⟩ (see `colora.training.task_gradients`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colora.algebra import canonical_gauge, core_gram
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, ConfigError
from colora.training.task_gradients import TaskGradients

__all__ = ["MOST_TASKS", "Similarity", "bank_similarity", "gradient_similarity", "principal_angles"]

MOST_TASKS = 2000
"""That are compared each with each; of more, neighbours are looked for."""


@dataclass(frozen=True)
class Similarity:
    """Inner products of K tasks in each layer.

    Attributes:
        names: the tasks.
        kind: "cores" (of updates, after training) or "gradients" (before it).
        layers: for each layer ⟨i, j⟩, float64 (K, K).
        angles: for each layer principal angles in degrees, (K, K), see `principal_angles`, if they were wanted; none
            for gradients.
    """

    names: list[str]
    kind: str
    layers: Mapping[str, Tensor]
    angles: Mapping[str, Tensor]

    def overall(self) -> Tensor:
        """Cosines of the updates of all layers together, (K, K)."""
        return self._overall

    @cached_property
    def _overall(self) -> Tensor:
        return _cosines(torch.stack(list(self.layers.values())).sum(0))

    def of_layer(self, layer: str) -> Tensor:
        """Cosines in one layer, (K, K)."""
        return _cosines(self.layers[layer])

    def centred(self) -> "Similarity":
        """The similarity of what each task has beyond the mean of all: inner products of u_i − ū in place of u_i.

        Cores start at the identity and learn a common form, so that all cosines after training are high; what sets
        tasks apart shows once that is taken off.

        Raises:
            ConfigError: fewer than three tasks; of two, the differences from the mean are always opposite.
        """
        count = len(self.names)
        if count < 3:
            raise ConfigError(f"expected at least three tasks to compare beyond their mean, found {count}")
        centring = torch.eye(count, dtype=torch.float64) - 1 / count
        return replace(self, layers={name: centring @ products @ centring for name, products in self.layers.items()})

    def nearest(self, name: str) -> list[tuple[str, float]]:
        """The other tasks with their cosines, most alike first."""
        row = self.overall()[self.names.index(name)].tolist()
        return sorted(
            ((other, value) for other, value in zip(self.names, row, strict=True) if other != name),
            key=lambda pair: -pair[1],
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        result: dict[str, Any] = {"kind": self.kind, "tasks": self.names, "cosine": _rounded(self.overall())}
        result["layers"] = {name: _rounded(self.of_layer(name)) for name in self.layers}
        if self.angles:
            result["principal angles, degrees"] = {name: _rounded(angles, 2) for name, angles in self.angles.items()}
        return result


def bank_similarity(bank: str | Path | SavedBank, angles: bool = True) -> Similarity:
    """Similarity of the updates of a saved bank's tasks; its base model is not loaded.

    Args:
        bank: folder of a bank or of a run, or one that is open already.
        angles: whether principal angles are wanted too: K² small SVDs for each layer, slow for hundreds of tasks.

    Raises:
        BankFileError: a file is missing or damaged, or its tensors hold NaN or infinity.
        ConfigError: the bank has one task only, or more than `MOST_TASKS`.
    """
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    saved.check()
    if len(saved.tasks) > MOST_TASKS:
        raise ConfigError(
            f"{saved.folder} has {len(saved.tasks)} tasks, more than {MOST_TASKS}: too many to compare each with each. "
            "colora.nearest_tasks finds those that are most like some of them"
        )
    names, scaling = list(saved.tasks), saved.config.scaling
    _check_several(names)
    products, between = {}, {}
    stacks = saved.cores(range(len(names)))
    for layer, (A, B, _) in saved.layers.items():
        canonical = canonical_gauge(A.double(), B.double(), stacks[layer].double())[2]
        if not torch.isfinite(canonical).all():
            raise BankFileError(f"{saved.folder}: layer {layer} holds NaN or infinity")
        products[layer] = core_gram(canonical, scaling)
        if angles:
            between[layer] = principal_angles(canonical)
    return Similarity(names, "cores", products, between)


def gradient_similarity(gradients: TaskGradients) -> Similarity:
    """Similarity of the tasks' gradients.

    Raises:
        ConfigError: there is one task only.
    """
    _check_several(gradients.names)
    products = {}
    for layer, (B, A) in gradients.factors.items():
        B, A = B.double(), A.double()
        # One task against all at a time: K² products of rank × rank at once would be gigabytes for hundreds of tasks.
        rows = [((B_i.mT @ B) * (A_i @ A.mT)).sum((1, 2)) for B_i, A_i in zip(B, A, strict=True)]
        products[layer] = torch.stack(rows)
    return Similarity(gradients.names, "gradients", products, {})


def principal_angles(cores: Tensor, energy: float = 0.9) -> Tensor:
    """How far apart the leading output directions of the tasks' updates are: the largest principal angle, (K, K).

    Leading are the fewest left singular vectors, as many for all tasks, that hold `energy` of the square of every
    task's core. The whole spaces would say nothing: cores of full rank all reach the same one. A core of zeros has no
    direction: it counts as far from all others.

    Args:
        cores: (K, r, r) in the canonical gauge.

    Returns:
        degrees, 0 to 90.
    """
    U, values, _ = torch.linalg.svd(cores)
    whole = values.square().sum(1, keepdim=True)
    shares = torch.where(whole > 0, values.square().cumsum(1) / whole, 1.0)
    count = min(int((shares < energy - 1e-12).sum(1).max()) + 1, cores.shape[1])
    leading = U[:, :, :count] * (whole > 0).to(U)[:, None]
    overlap = torch.linalg.svdvals(torch.einsum("krp,jrq->kjpq", leading, leading))[..., -1]
    return torch.rad2deg(torch.arccos(overlap.clamp(max=1.0))).fill_diagonal_(0.0)


def _check_several(names: list[str]) -> None:
    if len(names) < 2:
        raise ConfigError(f"similarity needs two tasks at least, found one: {names[0]!r}")


def _cosines(products: Tensor) -> Tensor:
    lengths = products.diagonal().clamp_min(0).sqrt()
    scaled = products / (lengths[:, None] * lengths).clamp_min(1e-300)
    return scaled.clamp(-1.0, 1.0)


def _rounded(matrix: Tensor, digits: int = 4) -> list[list[float]]:
    return [[round(value, digits) for value in row] for row in matrix.tolist()]
