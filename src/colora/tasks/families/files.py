"""Finds the folder of task data, reads what is in it, and leaves out what is too long."""

import os
from collections.abc import Collection, Container, Iterable
from pathlib import Path

from colora.errors import ConfigError
from colora.tasks.families.draw import TaskRequest
from colora.tasks.read import read_tasks
from colora.tasks.schema import Example, TaskSource

__all__ = ["LONGEST", "LONGEST_ANSWER", "data_folder", "read_splits", "short_examples"]

LONGEST = {
    **{"scan": 50, "odd-man-out": 160, "codah": 160, "tweet": 99},
    **dict.fromkeys(("letters", "lists", "facts", "words"), 99),
    **{"annotator": 160, "rater": 160, "flan": 300},
}
"""Bytes of UTF-8 that an input may have, and its first answer as well. With these limits the explicit prompt, the
answer and the end have at most 64 tokens of SmolLM2 together, and the answer and the end at most 32; flan is longer,
see `colora.tasks.families.flan`. Of CODAH's examples one in twelve is so short, of SCAN's one in eight or ten, of the
tweets half, of the raters' comments seven in eight, of words and annotators all."""
LONGEST_ANSWER = LONGEST | {"flan": 140}
"""Bytes of UTF-8 that the first answer may have."""


def data_folder(request: TaskRequest, folder: str) -> Path:
    """The folder with this name in the task data: in `request.data`, in $COLORA_DATA, or in ../shared/data beside the
    checkout; the first of these that is given decides.

    Raises:
        ConfigError: if it is not there.
    """
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    root = request.data or Path(os.environ.get("COLORA_DATA") or beside)
    if not (root / folder).is_dir():
        raise ConfigError(
            f'task "{request.name}" needs task data: expected the folder {root / folder}, found none. Name the folder '
            f'that holds "{folder}" by the environment variable COLORA_DATA, or by `data`'
        )
    return root / folder


def read_splits(path: Path, splits: Collection[str]) -> dict[str, tuple[Example, ...]]:
    """All examples of a file or folder, without instructions and without spaces at the ends of lines.

    Args:
        path: of the file or folder.
        splits: those that a folder has, the others are empty; all examples of a file are in "train", its only split.

    Raises:
        TaskFileError: with every fault of the file.
    """
    val, test = (None if split in splits else 0 for split in ("val", "test"))
    (task,) = read_tasks([TaskSource(name="examples", path=str(path), val=val, test=test)])
    return {split: tuple(_tidy(example) for example in examples) for split, examples in task.splits.items()}


def short_examples(examples: Iterable[Example], family: str, seen: Container[str] = ()) -> list[Example]:
    """Those within the family's limit whose inputs are not in `seen`; of equal inputs the first."""
    distinct: dict[str, Example] = {}
    for example in examples:
        distinct.setdefault(example.input, example)
    longest, longest_answer = LONGEST[family], LONGEST_ANSWER[family]
    return [
        example
        for example in distinct.values()
        if example.input not in seen
        and len(example.input.encode()) <= longest
        and len(example.outputs[0].encode()) <= longest_answer
    ]


def _tidy(example: Example) -> Example:
    return Example("\n".join(line.rstrip() for line in example.input.split("\n")), example.outputs)
