"""From a table to a folder with all that a run needs of its tasks, made once for a table and a way to divide it.

FOLDER/examples.arrow      every example, see `examples.py`
FOLDER/letters.npy, ends.npy                      names of the tasks, see `names.py`
FOLDER/rows.npy, row_ends.npy                     the examples of each task, as it was given
FOLDER/drawn.npy           whether any of a task's splits was drawn by chance
FOLDER/SPLIT.npy, SPLIT_ends.npy                  those of each split of each task, in their order
FOLDER/summary.json        numbers, digests, and what a user would not expect

Numbers of 8 bytes a row and task; the arrays are mapped into memory where they are used.
"""

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from colora.common.files import write_json
from colora.common.names import Names
from colora.common.progress import progress_bar
from colora.common.text import listed
from colora.tasks.column.divide import divided
from colora.tasks.column.examples import example_of, write_examples
from colora.tasks.column.source import TasksSource
from colora.tasks.faults import Faults
from colora.tasks.schema import SPLITS, Example, Task
from colora.tasks.splits.joined import input_key
from colora.tasks.tables import Table

if TYPE_CHECKING:
    import datasets

__all__ = ["build", "mapped_examples", "taken"]

ROWS_AT_ONCE = 20_000
SHOWN = 5


def build(
    parts: Iterator[tuple[str, Table]],
    given: Sequence[str],
    source: TasksSource,
    seed: int,
    folder: Path,
    faults: Faults,
) -> None:
    """Make the folder's files.

    Args:
        parts: of the table, some rows at a time, with the split that they are given in.
        given: the splits that the table gives.
        source: what the run file says.
        seed: of drawn splits.
        folder: is there already.
        faults: where all that is wrong is noted; the folder is whole only if there is nothing.
    """
    files = write_examples(parts, source, folder / "examples.arrow", faults)
    if len(faults):
        return
    examples = mapped_examples(folder)
    names, rows, ends = _by_task(examples)
    _check_apart(names, source, faults)
    if len(faults):
        return
    result = _Divided()
    with progress_bar() as bar:
        step = bar.add_task("dividing the examples of each task", total=len(ends))
        for task_rows, numbers in _task_rows(examples, rows, ends):
            bar.advance(step)
            result.add(divided(task_rows, given, source, seed, faults), task_rows, numbers)
    if not len(result.name_ends) and not len(faults):
        found = f"none that is not in test or val as well: {listed(result.left_out, SHOWN)}"
        faults.add(source.origin, f"expected a task with training examples, found {found}")
    if not len(faults):
        result.save(folder, files, given)


def mapped_examples(folder: Path) -> "datasets.Dataset":
    """The examples of a folder, mapped into memory."""
    from datasets import Dataset

    return Dataset.from_file(str(folder / "examples.arrow"))


