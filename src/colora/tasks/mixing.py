"""Which examples make up each batch, when many tasks of very different size share a model."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from colora.errors import ConfigError

__all__ = ["Policy", "TaskMixture"]

Policy = Literal["uniform", "proportional", "temperature"]


class TaskMixture(Sampler[int]):
    """Indices into an `EncodedTasks`, `steps * batch_size` of them, that mix its tasks in every batch.

    A task with n examples has the weight n ** (1 / temperature): "proportional" is temperature 1, "uniform" its
    limit at infinity, a task without examples never comes. Batches are drawn by systematic sampling: the tasks
    are laid out on a circle in random order, each as long as its weight, and read off at equal distances from
    one random start. A task of weight share w has floor or ceil of w * batch_size rows in every batch, and
    w * batch_size on average. Within a task, examples come in shuffled passes, each once a pass.

    The order is a function of the arguments alone, and every `iter` starts it anew: a resumed run that skips
    what it has seen goes on where it stopped.

    Args:
        sizes: number of examples of each task, in the order in which the dataset holds them.
        batch_size: rows per optimiser step, over all devices and accumulation steps.
        steps: optimiser steps.
        policy: "uniform", "proportional" or "temperature".
        temperature: above 0; used by the policy "temperature" only.
        seed: of everything drawn, 0 or more.

    Raises:
        ConfigError: listing every argument out of range.

    Example:
        >>> sampler = TaskMixture([2, 100], batch_size=4, steps=10)
        >>> sum(index < 2 for index in sampler)  # two rows of the small task in each batch
        20
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        steps: int,
        policy: Policy = "uniform",
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        faults = [] if policy in get_args(Policy) else [f"policy: expected one of {get_args(Policy)}, found {policy!r}"]
        if batch_size < 1:
            faults.append(f"batch_size: expected at least 1, found {batch_size}")
        if steps < 0:
            faults.append(f"steps: expected at least 0, found {steps}")
        if not temperature > 0:
            faults.append(f"temperature: expected more than 0, found {temperature}")
        if seed < 0:
            faults.append(f"seed: expected at least 0, found {seed}")
        if not any(sizes) or min(sizes) < 0:
            faults.append("sizes: expected counts of examples, at least one above 0, found none")
        if faults:
            raise ConfigError("the tasks cannot be mixed:", faults)
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._offsets = np.cumsum(self._sizes) - self._sizes
        self._tasks = np.flatnonzero(self._sizes)
        # Through logarithms: a low temperature raises sizes to a power that overflows.
        exponent = {"uniform": 0.0, "proportional": 1.0, "temperature": 1.0 / temperature}[policy]
        logs = exponent * np.log(self._sizes[self._tasks])
        self._weights = np.exp(logs - logs.max())

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(self.seed)
        orders: dict[int, np.ndarray] = {}
        seen: dict[int, int] = {}
        for _ in range(self.steps):
            for task in self._batch(rng).tolist():
                size = int(self._sizes[task])
                pass_number, position = divmod(seen.get(task, 0), size)
                seen[task] = seen.get(task, 0) + 1
                if position == 0:
                    # A generator for each pass: a task's order does not depend on the tasks around it.
                    orders[task] = np.random.default_rng((self.seed, task, pass_number)).permutation(size)
                yield int(self._offsets[task] + orders[task][position])

    def _batch(self, rng: np.random.Generator) -> np.ndarray:
        """The tasks of one batch, (batch_size,), in random order."""
        layout = rng.permutation(len(self._tasks))
        ends = np.cumsum(self._weights[layout])
        points = (rng.random() + np.arange(self.batch_size)) * (ends[-1] / self.batch_size)
        # The last point may round up to the very end, which belongs to no task.
        chosen = np.searchsorted(ends, points, side="right").clip(max=len(layout) - 1)
        return rng.permutation(self._tasks[layout[chosen]])
