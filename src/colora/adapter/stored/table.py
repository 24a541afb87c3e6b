"""`CoreTable`: a row of numbers for each task, in memory or in a file. A row that nobody has written takes no room.

A file that is read and written, and not a mapped one: where the disk is full, a write into a mapping ends the process.

Example:
    >>> import numpy as np
    >>> table = CoreTable(3, tasks=1_000_000)
    >>> table.write(np.array([7]), np.array([[1.0, 2.0, 3.0]]))
    >>> table.read(np.array([8, 7])).tolist()
    [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
"""

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from colora.errors import CheckpointError, ConfigError

__all__ = ["CoreTable"]

BLOCK_ROWS = 256
NOWHERE = -1


class CoreTable:
    """The rows of K tasks.

    Args:
        width: numbers of a row.
        tasks: K.
        dtype: of the numbers.
        folder: where the rows are kept, in a file without a name that goes with the process; None: in memory.

    Raises:
        CheckpointError: the file cannot be written or read.
    """

    def __init__(
        self, width: int, tasks: int, dtype: type[np.floating] = np.float32, folder: Path | None = None
    ) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self._rows = _MemoryRows(width, self.dtype) if folder is None else _FileRows(width, self.dtype, folder)
        self._place = np.full(tasks, NOWHERE, dtype=np.int32)
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self._place)

    @property
    def file_descriptor(self) -> int:
        """Of the file. Raises ConfigError if the rows are in memory."""
        if isinstance(self._rows, _MemoryRows):
            raise ConfigError("these cores are in memory, not in a file")
        return int(self._rows.file.fileno())

    def written(self, tasks: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these tasks have a row."""
        return self._place[tasks] != NOWHERE

    def read(self, tasks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
        """The rows of these tasks; zeros for those that have none."""
        rows = np.zeros((len(tasks), self.width), dtype=self.dtype)
        for number, place in enumerate(self._place[tasks]):
            if place != NOWHERE:
                self._rows.read(int(place), rows[number])
        return rows

    def write(self, tasks: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Set the rows of these tasks; where one cannot be written, it and those after it stay as they were."""
        for task, row in zip(tasks.tolist(), np.ascontiguousarray(rows, dtype=self.dtype), strict=True):
            place = int(self._place[task])
            new = place == NOWHERE
            if new:
                place = self._free[-1] if self._free else self._used
            self._rows.write(place, row)
            if new:
                self._place[task] = place
                if self._free:
                    self._free.pop()
                else:
                    self._used += 1

    def forget(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Have no rows of these tasks any more."""
        places = self._place[tasks]
        self._free += places[places != NOWHERE].tolist()
        self._place[tasks] = NOWHERE

    def append(self, tasks: int) -> None:
        """Add tasks, without rows yet, after the others."""
        self._place = np.concatenate([self._place, np.full(tasks, NOWHERE, dtype=np.int32)])

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one."""
        if (place := int(self._place[task])) != NOWHERE:
            self._free.append(place)
        self._place = np.delete(self._place, task)


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
