"""`KeptRows`: the row of each task of a bank, wherever it is: in the table, or as yet only a start.

Tasks may have cores of several ranks, and a row has the numbers of its task's rank (see `RowForm`).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.adapter.stored.row import RowForm
from colora.adapter.stored.stacks import TasksOfForm
from colora.adapter.stored.starts import Starts
from colora.adapter.stored.table import CoreTable, chunks
from colora.errors import ConfigError

__all__ = ["KeptRows"]


class KeptRows:
    """The rows of K tasks.

    Args:
        layers: rank of each layer's stack of cores.
        ranks: of the tasks' cores, (K,).
        dtype: of the numbers.
        folder: where they are kept, in a file for each rank; None: in memory.
        starts: where the tasks start; by default at the identity.

    Attributes:
        changed: for each task, whether its row may have changed since `changed` was last cleared.

    Raises:
        ConfigError: a rank that is not from 1 to that of the stacks.
        CheckpointError: a file cannot be written.
    """

    def __init__(
        self,
        layers: list[int],
        ranks: Int[np.ndarray, " K"],
        dtype: type[np.floating],
        folder: Path | None = None,
        starts: Starts | None = None,
    ) -> None:
        self._layers = layers
        known = np.unique(ranks).tolist()
        self._forms = [self._checked(rank) for rank in known]
        self.table = CoreTable(self._forms[0].width, len(ranks), dtype, folder)
        for form in self._forms[1:]:
            self.table.add_kind(form.width)
        self.table.kinds[:] = np.searchsorted(known, ranks)
        self._starts = Starts(len(ranks)) if starts is None else starts
        self._moments_of = np.zeros(len(ranks), dtype=np.int32)  # the optimiser's number
        self._optimizers = 0
        self.changed: Bool[np.ndarray, " K"] = np.full(len(ranks), starts is None)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ranks(self) -> Int[np.ndarray, " K"]:
        """Of the cores of all tasks."""
        return np.array([form.rank for form in self._forms], dtype=np.int64)[self.table.kinds]

    def form(self, task: int) -> RowForm:
        """Of a task's row."""
        return self._forms[self.table.kinds[task]]

    def by_form(self, tasks: Int[np.ndarray, " n"]) -> list[TasksOfForm]:
        """These tasks in groups whose rows have the same form."""
        kinds = self.table.kinds[tasks]
        found = np.unique(kinds).tolist()
        if len(found) == 1:
            return [TasksOfForm(self._forms[found[0]], slice(len(tasks)))]
        return [TasksOfForm(self._forms[kind], np.flatnonzero(kinds == kind)) for kind in found]

    def read(self, tasks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
        """The rows of tasks of one rank; where there are none yet, the task's start, and moments of the optimiser in
        use alone. Raises CheckpointError if they cannot be read, ValueError if the ranks differ."""
        rows = self.table.read(tasks)
        for own in self.by_form(tasks):
            if (new := np.flatnonzero(~self.table.written(tasks))).size:
                rows[new, : own.form.numbers] = self._starts.rows(tasks[new], own.form)
            rows[self._moments_of[tasks] != self._optimizers, own.form.numbers :] = 0
        return rows

    def write(self, tasks: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Write the rows of tasks of one rank, with the moments of the optimiser in use.

        Raises:
            ValueError, IndexError: they do not fit the table; CheckpointError: they cannot be written.
        """
        for own in self.by_form(tasks):
            if rows.shape != (len(tasks), own.form.width):
                raise ValueError(f"expected rows of shape {(len(tasks), own.form.width)}, found {rows.shape}")
        self.table.write(tasks, rows)
        self._moments_of[tasks] = self._optimizers
        self.changed[tasks] = True

    def all(self) -> Iterator[tuple[Int[np.ndarray, " n"], RowForm, Float[Tensor, "n width"]]]:
        """All tasks and their rows, some tasks of one rank at a time, and the form of these rows."""
        for some in chunks(len(self)):
            for own in self.by_form(some):
                tasks = some[own.places]
                yield tasks, own.form, torch.from_numpy(self.read(tasks))

    def all_cores(self) -> list[Float[Tensor, "K r r"]]:
        """The cores of all tasks, layer by layer, with zeros beyond them; in the type of the table."""
        dtype = torch.from_numpy(np.empty(0, self.table.dtype)).dtype
        found = [torch.zeros(len(self), rank, rank, dtype=dtype) for rank in self._layers]
        for tasks, form, rows in self.all():
            (cores,) = form.parts(rows, moments=False)
            for layer, values, rank in zip(found, cores, form.ranks, strict=True):
                layer[torch.from_numpy(tasks), :rank, :rank] = values
        return found

    def mean_core(self) -> list[Float[Tensor, "r r"]]:
        """The mean of all tasks' cores, layer by layer; where one has no number, it counts as zero."""
        found = [torch.zeros(rank, rank, dtype=torch.float64) for rank in self._layers]
        for _, form, rows in self.all():
            (cores,) = form.parts(rows, moments=False)
            for layer, values, rank in zip(found, cores, form.ranks, strict=True):
                layer[:rank, :rank] += values.sum(0, dtype=torch.float64)
        return [layer / len(self) for layer in found]

    def begin_moments(self) -> None:
        """Another optimiser is in use: moments of those before it count no more."""
        self._optimizers += 1

    def form_of(self, rank: int) -> RowForm:
        """Of rows of a rank, which may be new. Raises ConfigError if it is not from 1 to that of the stacks."""
        return self._forms[self._kind(rank)]

    def add(
        self, tasks: int, rank: int, row: Float[Tensor, " numbers"] | None = None, rotation: float | None = None
    ) -> None:
        """Add tasks of a rank, without rows yet, after the others; `row` and `rotation` as in `Starts.add`.

        Raises:
            ConfigError: the rank is not from 1 to that of the stacks.
        """
        self.table.append(tasks, self._kind(rank))
        self._starts.add(tasks, row, rotation)
        self._moments_of = np.pad(self._moments_of, (0, tasks))
        self.changed = np.pad(self.changed, (0, tasks))

    def enlarge(self, layers: list[int]) -> None:
        """Let cores be as large as these ranks of the layers; those that are there stay as they are.

        Raises:
            ConfigError: a rank that is lower than before.
        """
        if any(new < old for new, old in zip(layers, self._layers, strict=True)):
            raise ConfigError(f"expected stacks of rank {max(self._layers)} at least, found {max(layers)}")
        self._layers = layers

    def set_rank(self, task: int, rank: int) -> None:
        """Make a task's cores larger, and the moments with them, with zeros.

        Raises:
            ConfigError: the rank is lower than it was, or higher than that of the stacks.
        """
        before, kind = self.form(task), self._kind(rank)
        after = self._forms[kind]
        if rank < before.rank:
            raise ConfigError(f"a core of rank {before.rank} cannot be made one of rank {rank}")
        row = torch.from_numpy(self.read(np.array([task])))
        parts = before.parts(row, moments=True)
        larger = [
            [resized_core(one, own) for one, own in zip(part, after.ranks, strict=True)] for part in parts[:-1]
        ] + [parts[-1]]
        self.table.set_kind(task, kind)
        self.write(np.array([task]), torch.cat([one.reshape(1, -1) for part in larger for one in part], 1).numpy())

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one id."""
        self.table.remove(task)
        self._starts.remove(task)
        self._moments_of, self.changed = np.delete(self._moments_of, task), np.delete(self.changed, task)

    def _checked(self, rank: int) -> RowForm:
        if not 1 <= rank <= max(self._layers):
            raise ConfigError(f"a core of rank {rank}: expected 1 to {max(self._layers)}, the rank of A and B")
        return RowForm(rank, self._layers)

    def _kind(self, rank: int) -> int:
        known = [form.rank for form in self._forms]
        if rank not in known:
            self._forms.append(self._checked(rank))
            self.table.add_kind(self._forms[-1].width)
            return len(known)
        return known.index(rank)
