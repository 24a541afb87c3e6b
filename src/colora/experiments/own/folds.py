"""Folds of several tasks' examples: what belongs together, in whichever tasks, is in one fold.

Equal inputs belong together, and what a column or a division over all tasks keeps together: a text that one task's
settings are chosen on is then no training example of another's.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from colora.tasks.schema import Example, Task
from colora.tasks.splits.joined import JoinedSets, group_of, input_key

__all__ = ["Folds", "divide"]


class Folds(NamedTuple):
    """Where examples are.

    Attributes:
        of: for each task the fold of each of its examples, counted from 0.
        sizes: for each task the number of examples in each fold.
    """

    of: list[list[int]]
    sizes: list[list[int]]


def divide(tasks: Sequence[Task], pools: Sequence[Sequence[Example]], number: int) -> Folds:
    """Divide examples into folds: each group goes where its tasks have the smallest share of their examples yet.

    Args:
        tasks: say which inputs belong together.
        pools: the examples of each.
        number: of folds, at least 1.
    """
    sets = JoinedSets()
    for task, pool in zip(tasks, pools, strict=True):
        sets.join({"pool": pool}, {"pool": [group_of(task, example) for example in pool]})
    groups = [[sets.of(input_key(example)) for example in pool] for pool in pools]
    members: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for index, of_task in enumerate(groups):
        for group in of_task:
            members[group][index] += 1
    sizes = [[0] * number for _ in pools]
    fold_of: dict[Hashable, int] = {}
    for group in random.Random("folds").sample(list(members), len(members)):
        counts = members[group]
        filled = [sum(sizes[index][fold] / len(pools[index]) for index in counts) for fold in range(number)]
        fold_of[group] = filled.index(min(filled))
        for index, count in counts.items():
            sizes[index][fold_of[group]] += count
    return Folds([[fold_of[group] for group in of_task] for of_task in groups], sizes)
