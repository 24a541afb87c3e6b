"""A number for each of very many tasks as the mapping that `BankInfo` has: a column of the index, and what changed."""

from collections.abc import Iterator, MutableMapping

import numpy as np
from jaxtyping import Int

from colora.adapter.task_names import TaskNames
from colora.bank.rows.index import UNKNOWN

__all__ = ["TaskNumbers"]


class TaskNumbers(MutableMapping[str, int]):
    """The numbers of a column by the names of the tasks, without those that are `UNKNOWN`.

    Args:
        names: of the tasks.
        column: their numbers; stays as it is.
    """

    def __init__(self, names: TaskNames, column: Int[np.ndarray, " K"]) -> None:
        self._names, self._column = names, column
        self._changed: dict[str, int] = {}  # UNKNOWN where it was removed

    def __getitem__(self, task: str) -> int:
        value = self._changed[task] if task in self._changed else int(self._column[self._names[task]])
        if value == UNKNOWN:
            raise KeyError(task)
        return value

    def __setitem__(self, task: str, value: int) -> None:
        self._changed[task] = value

    def __delitem__(self, task: str) -> None:
        self[task]  # raises where there is none
        self._changed[task] = UNKNOWN

    def __iter__(self) -> Iterator[str]:
        for name, value in zip(self._names, self._column, strict=True):
            if self._changed.get(name, value) != UNKNOWN:
                yield name
        yield from (name for name, value in self._changed.items() if name not in self._names and value != UNKNOWN)

    def __len__(self) -> int:
        return sum(1 for _ in self)
