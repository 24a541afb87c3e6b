"""Names of tasks and their ids, in 20 bytes a task and the letters, where a dict would take ten times that.

Example:
    >>> names = TaskNames(["billing", "legal"])
    >>> names["legal"], names.name(0), "sales" in names
    (1, 'billing', False)
    >>> list(names.extended(["sales"]))
    ['billing', 'legal', 'sales']
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

__all__ = ["TaskNames", "TaskSequence"]


class TaskNames(Mapping[str, int]):
    """From a name to its id; in the order of the ids.

    Args:
        names: none of them twice.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._letters, self._ends = b"", np.zeros(0, dtype=np.int64)
        self._hashes, self._order = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
        self._add(list(names))

    def extended(self, names: Sequence[str]) -> "TaskNames":
        """These and further names."""
        other = TaskNames()
        other.__dict__.update(self.__dict__)  # arrays, none of which is ever changed
        other._add(names)
        return other

    def name(self, task: int) -> str:
        """The name of an id. Raises IndexError if there is no such task."""
        if not 0 <= task < len(self):
            raise IndexError(f"no task {task}: there are {len(self)}")
        begin = self._ends[task - 1] if task else 0
        return self._letters[begin : self._ends[task]].decode()

    def __getitem__(self, name: str) -> int:
        if isinstance(name, str):
            wanted = hash(name)
            place = int(np.searchsorted(self._hashes, wanted))
            while place < len(self) and self._hashes[place] == wanted:
                task = int(self._order[place])
                if self.name(task) == name:
                    return task
                place += 1
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for end in self._ends.tolist():
            yield self._letters[begin:end].decode()
            begin = end

    def __len__(self) -> int:
        return len(self._ends)

    def __reduce__(self) -> Any:
        return TaskNames, (list(self),)  # another process hashes otherwise

    def _add(self, names: Sequence[str]) -> None:
        encoded = [name.encode() for name in names]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        self._ends = np.concatenate([self._ends, len(self._letters) + np.cumsum(lengths)])
        self._letters += b"".join(encoded)
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(encoded))
        hashes = np.concatenate([self._hashes, hashes])
        order = np.concatenate([self._order, np.arange(len(self) - len(encoded), len(self), dtype=np.int32)])
        sorting = np.argsort(hashes, kind="stable")
        self._hashes, self._order = hashes[sorting], order[sorting]


class TaskSequence(Sequence[str]):
    """The same names by id, to stand for a list where most are never looked at. A copy of it is a list."""

    def __init__(self, names: TaskNames) -> None:
        self._names = names

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._names.name(task) for task in range(*index.indices(len(self)))]
        return self._names.name(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> list[str]:
        return list(self)
