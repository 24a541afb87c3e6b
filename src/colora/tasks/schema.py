"""What a task is: examples in three splits, and where a user says they come from."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from colora.errors import ConfigError
from colora.tasks.prompting.templates import PromptTemplate

__all__ = ["SPLITS", "Example", "Task", "TaskSource", "first_examples", "prompted", "task_template"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One input with every output that counts as right; training uses the first of them.

    Attributes:
        input: the text that is answered; of a conversation, the user's last turn.
        outputs: the answers that count as right.
        instruction: stands at the beginning of the prompt.
        history: what user and assistant said before `input` in turn, the user first; it is part of the prompt alone.
        template: how these texts stand in the prompt; None for the tokenizer's chat template, or the plain text.
    """

    input: str
    outputs: tuple[str, ...]
    instruction: str | None = None
    history: tuple[str, ...] = ()
    template: PromptTemplate | None = None


@dataclass(frozen=True)
class Task:
    """A named task.

    Attributes:
        name: unique among the tasks of a run, and fit to be a folder's name.
        splits: the keys are "train", "val" and "test"; all three are present, and no example is in two of them.
        source: the file, folder or dataset it was read from.
        split_seed: the seed if any split was drawn by chance, None if all are used as they were given.
        notes: what a user would not expect of the sizes of the splits.
        choices: every answer there can be, where the task's definition closes the set and it is small; no one of them
            is the beginning of another. Empty where answers are free.
        groups: the group of each input that stays together with others, by `colora.tasks.splits.joined.input_key`;
            empty where no column and no other task says so.
    """

    name: str
    splits: dict[str, tuple[Example, ...]]
    source: str
    split_seed: int | None
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    groups: Mapping[Hashable, Hashable] = field(default_factory=dict)


def first_examples(task: Task, split: str, limit: int | None) -> Task:
    """The task with the first `limit` examples of a split alone, all if None; its other splits stay."""
    return replace(task, splits=task.splits | {split: task.splits.get(split, ())[:limit]})


def prompted(task: Task, template: PromptTemplate | None) -> Task:
    """The task with this template for all its examples."""
    splits = {
        split: tuple(replace(example, template=template) for example in examples)
        for split, examples in task.splits.items()
    }
    return replace(task, splits=splits)


def task_template(task: Task) -> PromptTemplate | None:
    """The template of a task's examples. Raises ConfigError if they have several."""
    found = {example.template for examples in task.splits.values() for example in examples}
    if len(found) > 1:
        texts = sorted(repr(None if template is None else template.text) for template in found)
        raise ConfigError(f"task {task.name!r}: expected one prompt for all its examples, found {', '.join(texts)}")
    return next(iter(found), None)


@dataclass(frozen=True)
class TaskSource:
    """What a user asks for: one task and where its examples are. Exactly one of `path` and `dataset` is needed.

    Attributes:
        name: the task's name; by default the file's stem, the folder's name, or "dataset-subset".
        path: a .jsonl, .csv, .tsv, .json or .parquet file, packed as .gz or not, a folder of train/val/test files, or
            one written by `save_to_disk`.
        dataset: the first argument of `datasets.load_dataset`, a hub id for instance.
        subset: the second argument of `datasets.load_dataset`, known there as the configuration.
        fields: our "input", "output" and "instruction" to the names of the file's columns, where they differ; a dotted
            name goes down into objects.
        group_by: a column, such as that of a person or a document; examples with the same value in it are in one split.
        instruction: one instruction for all examples, in place of the file's own.
        train, val, test: how many examples of each split to use. None: all that are given, or the default share
            of a split that is drawn. 0: none, and a file of that split is not even read.
    """

    name: str | None = None
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    group_by: str | None = None

    def count(self, split: str) -> int | None:
        """How many examples of "train", "val" or "test" are asked for."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    @property
    def origin(self) -> str:
        """The path or the dataset, for messages and records."""
        return self.path or "/".join(part for part in (self.dataset, self.subset) if part) or "a task source"
