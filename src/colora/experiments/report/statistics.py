"""Means, their spread between seeds, and paired bootstrap intervals of differences.

The bootstrap is hierarchical. A draw takes as many seeds as there are, with replacement, and within each task as many
test examples as there are, with replacement; the drawn examples of a task are the same ones for every method and for
every seed, so that what is common to both sides of a difference cancels. The value of a draw is what a table
shows: the mean over seeds of the mean over tasks. An interval spans the draws' percentiles 2.5 and 97.5; p is twice
the share of draws on the rarer side of zero, counting the observation itself. Random numbers are fixed: the same
records give the same intervals. Few seeds resample poorly: with fewer than about five, intervals are
somewhat too narrow.

That interval holds for the tasks measured. Where the tasks stand for others like them, they are drawn too: as many as
there are, with replacement, the same ones for every method and seed (`over_tasks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from colora.evaluation.metrics import METRICS
from colora.experiments.report.measures import BY_EXAMPLE
from colora.experiments.trial import TaskScores, TrialRecord

__all__ = [
    "DRAWS",
    "Difference",
    "Floats",
    "Sample",
    "common_seeds",
    "difference",
    "drawn_means",
    "paired_difference",
    "seed_weights",
]

DRAWS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval and two-sided p-value, over so many seeds."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


class Sample:
    """The scores of one method at one setting: a seed or several, each with its tasks, each with its examples."""

    def __init__(self, records: Sequence[TrialRecord], draws: int = DRAWS) -> None:
        self.draws = draws
        self._scores: dict[int, dict[tuple[tuple[str, ...], str], TaskScores]] = {}
        for record in records:
            of_seed = self._scores.setdefault(record.trial.seed, {})
            of_seed |= {(record.trial.tasks, task): scores for task, scores in record.scores.items()}
        self._means: dict[str, dict[int, float]] = {}
        self._resampled: dict[tuple[str, bool], dict[int, Floats]] = {}

    def tasks(self, seed: int) -> set[tuple[tuple[str, ...], str]]:
        """What a seed was measured on: each task, with the tasks it was trained beside."""
        return set(self._scores.get(seed, {}))

    def seed_means(self, metric: str) -> dict[int, float]:
        """The mean over tasks for each seed at which every task has the metric."""
        if metric not in self._means:
            found = {}
            for seed, tasks in sorted(self._scores.items()):
                values = [scores.value(metric) for scores in tasks.values()]
                known = [value for value in values if value is not None]
                if known and len(known) == len(values):
                    found[seed] = fmean(known)
            self._means[metric] = found
        return self._means[metric]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds of the mean over tasks."""
        values = list(self.seed_means(metric).values())
        return fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation between seeds; None if there are fewer than two."""
        values = list(self.seed_means(metric).values())
        return stdev(values) if len(values) > 1 else None

    def resampled(self, metric: str, over_tasks: bool = False) -> dict[int, Floats]:
        """For each seed of `seed_means`, the mean over tasks in every draw, (draws,): of examples, or of tasks too."""
        if (metric, over_tasks) not in self._resampled:
            found = {}
            for seed in self.seed_means(metric):
                tasks = sorted(self._scores[seed].items(), key=lambda one: one[0])
                drawn = np.stack([_resampled_task(one, metric, task, self.draws) for (_, task), one in tasks])
                names = ",".join(task for (_, task), _ in tasks)
                found[seed] = (
                    np.einsum("dt,td->d", _task_weights(names, len(tasks), self.draws), drawn)
                    if over_tasks
                    else drawn.mean(0)
                )
            self._resampled[metric, over_tasks] = found
        return self._resampled[metric, over_tasks]


def paired_difference(left: Sample, right: Sample, metric: str, over_tasks: bool = False) -> Difference | None:
    """`left` minus `right` over the seeds at which both were measured on the same tasks; None if there is none."""
    seeds = common_seeds(left, right, metric)
    if not seeds:
        return None
    a, b = left.seed_means(metric), right.seed_means(metric)
    drawn = drawn_means(left, metric, seeds, over_tasks) - drawn_means(right, metric, seeds, over_tasks)
    return difference(fmean(a[seed] - b[seed] for seed in seeds), drawn, len(seeds))


def common_seeds(left: Sample, right: Sample, metric: str) -> list[int]:
    """The seeds at which both were measured on the same tasks."""
    theirs = right.seed_means(metric)
    return [seed for seed in left.seed_means(metric) if seed in theirs and left.tasks(seed) == right.tasks(seed)]


def drawn_means(sample: Sample, metric: str, seeds: Sequence[int], over_tasks: bool = False) -> Floats:
    """The mean over these seeds in every draw, (draws,)."""
    of_seeds = sample.resampled(metric, over_tasks)
    drawn: Floats = (seed_weights(len(seeds), sample.draws) * np.stack([of_seeds[seed] for seed in seeds], 1)).sum(1)
    return drawn


def difference(mean: float, drawn: Floats, seeds: int) -> Difference:
    """A mean difference with the interval and p-value that its draws give."""
    low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(mean, low, high, min(1.0, 2 * (rarer + 1) / (len(drawn) + 1)), seeds)


@lru_cache(maxsize=64)
def seed_weights(seeds: int, draws: int) -> Floats:
    """The share of each seed in every draw, (draws, seeds); rows sum to one."""
    generator = np.random.default_rng([20260207, seeds])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


@lru_cache(maxsize=64)
def _task_weights(names: str, tasks: int, draws: int) -> Floats:
    """The share of each task in every draw, (draws, tasks); rows sum to one. Other names give other draws."""
    generator = np.random.default_rng([3112026, crc32(names.encode())])
    return generator.multinomial(tasks, np.full(tasks, 1 / tasks), size=draws) / tasks


@lru_cache(maxsize=64)
def _example_counts(task: str, examples: int, draws: int) -> Floats:
    """How often each example of a task is in every draw, (draws, examples)."""
    generator = np.random.default_rng([7602218, crc32(task.encode()), examples])
    return generator.multinomial(examples, np.full(examples, 1 / examples), size=draws).astype(np.float64)


def _resampled_task(scores: TaskScores, metric: str, task: str, draws: int) -> Floats:
    if metric in BY_EXAMPLE:
        return _resampled_mean(scores.choices.examples(metric) if scores.choices else [], task, draws)
    if METRICS[metric].score is None:
        counts = _example_counts(task, len(scores.nll), draws)
        tokens = counts @ np.asarray(scores.tokens, dtype=np.float64)
        # A draw without a single token, of answers that are nearly all empty, counts as the whole task.
        whole = sum(scores.nll) / sum(scores.tokens)
        return np.where(tokens > 0, counts @ np.asarray(scores.nll) / np.maximum(tokens, 1), whole)
    return _resampled_mean(scores.texts[metric], task, draws)


def _resampled_mean(of_examples: Sequence[float], task: str, draws: int) -> Floats:
    values = np.asarray(of_examples, dtype=np.float64)
    means: Floats = _example_counts(task, len(values), draws) @ values / len(values)
    return means
