"""Finds the folder of task data, reads what is in it, and leaves out what is too long."""

import os
from collections.abc import Container, Iterable
from pathlib import Path

from colora.errors import ConfigError
from colora.tasks.families.draw import TaskRequest
from colora.tasks.read import read_tasks
from colora.tasks.schema import Example, TaskSource

__all__ = ["LONGEST", "data_folder", "read_splits", "short_examples"]

LONGEST = {"scan": 50, "odd-man-out": 160, "codah": 160, "tweet": 99}
"""Bytes of UTF-8 that an input may have, and its first answer as well. With these limits the explicit prompt, the
answer and the end have at most 64 tokens of SmolLM2 together, and the answer and the end at most 32. Of CODAH's
examples one in twelve is so short, of SCAN's one in eight or ten, of the tweets half."""


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


def read_splits(path: Path, only_train: bool = False) -> dict[str, tuple[Example, ...]]:
    """All examples of a file or folder, without instructions and without spaces at the ends of lines.

    Args:
        path: of the file or folder.
        only_train: all examples are in "train"; otherwise they are divided as the folder is.

    Raises:
        TaskFileError: with every fault of the file.
    """
    count = 0 if only_train else None
    (task,) = read_tasks([TaskSource(name="examples", path=str(path), val=count, test=count)])
    return {split: tuple(_tidy(example) for example in examples) for split, examples in task.splits.items()}


def short_examples(examples: Iterable[Example], family: str, seen: Container[str] = ()) -> list[Example]:
    """Those within the family's limit whose inputs are not in `seen`; of equal inputs the first."""
    distinct: dict[str, Example] = {}
    for example in examples:
        distinct.setdefault(example.input, example)
    longest = LONGEST[family]
    return [
        example
        for example in distinct.values()
        if example.input not in seen and max(len(example.input.encode()), len(example.outputs[0].encode())) <= longest
    ]


def _tidy(example: Example) -> Example:
    return Example("\n".join(line.rstrip() for line in example.input.split("\n")), example.outputs)
