"""`CoreTable`: a row of numbers for each task, in memory or in a file. A row that nobody has written takes no room.

A file that is read and written, and not a mapped one: where the disk is full, a write into a mapping ends the process.

Rows may have several widths. All rows of one width lie together, in blocks or a file of their own, and a task takes two
bytes to say which width it has; a table for each width would take a place for each task in each of them.

Examples:
    >>> import numpy as np
    >>> table = CoreTable(3, tasks=1_000_000)
    >>> table.write(np.array([7]), np.array([[1.0, 2.0, 3.0]]))
    >>> table.read(np.array([8, 7])).tolist()
    [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from colora.errors import CheckpointError, ConfigError

__all__ = ["CoreTable", "chunks"]

BLOCK_ROWS = 256
NOWHERE = -1


def chunks(tasks: int, size: int = 1024) -> Iterator[Int[np.ndarray, " n"]]:
    """The ids of all tasks, some at a time."""
    for begin in range(0, tasks, size):
        yield np.arange(begin, min(begin + size, tasks))


class CoreTable:
    """The rows of K tasks.

    Args:
        width: numbers of a row, of the first kind.
        tasks: K, with rows of this width.
        dtype: of the numbers.
        folder: where the rows are kept, in files without names that go with the process; None: in memory.

    Attributes:
        widths: numbers of a row of each kind.
        kinds: for each task, which of these widths its row has, uint16 (K,).

    Raises:
        CheckpointError: a file cannot be written or read.
    """

    def __init__(
        self, width: int, tasks: int, dtype: type[np.floating] = np.float32, folder: Path | None = None
    ) -> None:
        self.dtype, self._folder = np.dtype(dtype), folder
        self.widths: list[int] = []
        self._shelves: list[_Shelf] = []
        self.add_kind(width)
        self.kinds: Int[np.ndarray, " K"] = np.zeros(tasks, dtype=np.uint16)
        self._place = np.full(tasks, NOWHERE, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def width(self) -> int:
        """Numbers of a row of the first kind."""
        return self.widths[0]

    @property
    def file_descriptor(self) -> int:
        """Of the file of the first kind's rows. Raises ConfigError if they are in memory."""
        rows = self._shelves[0].rows
        if isinstance(rows, _MemoryRows):
            raise ConfigError("these cores are in memory, not in a file")
        return int(rows.file.fileno())

    def add_kind(self, width: int) -> int:
        """Have rows of another width too; the number of this kind. Raises CheckpointError if there is no file."""
        self.widths.append(width)
        self._shelves.append(_Shelf(width, self.dtype, self._folder))
        return len(self.widths) - 1

    def written(self, tasks: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these tasks have a row."""
        return self._place[tasks] != NOWHERE

    def read(self, tasks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
        """The rows of these tasks, all of one kind; zeros for those that have none."""
        kind = self._kind_of(tasks)
        rows = np.zeros((len(tasks), self.widths[kind]), dtype=self.dtype)
        for number, place in enumerate(self._place[tasks]):
            if place != NOWHERE:
                self._shelves[kind].rows.read(int(place), rows[number])
        return rows

    def write(self, tasks: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Set the rows of these tasks, all of one kind; where one cannot be written, it and those after it stay."""
        shelf = self._shelves[self._kind_of(tasks)]
        for task, row in zip(tasks.tolist(), np.ascontiguousarray(rows, dtype=self.dtype), strict=True):
            place = int(self._place[task])
            new = place == NOWHERE
            if new:
                place = shelf.next
            shelf.rows.write(place, row)
            if new:
                self._place[task] = place
                shelf.take()

    def forget(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Have no rows of these tasks any more."""
        for task in tasks.tolist():
            self._give_up(task)

    def append(self, tasks: int, kind: int = 0) -> None:
        """Add tasks, without rows yet, after the others."""
        self._place = np.concatenate([self._place, np.full(tasks, NOWHERE, dtype=np.int32)])
        self.kinds = np.concatenate([self.kinds, np.full(tasks, kind, dtype=np.uint16)])

    def set_kind(self, task: int, kind: int) -> None:
        """Let a task have rows of another kind; it has none yet."""
        self._give_up(task)
        self.kinds[task] = kind

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one."""
        self._give_up(task)
        self._place, self.kinds = np.delete(self._place, task), np.delete(self.kinds, task)

    def _give_up(self, task: int) -> None:
        if (place := int(self._place[task])) != NOWHERE:
            self._shelves[self.kinds[task]].free.append(place)
            self._place[task] = NOWHERE

    def _kind_of(self, tasks: Int[np.ndarray, " n"]) -> int:
        kinds = self.kinds[tasks]
        if (kinds != kinds[:1]).any():
            raise ValueError("expected tasks whose rows have the same width")
        return int(kinds[0]) if len(kinds) else 0


class _Shelf:
    """The rows of one width, and which of its places nobody has any more."""

    def __init__(self, width: int, dtype: "np.dtype[np.floating]", folder: Path | None) -> None:
        self.rows = _MemoryRows(width, dtype) if folder is None else _FileRows(width, dtype, folder)
        self.free: list[int] = []
        self._used = 0

    @property
    def next(self) -> int:
        """The place that the next row takes."""
        return self.free[-1] if self.free else self._used

    def take(self) -> None:
        """That place has a row now."""
        if self.free:
            self.free.pop()
        else:
            self._used += 1


class _MemoryRows:
    """Rows in blocks, so that more of them move none."""

    def __init__(self, width: int, dtype: "np.dtype[np.floating]") -> None:
        self._shape, self._dtype = (BLOCK_ROWS, width), dtype
        self._blocks: list[np.ndarray] = []

    def read(self, place: int, row: np.ndarray) -> None:
        block, number = divmod(place, BLOCK_ROWS)
        row[:] = self._blocks[block][number]

    def write(self, place: int, row: np.ndarray) -> None:
        block, number = divmod(place, BLOCK_ROWS)
        while block >= len(self._blocks):
            self._blocks.append(np.empty(self._shape, dtype=self._dtype))
        self._blocks[block][number] = row


class _FileRows:
    """Rows one after the other in a file."""

    def __init__(self, width: int, dtype: "np.dtype[np.floating]", folder: Path) -> None:
        self._bytes, self._folder = width * dtype.itemsize, folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file: Any = TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  (open as long as the table is)
        except OSError as error:
            raise CheckpointError(f"{folder}: cores cannot be written there: {error}") from error

    def __getstate__(self) -> object:
        raise ConfigError("a model whose cores are on disk cannot be copied: save the bank and load it")

    def read(self, place: int, row: np.ndarray) -> None:
        try:
            self.file.seek(place * self._bytes)
            found = self.file.readinto(row.view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self._folder}: the file of cores there cannot be read: {error}") from error
        if found != self._bytes:
            raise CheckpointError(f"{self._folder}: the file of cores there is cut short at row {place}")

    def write(self, place: int, row: np.ndarray) -> None:
        try:
            self.file.seek(place * self._bytes)
            written = self.file.write(row.view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self._folder}: cores cannot be written there: {error}") from error
        if written != self._bytes:
            raise CheckpointError(f"{self._folder}: the disk is full: {written} of {self._bytes} bytes were written")
