"""Splits of several tasks that have texts in common, such as people who judge the same ones.

A text that one task is tested on is then no training example of another: what trains on all tasks would have seen it,
with another's answer, and what trains on one would not.
"""

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from colora.tasks.schema import Example, Task
from colora.tasks.splits.draw import Grouping
from colora.tasks.splits.joined import JoinedSets, group_of, input_key

__all__ = ["seen_elsewhere", "seen_note", "shared_groupings", "without_shared"]

Given = Mapping[str, Sequence[Example]]


def shared_groupings(sets: JoinedSets, given: Sequence[Given], seed: int) -> list[Grouping]:
    """One grouping for each task, by which the turn of a group to be drawn comes at the same place in every task.

    Args:
        sets: the groups of all tasks.
        given: examples of each task by split.
        seed: decides the order of the groups.
    """
    of = [
        {split: [sets.of(input_key(example)) for example in some] for split, some in examples.items()}
        for examples in given
    ]
    known = list(dict.fromkeys(group for splits in of for some in splits.values() for group in some))
    order = {group: place for place, group in enumerate(random.Random(seed).sample(known, len(known)))}
    return [Grouping(values, order) for values in of]


def without_shared(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without what another is measured on: no group of a test split is in a validation or training split of
    any task, none of a validation split in a training split. What a task lost is noted.

    Something is lost where tasks have few texts in common, or splits of different sizes, or were given splits.
    """
    left = list(tasks)
    held: set[Hashable] = set()
    for measured, later in (("test", ("val", "train")), ("val", ("train",))):
        held |= {group_of(task, example) for task in left for example in task.splits[measured]}
        for split in later:
            left = [_without(task, split, held, measured) for task in left]
    return left


def seen_elsewhere(tasks: Sequence[Task]) -> dict[str, int]:
    """For each task the number of its test examples whose input is a training or validation example of another task;
    tasks without any are left out."""
    trained = [{input_key(example) for split in ("train", "val") for example in task.splits[split]} for task in tasks]
    having = Counter(key for keys in trained for key in keys)
    found = {}
    for task, own in zip(tasks, trained, strict=True):
        keys = [input_key(example) for example in task.splits["test"]]
        if number := sum(having[key] > (key in own) for key in keys):
            found[task.name] = number
    return found


def seen_note(tasks: Sequence[Task]) -> str | None:
    """The same in a sentence for users; None if there is nothing to say."""
    if not (seen := seen_elsewhere(tasks)):
        return None
    number, of = sum(seen.values()), sum(len(task.splits["test"]) for task in tasks)
    return (
        f"{number} of {of} test inputs are training or validation inputs of other tasks, so what trains on all tasks "
        "has seen them; shared_splits: true in the run file keeps them apart"
    )


def _without(task: Task, split: str, held: set[Hashable], measured: str) -> Task:
    kept = tuple(example for example in task.splits[split] if group_of(task, example) not in held)
    lost = len(task.splits[split]) - len(kept)
    if not lost:
        return task
    note = f"{lost} {split} examples are left out: other tasks have their inputs in {measured}"
    return replace(task, splits=task.splits | {split: kept}, notes=(*task.notes, note))
