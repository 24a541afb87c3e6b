"""Names of tasks and their ids, in 20 bytes a task and the letters, where a dict would take ten times that.

Its arrays may be those of a file that is mapped: a name is then looked up without reading the others.

Examples:
    >>> names = TaskNames(["billing", "legal"])
    >>> names["legal"], names.name(0), "sales" in names
    (1, 'billing', False)
    >>> list(names.extended(["sales"]))
    ['billing', 'legal', 'sales']
    >>> list(names.without([0]))
    ['legal']
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from colora.common.names import Names

__all__ = ["NameArrays", "TaskNames", "TaskSequence"]


class NameArrays(NamedTuple):
    """What names are kept as.

    Attributes:
        letters: of all names in UTF-8, one name after the other.
        ends: of each name among the letters.
        hashes: of all names, ascending; they are the same in every process, see `_hashes`.
        order: the id of each of them.
    """

    letters: UInt8[np.ndarray, " letters"]
    ends: Int[np.ndarray, " K"]
    hashes: Int[np.ndarray, " K"]
    order: Int[np.ndarray, " K"]


NOTHING = NameArrays(
    np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
)


class TaskNames(Mapping[str, int]):
    """From a name to its id; in the order of the ids.

    Args:
        names: none of them twice.

    Attributes:
        arrays: what they are kept as; never changed.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.arrays = NOTHING
        self._add(names if isinstance(names, Sequence) else list(names))

    @classmethod
    def of_arrays(cls, arrays: NameArrays) -> "TaskNames":
        """The names that are kept as these arrays."""
        names = cls()
        names.arrays = arrays
        return names

    def extended(self, names: Sequence[str]) -> "TaskNames":
        """These and further names."""
        other = TaskNames.of_arrays(self.arrays)
        other._add(names)
        return other

    def without(self, tasks: Sequence[int]) -> "TaskNames":
        """The names without those of these ids; those after them move up."""
        keep = np.ones(len(self), dtype=bool)
        keep[list(tasks)] = False
        lengths = np.diff(self.arrays.ends, prepend=0)
        moved, kept = np.cumsum(keep, dtype=np.int32) - 1, keep[self.arrays.order]
        letters = self.arrays.letters[np.repeat(keep, lengths)]
        ends = np.cumsum(lengths[keep], dtype=np.int64)
        order = moved[self.arrays.order[kept]].astype(np.int32)
        return TaskNames.of_arrays(NameArrays(letters, ends, self.arrays.hashes[kept], order))

    def name(self, task: int) -> str:
        """The name of an id. Raises IndexError if there is no such task."""
        if task < 0:
            raise IndexError(f"no task {task}: there are {len(self)}")
        return self.by_id[task]

    @property
    def by_id(self) -> Names:
        """The names in the order of their ids."""
        return Names(self.arrays.letters, self.arrays.ends)

    def __getitem__(self, name: str) -> int:
        if isinstance(name, str):
            _, _, hashes, order = self.arrays
            wanted = _hashes([name.encode()])[0]
            place = int(np.searchsorted(hashes, wanted))
            while place < len(self) and hashes[place] == wanted:
                task = int(order[place])
                if self.name(task) == name:
                    return task
                place += 1
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_id)

    def __len__(self) -> int:
        return len(self.arrays.ends)

    def __reduce__(self) -> Any:
        return TaskNames.of_arrays, (NameArrays(*map(np.array, self.arrays)),)  # and not of a file

    def _add(self, names: Sequence[str]) -> None:
        encoded = [name.encode() for name in names]
        letters, ends, hashes, order = self.arrays
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        new_ends = np.concatenate([ends, len(letters) + np.cumsum(lengths)])
        new_letters = np.concatenate([letters, np.frombuffer(b"".join(encoded), dtype=np.uint8)])
        new_hashes = np.concatenate([hashes, _hashes(encoded)])
        new_order = np.concatenate([order, np.arange(len(ends), len(new_ends), dtype=np.int32)])
        sorting = np.argsort(new_hashes, kind="stable")
        self.arrays = NameArrays(new_letters, new_ends, new_hashes[sorting], new_order[sorting])


def _hashes(names: Iterable[bytes]) -> Int[np.ndarray, " n"]:
    """Eight bytes of BLAKE2b of each name. Not Python's own, which are others in each process."""
    return np.frombuffer(b"".join(blake2b(name, digest_size=8).digest() for name in names), dtype="<i8")


class TaskSequence(Names):
    """The same names by id, to stand for a list where most are never looked at. A copy of it is a list."""

    def __init__(self, names: TaskNames) -> None:
        super().__init__(names.arrays.letters, names.arrays.ends)
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __deepcopy__(self, memo: object) -> list[str]:
        return list(self)
