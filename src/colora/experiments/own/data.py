"""A user's tasks as trials ask for them: folds to choose settings on, and all examples for the final training.

Whatever is not tested on is one pool: training and validation examples. Settings are chosen on the user's own
validation split where every task has enough of it, else by cross-validation of the pool. In the end the chosen setting
is trained on the whole pool, as one would who goes on to use it, and measured on the test split.

Files may be sorted, by label or by date. So training examples are shuffled, for examples in the prompt stand in their
order; and where fewer are measured than there are, they are drawn.

Groups of trials say which part is meant, and hold a digest of all examples: other examples are other trials.

    tasks-DIGEST               trained on the pool, measured on test
    tasks-DIGEST-val           trained on train, measured on val
    tasks-DIGEST-FOLDS-fold2of3  trained on the pool without its second third, measured on that; FOLDS: of the division
"""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from colora.errors import TaskFileError
from colora.experiments.own.folds import Folds, divide
from colora.experiments.trial import Trial
from colora.tasks.schema import Example, Task
from colora.training.run_folder import task_manifest

__all__ = ["ENOUGH_VALIDATION", "OwnTasks"]

ENOUGH_VALIDATION = 8  # examples of every task
_PART = re.compile(r"-fold(\d+)of(\d+)$")


class OwnTasks:
    """The tasks, and what becomes of their examples.

    Args:
        tasks: as they were read.
        style: what else of the prompts decides results, such as the use of a chat template; enters the digest.

    Attributes:
        group: of the trials that train on everything.

    Raises:
        TaskFileError: for tasks without test examples.
    """

    def __init__(self, tasks: Sequence[Task], style: str = "") -> None:
        self.tasks = list(tasks)
        if untested := [task for task in tasks if not task.splits["test"]]:
            raise TaskFileError(
                [
                    (
                        f'{task.source}: expected test examples for task "{task.name}", found none: without them '
                        "nothing can be compared. Give a test file, or at least five examples, of which a fifth is "
                        "drawn for the test, and do not set test: 0"
                    )
                    for task in untested
                ]
            )
        parts = {name: entry["splits"] for name, entry in task_manifest(tasks).items()}
        digest = hashlib.sha256(json.dumps([parts, style], sort_keys=True).encode()).hexdigest()
        self.group = f"tasks-{digest[:8]}"
        self._divided: dict[int, Folds] = {}
        self._made: dict[tuple[str, int, int, str, int], list[Task]] = {}

    @property
    def has_validation(self) -> bool:
        """Whether every task has a validation split that is large enough to choose on."""
        return all(len(task.splits["val"]) >= ENOUGH_VALIDATION for task in self.tasks)

    def most_folds(self, most: int) -> int:
        """The largest number of folds up to `most` that all have some of every task's examples; 1 if there is none."""
        divisible = (number for number in range(most, 1, -1) if all(map(all, self._folds(number).sizes)))
        return next(divisible, 1)

    @property
    def pool_sizes(self) -> list[int]:
        """Examples of each task to train on in the end."""
        return [len(_pool(task)) for task in self.tasks]

    def parts(self, folds: int) -> list[str]:
        """The groups of trials that settings are chosen by: none for fewer than one fold."""
        if folds < 1:
            return []
        if self.has_validation:
            return [f"{self.group}-val"]
        # One fold alone is the first of two: half of the pool to train on, half to choose by.
        of = max(folds, 2)
        # A column may divide the same examples in another way, and trials of another division are not these.
        digest = hashlib.sha256(json.dumps(self._folds(of).of).encode()).hexdigest()[:8]
        return [f"{self.group}-{digest}-fold{number}of{of}" for number in range(1, folds + 1)]

    def validation_examples(self, folds: int) -> int:
        """The most validation examples that a task has in one of these parts."""
        if self.has_validation:
            return max(len(task.splits["val"]) for task in self.tasks)
        return max(size for sizes in self._folds(max(folds, 2)).sizes for size in sizes)

    def of(self, trial: Trial) -> list[Task]:
        """The tasks of a trial, with at most `trial.examples` of each to train on, and `trial.test` to measure on."""
        key = (trial.group, trial.examples, trial.seed, trial.split, trial.test)
        if key not in self._made:
            parts = [_measured(task, trial.split, trial.test) for task in self._parts(trial.group)]
            self._made = {key: [_cut(task, trial.examples, trial.seed) for task in parts]}
        return self._made[key]

    def _parts(self, group: str) -> list[Task]:
        if group.endswith("-val"):
            return self.tasks
        pools = [_pool(task) for task in self.tasks]
        found = _PART.search(group)
        if found is None:
            return [
                replace(task, splits=task.splits | {"train": pool, "val": ()})
                for task, pool in zip(self.tasks, pools, strict=True)
            ]
        number, folds = int(found[1]), int(found[2])
        tasks = []
        for task, pool, fold_of in zip(self.tasks, pools, self._folds(folds).of, strict=True):
            placed = list(zip(pool, fold_of, strict=True))
            held = tuple(example for example, fold in placed if fold == number - 1)
            kept = tuple(example for example, fold in placed if fold != number - 1)
            tasks.append(replace(task, splits=task.splits | {"train": kept, "val": held}))
        return tasks

    def _folds(self, number: int) -> Folds:
        if number not in self._divided:
            self._divided[number] = divide(self.tasks, [_pool(task) for task in self.tasks], number)
        return self._divided[number]


def _pool(task: Task) -> tuple[Example, ...]:
    return (*task.splits["train"], *task.splits["val"])


def _cut(task: Task, examples: int, seed: int) -> Task:
    """The first so many training examples after a shuffle: fewer ones are always among more."""
    train = task.splits["train"]
    chosen = random.Random(f"{seed}:{task.name}").sample(train, len(train))[:examples]
    return replace(task, splits=task.splits | {"train": tuple(chosen)})


def _measured(task: Task, split: str, most: int) -> Task:
    """At most so many examples of the split that is measured, the same ones for every trial."""
    examples = task.splits[split]
    if len(examples) <= most:
        return task
    drawn = random.Random(f"{split}:{task.name}").sample(range(len(examples)), most)
    return replace(task, splits=task.splits | {split: tuple(examples[index] for index in sorted(drawn))})
