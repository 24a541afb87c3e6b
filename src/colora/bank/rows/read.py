"""`SavedRows`: the cores of a bank in rows, each read and checked when it is asked for.

All files are opened at once, so that they stay those of one bank where it is replaced meanwhile. One that cannot be
opened is told when a core in it is wanted: those in the others can still be had.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colora.bank.rows.codec import digests, padded
from colora.bank.rows.index import CORES_FOLDER, read_index
from colora.common.text import shortened
from colora.errors import BankFileError

__all__ = ["ROWS", "SavedRows"]

ROWS = "rows"
"""The tensor of a file of rows: (n, layers, k, k)."""
AT_ONCE = 1024


class SavedRows:
    """The rows in the folder `cores` of a bank.

    Args:
        bank: folder of the bank.

    Attributes:
        folder: of the cores.
        index: of the tasks; mapped.
        dtype: of the numbers.

    Raises:
        BankFileError: the index is missing or none.
    """

    def __init__(self, bank: Path) -> None:
        self.folder = bank / CORES_FOLDER
        self.index = read_index(self.folder)
        self.dtype: torch.dtype = getattr(torch, self.index.form.dtype)
        self._faults: dict[str, str] = {}
        self._files = {name: self._opened(name) for name in dict.fromkeys(self.index.form.shards)}

    def __len__(self) -> int:
        return len(self.index)

    def _opened(self, name: str) -> Any:
        """The tensor of a file, whose rows can be had one by one; None, with a fault, if it is none."""
        path, layers = self.folder / name, len(self.index.form.layers)
        try:
            rows = safe_open(path, "pt").get_slice(ROWS)
            shape = rows.get_shape()
            if len(shape) != 4 or shape[1] != layers or shape[2] != shape[3]:
                raise ValueError(f"expected rows of {layers} square matrices, found shape {tuple(shape)}")
            return rows
        except (SafetensorError, OSError, ValueError) as error:
            self._faults[name] = f"{path}: missing, truncated or no file of cores ({error})"
            return None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def row(self, task: int) -> Float[Tensor, "layers k k"]:
        """A task's core, layer by layer in the order of their names.

        Raises:
            IndexError: there is no such task.
            BankFileError: its file is missing or torn, or the row is not the one that was saved.
        """
        if not 0 <= task < len(self):
            raise IndexError(f"no task {task}: there are {len(self)}")
        return self._run(task, 1)[0]

    def rank(self, task: int) -> int:
        """Of a task's core."""
        return int(self.index.columns["rank"][task])

    def rows(self, tasks: Int[np.ndarray, " n"], rank: int) -> Float[Tensor, "n layers {rank} {rank}"]:
        """The cores of these tasks, those of a smaller rank in the leading corner. Raises as `row`."""
        found = torch.zeros(len(tasks), len(self.index.form.layers), rank, rank, dtype=self.dtype)
        begin = 0
        for count in self._runs(tasks):
            found[begin : begin + count] = padded(self._run(int(tasks[begin]), count), rank)
            begin += count
        return found

    def chunks(self, rank: int, at_once: int = AT_ONCE) -> Iterator[tuple[Int[np.ndarray, " n"], Tensor]]:
        """All tasks and their cores, some at a time, as `rows` gives them."""
        for begin in range(0, len(self), at_once):
            tasks = np.arange(begin, min(begin + at_once, len(self)))
            yield tasks, self.rows(tasks, rank)

    def mean(self, rank: int) -> Float[Tensor, "layers {rank} {rank}"]:
        """The mean of all cores, in float64; they are read some at a time. Raises as `row`."""
        total = torch.zeros(len(self.index.form.layers), rank, rank, dtype=torch.float64)
        for _, rows in self.chunks(rank):
            total += rows.double().sum(0)
        return total / len(self)

    def _runs(self, tasks: Int[np.ndarray, " n"]) -> list[int]:
        """Lengths of the runs of tasks that follow each other in the bank, and lie in that order in one file."""
        shard, row = (self.index.columns[name][tasks].astype(np.int64) for name in ("shard", "row"))
        goes_on = (np.diff(shard) == 0) & (np.diff(row) == 1) & (np.diff(tasks) == 1)
        ends = np.append(np.flatnonzero(~goes_on) + 1, len(tasks))
        return [int(length) for length in np.diff(ends, prepend=0) if length]

    def _run(self, task: int, count: int) -> Float[Tensor, "n layers k k"]:
        columns = self.index.columns
        name = self.index.form.shards[int(columns["shard"][task])]
        if (file := self._files[name]) is None:
            raise BankFileError(
                f"the core of task {self.index.names.name(task)!r} cannot be read: {self._faults[name]}; restore the "
                "file from a copy"
            )
        begin = int(columns["row"][task])
        rows: Tensor = file[begin : begin + count]
        wanted = columns["digest"][task : task + count]
        if len(rows) == count and rows.dtype == self.dtype:
            wrong = np.flatnonzero((digests(rows) != wanted).any(1))
            if not len(wrong) and rows.shape[-1] == int(columns["rank"][task]):
                return rows
            task, begin = (task + int(wrong[0]), begin + int(wrong[0])) if len(wrong) else (task, begin)
        raise BankFileError(
            f"{self.folder / name}: row {begin}, the core of task {self.index.names.name(task)!r}, is not "
            "the one that was saved: the file is damaged, was changed, or is from another bank; restore "
            "it from a copy"
        )

    # ---- checking ---------------------------------------------------------------------------------------------------

    def check_files(self, tasks: Int[np.ndarray, " n"] | None = None) -> None:
        """See that the files of these tasks, by default of all, can be opened; no row is read.

        Raises:
            BankFileError: naming those that cannot.
        """
        wanted = set(self._faults)
        if tasks is not None:
            wanted &= {self.index.form.shards[one] for one in np.unique(self.index.columns["shard"][tasks])}
        if faults := [self._faults[name] for name in sorted(wanted)]:
            raise BankFileError(
                "\n  - ".join(
                    [
                        f"{self.folder}: {len(faults)} of {len(self._files)} files of cores cannot be read; restore "
                        "them from a copy. Single tasks in the others can be read, such as by `colora core`",
                        *shortened(faults, 5),
                    ]
                )
            )

    def faults(self) -> Iterator[tuple[str, str]]:
        """Every task whose core is not the one that was saved, and why; all rows are read, some at a time."""
        for begin in range(0, len(self), AT_ONCE):
            tasks = np.arange(begin, min(begin + AT_ONCE, len(self)))
            start = 0
            for count in self._runs(tasks):
                yield from self._faults_of(tasks[start : start + count])
                start += count

    def _faults_of(self, tasks: Int[np.ndarray, " n"]) -> Iterator[tuple[str, str]]:
        try:
            self._run(int(tasks[0]), len(tasks))
        except BankFileError as error:
            if len(tasks) == 1:
                yield self.index.names.name(int(tasks[0])), str(error)
            else:
                for task in tasks:
                    yield from self._faults_of(task[None])
