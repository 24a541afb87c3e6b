"""The examples of a column's tasks divided into splits, each task as if it had a file of its own.

A task that has fewer examples than the counts of the run file ask for is divided by the default shares: 20 % test, 10 %
validation, both rounded down, so that below five examples all are trained on. Counts are then the most that is used.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from colora.tasks.column.examples import example_of
from colora.tasks.column.source import TasksSource
from colora.tasks.faults import Faults
from colora.tasks.schema import SPLITS, Example, Task
from colora.tasks.splits.draw import Grouping, make_splits
from colora.tasks.splits.joined import JoinedSets

__all__ = ["divided"]


def divided(
    rows: Sequence[Mapping[str, Any]],
    given: Sequence[str],
    source: TasksSource,
    seed: int,
    faults: Faults,
) -> Task | None:
    """The task of these rows of the file of examples; None if nothing is left to train on.

    Args:
        rows: all rows of one task, in their order in the table.
        given: the splits that the table gives.
        source: what the run file says.
        seed: of the draw.
        faults: a group in two of the given splits is noted.
    """
    examples: dict[str, list[Example]] = {split: [] for split in given}
    groups: dict[str, list[Hashable]] = {split: [] for split in given if source.group_by is not None}
    for row in rows:
        split = SPLITS[row["split"]]
        examples[split].append(example_of(row))
        if source.group_by is not None:
            groups[split].append(row["group"])
    name, each = rows[0]["task"], source.each
    own, notes = Faults(), list[str]()
    splits, drawn = make_splits(examples, each, name, seed, own, Grouping(groups), notes)
    if len(own):
        if torn := _torn(groups):
            found = f'expected the {source.group_by} "{torn}" of task "{name}" in one split, found it in several'
            faults.add(source.origin, f"{found}; give one file, of which splits are drawn, or leave group_by out")
            return None
        own, notes = Faults(), []
        shares = replace(each, train=None, val=each.val and None, test=each.test and None)
        splits, drawn = make_splits(examples, shares, name, seed, own, Grouping(groups), notes)
        if len(own):
            return None
        splits = {split: some[: each.count(split)] for split, some in splits.items()}
    sets = JoinedSets()
    sets.join(examples, groups)
    joined = sets.groups(examples) if groups else {}
    return Task(name, splits, source.origin, seed if drawn else None, tuple(notes), groups=joined)


def _torn(groups: Mapping[str, Sequence[Hashable]]) -> Hashable:
    """A value that examples in several splits have."""
    split_of: dict[Hashable, str] = {}
    for split, values in groups.items():
        for value in values:
            if split_of.setdefault(value, split) != split:
                return value
    return None