def taken(examples: "datasets.Dataset", numbers: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Some rows of the examples."""
    rows: list[dict[str, Any]] = examples.with_format("arrow")[numbers.tolist()].to_pylist()
    return rows


def _by_task(examples: "datasets.Dataset") -> tuple[Names, Int[np.ndarray, " n"], Int[np.ndarray, " K"]]:
    """Names of the tasks in the order in which the table has them; the rows of each, and where each ends in these."""
    import pyarrow as pa

    column = examples.data.column("task").cast(pa.large_string())
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    codes = encoded.indices.to_numpy()
    rows = np.argsort(codes, kind="stable")
    return Names.of(encoded.dictionary.to_pylist()), rows, np.cumsum(np.bincount(codes))


def _check_apart(names: Names, source: TasksSource, faults: Faults) -> None:
    """A name is also a folder's name, and on some systems those do not tell case or composition apart."""
    keys = (hash(unicodedata.normalize("NFC", name).casefold()) for name in names)
    hashes = np.fromiter(keys, dtype=np.int64, count=len(names))
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for one, other in zip(order[alike].tolist(), order[alike + 1].tolist(), strict=True):
        found = f'"{names[one]}" and "{names[other]}"'
        rule = f'expected values of "{source.task}" that differ (not only in case)'
        faults.add(source.origin, f"{rule}, found {found}; names: hashed in tasks_from takes both")


def _task_rows(
    examples: "datasets.Dataset", rows: Int[np.ndarray, " n"], ends: Int[np.ndarray, " K"]
) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """Of each task its rows of the examples, and their numbers."""
    task = begin = 0
    while task < len(ends):
        after = int(np.searchsorted(ends, begin + ROWS_AT_ONCE, side="right"))
        after = max(after, task + 1)
        some = rows[begin : ends[after - 1]]
        found = taken(examples, some)
        for end in ends[task:after].tolist():
            size, base = end - begin, int(ends[task - 1]) if task else 0
            at = begin - base
            yield found[at : at + size], some[at : at + size].tolist()
            begin = end
        task = after


@dataclass
class _Divided:
    """The splits of tasks as numbers of rows, as they come."""

    letters: bytearray = field(default_factory=bytearray)
    name_ends: array = field(default_factory=lambda: array("q"))
    rows: array = field(default_factory=lambda: array("q"))
    row_ends: array = field(default_factory=lambda: array("q"))
    splits: dict[str, tuple[Any, Any]] = field(default_factory=lambda: {s: (array("q"), array("q")) for s in SPLITS})
    drawn: bytearray = field(default_factory=bytearray)
    noted: int = 0
    notes: list[str] = field(default_factory=list)
    left: int = 0
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digests = {split: hashlib.sha256() for split in SPLITS}
        self.keys: dict[str, Any] = {split: array("q") for split in SPLITS}
        self.first: dict[str, int] = {}  # a row with an instruction, and one with a history

    def add(self, task: Task | None, rows: Sequence[dict[str, Any]], numbers: Sequence[int]) -> None:
        """Keep one task's splits; None: it is left out."""
        if task is None:
            self.left += 1
            self.left_out += [rows[0]["task"]][: SHOWN - len(self.left_out)]
            return
        self.letters += task.name.encode()
        self.name_ends.append(len(self.letters))
        self.rows.extend(numbers)
        self.row_ends.append(len(self.rows))
        self.drawn.append(task.split_seed is not None)
        if task.notes:
            self.noted += 1
            self.notes += [f"task {task.name}: {note}" for note in task.notes][: SHOWN - len(self.notes)]
        number_of: dict[Example, int] = {}
        for row, number in zip(rows, numbers, strict=True):
            number_of.setdefault(example_of(row), number)
            for kind in ("instruction", "history"):
                if row[kind]:
                    self.first.setdefault(kind, number)
        for split, (chosen, ends) in self.splits.items():
            some = task.splits[split]
            chosen.extend(number_of[example] for example in some)
            ends.append(len(chosen))
            self.keys[split].extend(hash(input_key(example)) for example in some)
            if some:
                texts = [[one.instruction, one.input, *one.outputs, *one.history] for one in some]
                self.digests[split].update(json.dumps([task.name, texts], ensure_ascii=False).encode())

    def save(self, folder: Path, files: Sequence[str], given: Sequence[str]) -> None:
        """Write all but the examples."""
        arrays: dict[str, Any] = {"letters": np.frombuffer(self.letters, np.uint8), "ends": _whole(self.name_ends)}
        arrays |= {"rows": _whole(self.rows), "row_ends": _whole(self.row_ends)}
        arrays["drawn"] = np.frombuffer(self.drawn, dtype=bool)
        for split, (chosen, ends) in self.splits.items():
            arrays |= {split: _whole(chosen), f"{split}_ends": _whole(ends)}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        summary = {
            "tasks": len(self.name_ends),
            "files": list(files),
            "given": list(given),
            "splits": {
                split: {"examples": len(chosen), "sha256": self.digests[split].hexdigest()}
                for split, (chosen, _) in self.splits.items()
            },
            "noted": self.noted,
            "notes": self.notes,
            "left": self.left,
            "left_out": self.left_out,
            "first": self.first,
            "seen": {measured: self._seen(measured) for measured in ("test", "val")},
        }
        write_json(folder / "summary.json", summary)

    def _seen(self, measured: str) -> int:
        """How many examples of a split have an input that another task has in a split before; `seen_elsewhere`."""
        before = ("train", "val") if measured == "test" else ("train",)
        own = np.concatenate([self._pairs(split) for split in before])
        own = np.unique(own, axis=0)  # of each task each input once
        keys, having = np.unique(own[:, 1], return_counts=True)
        wanted = self._pairs(measured)
        if not len(keys) or not len(wanted):
            return 0
        place = np.searchsorted(keys, wanted[:, 1]).clip(max=len(keys) - 1)
        count = np.where(keys[place] == wanted[:, 1], having[place], 0)
        asked, back = np.unique(wanted, axis=0, return_inverse=True)
        _, at, times = np.unique(np.concatenate([asked, own]), axis=0, return_inverse=True, return_counts=True)
        mine = (times[at.ravel()[: len(asked)]] > 1)[back.ravel()]
        return int((count > mine).sum())

    def _pairs(self, split: str) -> Int[np.ndarray, "n 2"]:
        """Of each example of a split its task and its input."""
        sizes = np.diff(_whole(self.splits[split][1]), prepend=0)
        return np.stack([np.repeat(np.arange(len(sizes)), sizes), _whole(self.keys[split])], axis=1)


def _whole(values: Any) -> Int[np.ndarray, " n"]:
    return np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, dtype=np.int64)
