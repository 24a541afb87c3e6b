"""Where the core of a task in a store starts that was never written: such a task takes some numbers, and no row."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.adapter.core_start import rotated_cores
from colora.adapter.stored.row import RowForm
from colora.algebra import fresh_core

__all__ = ["SavedCores", "Starts"]

IDENTITY, ROTATED, SAVED = 0, -1, -2


class SavedCores(Protocol):
    """Cores of tasks that are kept elsewhere, such as in the files of a bank."""

    def __len__(self) -> int:
        """How many tasks."""

    def rows(self, tasks: Int[np.ndarray, " n"], rank: int) -> Float[np.ndarray, "n numbers"]:
        """The cores of these tasks, all of one rank, of each layer one after the other.

        Raises:
            BankFileError: one is damaged.
        """


class Starts:
    """The starts of K tasks, each the cores of all layers in a row.

    Args:
        tasks: K; they start at the identity.
        saved: where they start instead; K of them.
    """

    def __init__(self, tasks: int, saved: SavedCores | None = None) -> None:
        self._saved = saved
        self._identities: dict[int, Float[np.ndarray, " numbers"]] = {}  # by rank
        self._rows: list[Float[np.ndarray, " numbers"]] = [np.zeros(0)]  # IDENTITY has none of its own
        self._of = np.full(tasks, IDENTITY if saved is None else SAVED, dtype=np.int32)
        self._serial, self._next = np.arange(tasks, dtype=np.int32), tasks  # stays with a task, and is no other's
        self._seed, self._rotation = torch.initial_seed(), 0.0

    def add(self, tasks: int, row: Float[Tensor, " numbers"] | None = None, rotation: float | None = None) -> None:
        """Add tasks after the others.

        Args:
            tasks: how many.
            row: where they start, as many numbers as their cores have; by default at the identity.
            rotation: share of the directions in which each starts at a rotation of its own, in place of a row.
        """
        start = IDENTITY
        if rotation is not None:
            start, self._rotation = ROTATED, rotation
        elif row is not None:
            start = len(self._rows)
            self._rows.append(row.to(torch.float64).numpy())
        self._of = np.concatenate([self._of, np.full(tasks, start, dtype=np.int32)])
        self._serial = np.concatenate([self._serial, self._next + np.arange(tasks, dtype=np.int32)])
        self._next += tasks

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one."""
        self._of, self._serial = np.delete(self._of, task), np.delete(self._serial, task)

    def __len__(self) -> int:
        return len(self._of)

    def rows(self, tasks: Int[np.ndarray, " n"], form: RowForm) -> Float[np.ndarray, "n numbers"]:
        """Where tasks start whose rows have this form. Raises BankFileError if what is kept elsewhere is damaged."""
        found = np.empty((len(tasks), form.numbers))
        saved = self._of[tasks] == SAVED
        if self._saved is not None and saved.any():
            found[saved] = self._saved.rows(self._serial[tasks[saved]].astype(np.int64), form.rank)
        for number in np.flatnonzero(~saved):
            found[number] = self._row(int(tasks[number]), form)
        return found

    def _row(self, task: int, form: RowForm) -> Float[np.ndarray, " numbers"]:
        if self._of[task] > IDENTITY:
            return self._rows[self._of[task]]
        if self._of[task] == IDENTITY:
            if form.rank not in self._identities:
                cores = [fresh_core(rank, torch.float64).flatten() for rank in form.ranks]
                self._identities[form.rank] = torch.cat(cores).numpy()
            return self._identities[form.rank]
        generator = torch.Generator().manual_seed((self._seed + 0x9E3779B9 * (int(self._serial[task]) + 1)) % 2**63)
        if len(set(form.ranks)) == 1:  # one decomposition for all layers
            return rotated_cores(len(form.ranks), form.ranks[0], self._rotation, generator).flatten().numpy()
        cores = [rotated_cores(1, rank, self._rotation, generator).flatten() for rank in form.ranks]
        return torch.cat(cores).numpy()
