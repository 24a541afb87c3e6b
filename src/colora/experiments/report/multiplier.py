"""How many times the examples one method needs to equal another: the multiplier.

A method's curve gives its quality at each number of examples that was tried. Between these it is taken to be
linear in the logarithm of the number, and more examples never to harm (the curve is replaced by its running best).
Outside what was tried nothing is guessed: the answer is then a bound.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from colora.evaluation.metrics import Metric
from colora.experiments.report.statistics import Sample, drawn_means

__all__ = ["Multiplier", "Needed", "examples_needed", "multiplier"]

Bound = Literal["", "≤", "≥"]


@dataclass(frozen=True)
class Needed:
    """A number of examples; with a bound if the target lies below or above all that was tried."""

    examples: float
    bound: Bound = ""


@dataclass(frozen=True)
class Multiplier:
    """A ratio of examples at `examples`, with the ends of its 95 % interval; each may be a bound only."""

    examples: int
    ratio: Needed
    low: Needed
    high: Needed
    seeds: int


def examples_needed(curve: Mapping[int, float], target: float, higher_is_better: bool = True) -> Needed:
    """The fewest examples at which a curve reaches a target.

    Args:
        curve: quality at each number of examples (at least one, all positive).
        target: the quality to be reached.
        higher_is_better: False for a loss.

    Returns:
        the number; "≤" the least tried if that one is better than the target already; "≥" the most tried if the
        target was never reached.

    Examples:
        >>> examples_needed({8: 10.0, 32: 30.0}, 20.0)
        Needed(examples=16.0, bound='')
        >>> examples_needed({8: 10.0, 32: 30.0}, 31.0)
        Needed(examples=32, bound='≥')
    """
    sign = 1.0 if higher_is_better else -1.0
    goal = sign * target
    sizes = sorted(curve)
    before = sign * curve[sizes[0]]
    if goal <= before:
        return Needed(sizes[0], "≤" if goal < before else "")
    for smaller, size in pairwise(sizes):
        value = max(before, sign * curve[size])
        if value >= goal:
            part = (goal - before) / (value - before)
            return Needed(2 ** (math.log2(smaller) + part * (math.log2(size) - math.log2(smaller))))
        before = value
    return Needed(sizes[-1], "≥")


def multiplier(
    rival: Mapping[int, Sample], method: Mapping[int, Sample], examples: int, metric: Metric
) -> Multiplier | None:
    """How many times `examples` the rival needs to equal the method at `examples`, with a 95 % bootstrap interval.

    Every draw of seeds and of test examples (see `statistics`) gives both curves anew, and from them a ratio; the
    interval spans the ratios' percentiles 2.5 and 97.5, a bound counting as beyond all numbers.

    Args:
        rival, method: the sample at each number of examples.
        examples: where the method's quality is taken.
        metric: of quality.

    Returns:
        None if the rival was measured at fewer than two numbers of examples, or no seed has all that is needed.
    """
    target = method[examples]
    known = {size: sample for size, sample in rival.items() if sample.seed_means(metric.name)}
    seeds = [
        seed
        for seed in target.seed_means(metric.name)
        if all(seed in one.seed_means(metric.name) and one.tasks(seed) == target.tasks(seed) for one in known.values())
    ]
    if len(known) < 2 or not seeds:
        return None

    def ratio(curve: Mapping[int, float], goal: float) -> Needed:
        needed = examples_needed(curve, goal, metric.higher_is_better)
        return Needed(needed.examples / examples, needed.bound)

    means = {size: _mean(sample, metric.name, seeds) for size, sample in known.items()}
    centre = ratio(means, _mean(target, metric.name, seeds))
    curves = {size: drawn_means(sample, metric.name, seeds) for size, sample in known.items()}
    goals = drawn_means(target, metric.name, seeds)
    drawn = [
        ratio({size: float(values[i]) for size, values in curves.items()}, float(goal)) for i, goal in enumerate(goals)
    ]
    drawn.sort(key=lambda one: ({"≤": -1, "": 0, "≥": 1}[one.bound], one.examples))
    low, high = drawn[math.floor(0.025 * (len(drawn) - 1))], drawn[math.ceil(0.975 * (len(drawn) - 1))]
    return Multiplier(examples, centre, low, high, len(seeds))


def _mean(sample: Sample, metric: str, seeds: list[int]) -> float:
    means = sample.seed_means(metric)
    return sum(means[seed] for seed in seeds) / len(seeds)
