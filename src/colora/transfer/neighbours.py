"""The tasks most like some of very many: nearest neighbours by the cosine of their updates, the cores read in chunks.

The cosines are those of `colora.transfer.similarity`, of all layers together and exact; K × K of them are never made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.algebra import canonical_gauge
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, ColoraError, ConfigError

__all__ = ["SAMPLE", "Neighbours", "nearest_tasks"]

SAMPLE = 12
"""Tasks that are drawn where none is named."""
CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Neighbours:
    """The tasks nearest to some.

    Attributes:
        tasks: how many there are in the bank.
        nearest: for each task that was asked for, others with their cosines, most alike first.
    """

    tasks: int
    nearest: dict[str, list[tuple[str, float]]]

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "kind": "cores",
            "tasks": self.tasks,
            "nearest": {
                name: [{"task": other, "cosine": round(value, 4)} for other, value in found]
                for name, found in self.nearest.items()
            },
        }


def nearest_tasks(
    bank: str | Path | SavedBank,
    tasks: Sequence[str] | None = None,
    count: int = 5,
    *,
    centred: bool = False,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Neighbours:
    """The tasks of a saved bank whose updates are most like those of some of its tasks.

    Args:
        bank: folder of a bank or of a run, or one that is open already.
        tasks: whose neighbours; by default of `sample` tasks, drawn by `seed`.
        count: how many neighbours of each.
        centred: of what each task has beyond the mean of all; reads the cores twice.

    Raises:
        BankFileError: a file is missing or damaged, or its tensors hold NaN or infinity.
        TaskIdError: the bank does not know one of the tasks.
        ConfigError: the bank has one task only, or three would be needed.
        ColoraError: scikit-learn is not installed.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise ColoraError(
            f"expected scikit-learn for nearest neighbours, found: {error}. Install it with: pip install "
            '"colora[similarity]"'
        ) from error
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    saved.check()
    total = len(saved.tasks)
    if total < 2 + centred:
        raise ConfigError(f"expected at least {'three' if centred else 'two'} tasks to compare, found {total}")
    if tasks is None:
        drawn = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
        asked = np.sort(drawn)
    else:
        asked = np.array(saved.indices(list(dict.fromkeys(tasks))), dtype=np.int64)
    updates = _Updates(saved)
    mean = sum(part.sum(0) for _, part in updates.chunks()) / total if centred else 0.0
    queries = updates.of(asked) - mean
    wanted = min(count, total - 1)
    best, which = np.full((len(asked), wanted), -np.inf), np.zeros((len(asked), wanted), dtype=np.int64)
    for ids, part in updates.chunks():
        most = min(wanted + 1, len(ids))  # one of them may be the task itself
        search = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(part - mean)
        distances, places = search.kneighbors(queries)
        values, others = 1.0 - distances, ids[places]
        values[others == asked[:, None]] = -np.inf
        values, others = np.concatenate([best, values], 1), np.concatenate([which, others], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :wanted]
        best, which = np.take_along_axis(values, order, 1), np.take_along_axis(others, order, 1)
    names = saved.tasks
    nearest = {
        names[int(task)]: [(names[int(other)], float(value)) for other, value in zip(others, values, strict=True)]
        for task, others, values in zip(asked, which, best, strict=True)
    }
    return Neighbours(total, nearest)


class _Updates:
    """The updates of a bank's tasks in orthonormal factors, flat: their inner products are those of the updates."""

    def __init__(self, saved: SavedBank) -> None:
        self._saved, left, right = saved, [], []
        for layer in saved.layers.values():
            A, B = layer.A.double(), layer.B.double()
            plain_A, plain_B, _ = canonical_gauge(A, B, torch.eye(len(A), dtype=torch.float64)[None])
            left.append(plain_B.mT @ B)  # R of B = Q R, and below of Aᵀ = Q R
            right.append(A @ plain_A.mT)
        self._left, self._right = torch.stack(left), torch.stack(right)
        self._at_once = max(1, CHUNK_BYTES // (8 * self._left.numel()))

    def of(self, tasks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n numbers"]:
        """The updates of these tasks. Raises BankFileError if one holds NaN or infinity."""
        stacks = list(self._saved.cores(tasks.tolist()).values())
        cores: Tensor = torch.stack(stacks, 1).double()
        updates = (self._left @ cores @ self._right).flatten(1)
        if not torch.isfinite(updates).all():
            bad = int(tasks[int((~torch.isfinite(updates)).any(1).nonzero()[0])])
            raise BankFileError(f"{self._saved.folder}: the core of {self._saved.tasks[bad]!r} holds NaN or infinity")
        found: np.ndarray = updates.numpy()
        return found

    def chunks(self) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n numbers"]]]:
        """All tasks and their updates, some at a time."""
        total = len(self._saved.tasks)
        for begin in range(0, total, self._at_once):
            ids = np.arange(begin, min(begin + self._at_once, total))
            yield ids, self.of(ids)
