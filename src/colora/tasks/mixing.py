"""Which examples make up each batch, when many tasks of very different size share a model."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from torch.utils.data import Sampler

from colora.errors import ConfigError

__all__ = ["Policy", "TaskMixture"]

Policy = Literal["uniform", "proportional", "temperature"]

MOST_LAID_OUT = 4096
"""Tasks; beyond so many a batch is drawn from sizes first, at a cost that does not go by the tasks."""
ORDERS_KEPT = 4096
"""Tasks whose order of examples is kept; those of others are drawn anew, and are the same."""


class TaskMixture(Sampler[int]):
    """Indices into an `EncodedTasks`, `steps * batch_size` of them, that mix its tasks in every batch.

    A task with n examples has the weight n ** (1 / temperature): "proportional" is temperature 1, "uniform" its
    limit at infinity, a task without examples never comes. Batches are drawn by systematic sampling: the tasks
    are laid out on a circle in random order, each as long as its weight, and read off at equal distances from
    one random start. A task of weight share w has floor or ceil of w * batch_size rows in every batch, and
    w * batch_size on average. Within a task, examples come in shuffled passes, each once a pass.

    Of more than `MOST_LAID_OUT` tasks those with equally many examples, which have the same weight, lie on the circle
    as one piece, and which of them a point is for is drawn without replacement. What was said of w holds, and a batch
    costs its rows and the numbers of examples that differ, of which n examples in all have at most sqrt(2 n).

    The order is a function of the arguments alone, and every `iter` starts it anew: a resumed run that skips
    what it has seen goes on where it stopped.

    Args:
        sizes: number of examples of each task, in the order in which the dataset holds them; a list or an array.
        batch_size: rows per optimiser step, over all devices and accumulation steps.
        steps: optimiser steps.
        policy: "uniform", "proportional" or "temperature".
        temperature: above 0; used by the policy "temperature" only.
        seed: of everything drawn, 0 or more.

    Raises:
        ConfigError: listing every argument out of range.

    Examples:
        >>> sampler = TaskMixture([2, 100], batch_size=4, steps=10)
        >>> sum(index < 2 for index in sampler)  # two rows of the small task in each batch
        20
    """

    def __init__(
        self,
        sizes: Sequence[int] | Int[np.ndarray, " K"],
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
        counts = np.asarray(sizes, dtype=np.int64)
        if not counts.any() or counts.min() < 0:
            faults.append("sizes: expected counts of examples, at least one above 0, found none")
        if faults:
            raise ConfigError("the tasks cannot be mixed:", faults)
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self._sizes = counts
        self._offsets = np.cumsum(counts) - counts
        tasks = np.flatnonzero(counts)
        # Through logarithms: a low temperature raises sizes to a power that overflows.
        exponent = {"uniform": 0.0, "proportional": 1.0, "temperature": 1.0 / temperature}[policy]
        logs = exponent * np.log(counts[tasks])
        weights = np.exp(logs - logs.max())
        kind = _LaidOut if len(tasks) <= MOST_LAID_OUT else _BySize
        self._drawn = kind(tasks, weights, counts[tasks], batch_size)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        seed, sizes = self.seed, self._sizes
        seen = np.zeros(len(sizes), dtype=np.int64)

        @lru_cache(ORDERS_KEPT)
        def order(task: int, pass_number: int) -> np.ndarray:
            # A generator for each pass: a task's order does not depend on the tasks around it.
            return np.random.default_rng((seed, task, pass_number)).permutation(int(sizes[task]))

        for batch in self.tasks():
            for task in batch.tolist():
                pass_number, position = divmod(int(seen[task]), int(sizes[task]))
                seen[task] += 1
                yield int(self._offsets[task] + order(task, pass_number)[position])

    def tasks(self) -> Iterator[Int[np.ndarray, " rows"]]:
        """The tasks of each batch, (batch_size,), without their examples."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            yield self._drawn.batch(rng)


class _LaidOut:
    """Systematic sampling of tasks in random order.

    Args:
        tasks: those that have examples, (n,).
        weights: of each, (n,).
        sizes: numbers of their examples, (n,).
        rows: of a batch.
    """

    def __init__(
        self,
        tasks: Int[np.ndarray, " n"],
        weights: Float[np.ndarray, " n"],
        sizes: Int[np.ndarray, " n"],
        rows: int,
    ) -> None:
        self._tasks, self._weights, self._rows = tasks, weights, rows

    def batch(self, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        """The tasks of one batch, (rows,), in random order."""
        return rng.permutation(self._tasks[_points(self._weights, self._rows, rng)])


class _BySize:
    """The same of very many tasks: first how many rows each number of examples gets, then which tasks that have it.

    c tasks of share w each get floor or ceil of c w rows together, on average c w; spread over c tasks without
    replacement, that is floor or ceil of w for each, on average w. Arguments as of `_LaidOut`.
    """

    def __init__(
        self,
        tasks: Int[np.ndarray, " n"],
        weights: Float[np.ndarray, " n"],
        sizes: Int[np.ndarray, " n"],
        rows: int,
    ) -> None:
        order = np.argsort(sizes, kind="stable")
        self._tasks, self._rows = tasks[order], rows
        _, self._begins, self._counts = np.unique(sizes[order], return_index=True, return_counts=True)
        self._weights = weights[order][self._begins] * self._counts

    def batch(self, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        """The tasks of one batch, (rows,), in random order."""
        found = []
        sizes, rows = np.unique(_points(self._weights, self._rows, rng), return_counts=True)
        for size, number in zip(sizes.tolist(), rows.tolist(), strict=True):
            begin, count = int(self._begins[size]), int(self._counts[size])
            for_all, for_some = divmod(number, count)
            if for_all:
                found.append(np.repeat(self._tasks[begin : begin + count], for_all))
            found.append(self._tasks[begin + rng.choice(count, for_some, replace=False)])
        return rng.permutation(np.concatenate(found))


def _points(weights: Float[np.ndarray, " n"], points: int, rng: np.random.Generator) -> Int[np.ndarray, " {points}"]:
    """Which pieces of a circle, laid out in random order, are met at equal distances from a random start."""
    layout = rng.permutation(len(weights))
    ends = np.cumsum(weights[layout])
    # The last point may round up to the very end, which belongs to no piece.
    at = (rng.random() + np.arange(points)) * (ends[-1] / points)
    return layout[np.searchsorted(ends, at, side="right").clip(max=len(layout) - 1)]
