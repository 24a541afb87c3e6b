"""`ColumnTasks`: the tasks that a column of a table names, none of which is in memory before it is asked for."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from colora.common.names import Names
from colora.common.text import listed
from colora.tasks.column.build import mapped_examples, taken
from colora.tasks.column.divide import divided
from colora.tasks.column.examples import example_of
from colora.tasks.column.source import TasksSource
from colora.tasks.faults import Faults
from colora.tasks.prompting.templates import PromptTemplate
from colora.tasks.schema import SPLITS, Example, Task
from colora.tasks.schema import prompted as prompted_task
from colora.tasks.splits.shared import seen_words

__all__ = ["ColumnTasks"]


class ColumnTasks(Sequence[Task]):
    """The tasks of a folder that `build` made, in the order in which the table has them.

    As a sequence it makes each task that is asked for, with all its examples; `example` makes one example alone.

    Args:
        folder: with the files.
        source: what the run file says.
        seed: of drawn splits.

    Attributes:
        names: of the tasks.
        drawn: of each task whether any of its splits was drawn by chance, (K,).
        template: of all examples; None for the tokenizer's chat template, or the plain text.
        summary: what `build` wrote down.
    """

    def __init__(self, folder: Path, source: TasksSource, seed: int) -> None:
        self._folder, self.source, self.seed = folder, source, seed
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.names = Names(self._array("letters"), self._array("ends"))
        self._examples = mapped_examples(folder)
        self._splits = {split: (self._array(split), self._array(f"{split}_ends")) for split in SPLITS}
        self._rows, self._row_ends = self._array("rows"), self._array("row_ends")
        self.drawn = self._array("drawn")
        self.template: PromptTemplate | None = None

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"no task {index}: there are {len(self)}")
        begin = int(self._row_ends[number - 1]) if number else 0
        rows = taken(self._examples, self._rows[begin : self._row_ends[number]])
        task = divided(rows, self.summary["given"], self.source, self.seed, Faults())
        assert task is not None  # it was not left out
        return task if self.template is None else prompted_task(task, self.template)

    def __iter__(self) -> Iterator[Task]:
        return (self[number] for number in range(len(self)))

    def prompted(self, template: PromptTemplate | None) -> "ColumnTasks":
        """The same tasks with this template for all their examples."""
        other = ColumnTasks.__new__(ColumnTasks)
        other.__dict__.update(self.__dict__)
        other.template = template
        return other

    def sizes(self, split: str) -> Int[np.ndarray, " K"]:
        """How many examples each task has in a split."""
        return np.diff(self._splits[split][1], prepend=0)

    def example(self, split: str, index: int) -> tuple[int, Example]:
        """Example `index` of all tasks of a split, counted through, and the number of its task."""
        rows, ends = self._splits[split]
        (row,) = taken(self._examples, rows[index : index + 1])
        return int(np.searchsorted(ends, index, side="right")), replace(example_of(row), template=self.template)

    def place(self, split: str, index: int) -> tuple[str, str]:
        """The file of such an example and its place in it."""
        (row,) = taken(self._examples, self._splits[split][0][index : index + 1])
        return self.summary["files"][row["file"]], row["place"]

    def sample(self, split: str, most: int, seed: int) -> list[int]:
        """At most so many of the tasks that have examples in a split, drawn by seed, ascending."""
        having = np.flatnonzero(self.sizes(split))
        if len(having) <= most:
            return having.tolist()
        chosen = np.random.default_rng(seed).choice(having, most, replace=False)
        return sorted(chosen.tolist())

    def unplaced(self) -> list[Task]:
        """A task that has an instruction and one that has a conversation, where there are any."""
        rows = list(dict.fromkeys(self.summary["first"].values()))
        return [self[self._task_of_row(row)] for row in rows]

    def manifest(self) -> dict[str, Any]:
        """Numbers and digests, ready for JSON."""
        summary = self.summary
        return {
            "source": self.source.origin,
            "split_seed": self.seed if self.drawn.any() else None,
            "tasks": summary["tasks"],
            "splits": summary["splits"],
        }

    def notes(self) -> list[str]:
        """What a user would not expect, in sentences."""
        summary, found = self.summary, []
        if summary["left"]:
            names = listed(summary["left_out"], len(summary["left_out"]))
            found.append(f"{summary['left']} tasks have no training examples and are left out: {names}, ...")
        if summary["noted"]:
            found.append(f"{summary['noted']} tasks have notes, such as")
        return [*found, *summary["notes"], *([seen] if (seen := self.seen_note()) else [])]

    def seen_note(self, measured: str = "test") -> str | None:
        """See `colora.tasks.splits.shared.seen_note`."""
        number = self.summary["seen"][measured]
        if not number:
            return None
        words = seen_words(number, self.summary["splits"][measured]["examples"], measured)
        return words.partition("; shared_splits")[0]

    def _task_of_row(self, row: int) -> int:
        (place,) = np.flatnonzero(np.asarray(self._rows) == row)
        return int(np.searchsorted(self._row_ends, place, side="right"))

    def _array(self, name: str) -> Int[np.ndarray, " n"]:
        file = self._folder / f"{name}.npy"
        whole: np.ndarray = np.load(file, mmap_mode="r") if file.stat().st_size > 128 else np.load(file)
        return whole
