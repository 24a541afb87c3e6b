"""Means, their spread between seeds, and paired bootstrap intervals of differences.

The bootstrap is hierarchical. A draw takes as many seeds as there are, with replacement, and within each task as many
test examples as there are, with replacement; the drawn examples of a task are the same ones for every method and for
every seed, so that what is common to both sides of a difference cancels. The value of a draw is what a table
shows: the mean over seeds of the mean over tasks. An interval spans the draws' percentiles 2.5 and 97.5; p is twice
the share of draws on the rarer side of zero, counting the observation itself. Random numbers are fixed: the same
records give the same intervals. Few seeds resample poorly: with fewer than about five, intervals are
somewhat too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from colora.evaluation.metrics import METRICS
from colora.experiments.trial import TaskScores, TrialRecord

__all__ = ["DRAWS", "Difference", "Sample", "paired_difference", "seed_weights"]

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
        self._resampled: dict[str, dict[int, Floats]] = {}

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

    def resampled(self, metric: str) -> dict[int, Floats]:
        """For each seed of `seed_means`, the mean over tasks in every draw of examples, (draws,)."""
        if metric not in self._resampled:
            self._resampled[metric] = {
                seed: np.mean(
                    [_resampled_task(one, metric, task, self.draws) for (_, task), one in tasks.items()], axis=0
                )
                for seed, tasks in self._scores.items()
                if seed in self.seed_means(metric)
            }
        return self._resampled[metric]


def paired_difference(left: Sample, right: Sample, metric: str) -> Difference | None:
    """`left` minus `right` over the seeds at which both were measured on the same tasks; None if there is none."""
    a, b = left.seed_means(metric), right.seed_means(metric)
    seeds = [seed for seed in a if seed in b and left.tasks(seed) == right.tasks(seed)]
    if not seeds:
        return None
    apart = np.stack([left.resampled(metric)[seed] - right.resampled(metric)[seed] for seed in seeds])
    drawn = (seed_weights(len(seeds), left.draws) * apart.T).sum(1)
    low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (left.draws + 1))
    return Difference(fmean(a[seed] - b[seed] for seed in seeds), low, high, p, len(seeds))


@lru_cache(maxsize=64)
def seed_weights(seeds: int, draws: int) -> Floats:
    """The share of each seed in every draw, (draws, seeds); rows sum to one."""
    generator = np.random.default_rng([20260207, seeds])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


@lru_cache(maxsize=64)
def _example_counts(task: str, examples: int, draws: int) -> Floats:
    """How often each example of a task is in every draw, (draws, examples)."""
    generator = np.random.default_rng([7602218, crc32(task.encode()), examples])
    return generator.multinomial(examples, np.full(examples, 1 / examples), size=draws).astype(np.float64)


def _resampled_task(scores: TaskScores, metric: str, task: str, draws: int) -> Floats:
    if METRICS[metric].score is None:
        counts = _example_counts(task, len(scores.nll), draws)
        tokens = counts @ np.asarray(scores.tokens, dtype=np.float64)
        # A draw without a single token, of answers that are nearly all empty, counts as the whole task.
        whole = sum(scores.nll) / sum(scores.tokens)
        return np.where(tokens > 0, counts @ np.asarray(scores.nll) / np.maximum(tokens, 1), whole)
    values = np.asarray(scores.texts[metric], dtype=np.float64)
    means: Floats = _example_counts(task, len(values), draws) @ values / len(values)
    return means
