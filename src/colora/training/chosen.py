"""Some of the tasks of a run, where not all are to be measured."""

from collections.abc import Sequence

import numpy as np

from colora.common.text import listed
from colora.errors import TaskIdError
from colora.tasks.schema import Task

__all__ = ["chosen_tasks"]


def chosen_tasks(
    tasks: Sequence[Task], only: Sequence[str] | None = None, sample: int | None = None, seed: int = 0
) -> list[Task]:
    """Tasks by name, or drawn, in their order; by default all.

    Args:
        tasks: of the run.
        only: names.
        sample: how many at most, drawn by `seed`; of those named, if there are names.

    Raises:
        TaskIdError: a name that is no task's.
    """
    chosen = tasks
    if only is not None:
        names = {task.name for task in tasks}
        if unknown := [name for name in only if name not in names]:
            known = listed([task.name for task in tasks], 10)
            raise TaskIdError(f"the run has no task {listed(map(repr, unknown), 10)}; it has {known}")
        chosen = [task for task in tasks if task.name in set(only)]
    if sample is not None and sample < len(chosen):
        places = np.random.default_rng(seed).choice(len(chosen), sample, replace=False)
        return [chosen[place] for place in sorted(places)]
    return list(chosen)
