"""Regret: what the reference loses, or gains, against the best of all rivals, group by group.

The reference is CoLoRA with its one recipe, unless another method is named. Its rivals are all methods at the same
place but its own variants. Differences have the sign that reads well: above zero the reference is ahead, in points as
in nats. Intervals are those of the paired bootstrap of `statistics` that draws seeds, tasks and examples.

The best rival of a group is found by looking at the result. The highest of many means that each have noise is, on
average, higher than what it would reach again, so this measure favours the rivals; `Regret.favour` says by how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.measures import measures
from colora.experiments.report.statistics import (
    Difference,
    Floats,
    common_seeds,
    difference,
    drawn_means,
    paired_difference,
)

__all__ = [
    "Comparison",
    "Level",
    "Regret",
    "chooses_settings",
    "headline",
    "is_variant",
    "main_measure",
    "mean_regret",
    "regret",
    "signed_mean",
]

SHORT_ANSWER = 3  # tokens, the end token included: answers of a word or so, where ROUGE-L is all or nothing as well


@dataclass(frozen=True)
class Level:
    """A method in a column of the table: its mean, and whether it is the best or not to be told from the best."""

    row: Row
    mean: float
    is_best: bool
    is_level: bool


@dataclass(frozen=True)
class Regret:
    """The reference against the best rival of a place; all numbers above zero where the reference is ahead.

    Attributes:
        rival: the best one.
        difference: the reference's lead, paired, over the seeds that both have.
        drawn: the lead in every draw of the bootstrap, (draws,).
        favour: how much higher the maximum over rivals is, in a mean draw, than the chosen one's mean: at least 0.
        rivals: of how many the best was taken.
    """

    rival: Row
    difference: Difference
    drawn: Floats
    favour: float
    rivals: int


@dataclass(frozen=True)
class Comparison:
    """A place where the reference and at least one rival were measured on the same tasks with the same seed.

    Attributes:
        measure: the place's main measure: accuracy, exact match of answers of a word, else what ranks first.
        nats: its measure of likelihood, if it has one beside the main one.
    """

    experiment: str
    place: Place
    reference: Row
    rows: tuple[Row, ...]
    measure: Metric
    nats: Metric | None

    @property
    def title(self) -> str:
        """The group, with what else tells the place from others of an experiment."""
        return " · ".join([self.place.group, *self.place.rest])

    @property
    def in_points(self) -> bool:
        """Whether the main measure is a score out of a hundred, not a loss."""
        return self.measure.higher_is_better

    def entrants(self, metric: Metric) -> list[Row]:
        """One row a method that has the metric: the reference, and of others the best of their settings here."""
        best: dict[str, Row] = {self.reference.method: self.reference}
        for row in self.rows:
            mean = signed_mean(row, metric)
            if mean is not None and row.method != self.reference.method:
                known = signed_mean(best[row.method], metric) if row.method in best else None
                best[row.method] = row if known is None or mean > known else best[row.method]
        return list(best.values())

    def rivals(self, metric: Metric) -> list[Row]:
        """The entrants that can be compared with the reference: no variants of it, a seed in common."""
        return [
            row
            for row in self.entrants(metric)
            if not is_variant(row.method, self.reference.method)
            and common_seeds(self.reference.sample, row.sample, metric.name)
        ]

    def levels(self, metric: Metric) -> list[Level]:
        """All entrants, the best marked, and those that differ from it by no more than chance may explain."""
        means = [(row, mean) for row in self.entrants(metric) if (mean := signed_mean(row, metric)) is not None]
        if not means:
            return []
        highest = max(mean for _, mean in means)
        best = next(row for row, mean in means if mean == highest)
        sign = _sign(metric)
        found = []
        for row, mean in means:
            apart = paired_difference(row.sample, best.sample, metric.name, over_tasks=True)
            is_level = mean < highest and apart is not None and not apart.is_significant
            found.append(Level(row, sign * mean, mean == highest, is_level))
        return found


def is_variant(name: str, reference: str) -> bool:
    """Whether a method is the reference or a variant of it: its name holds the reference's, word by word.

    Examples:
        >>> [is_variant(name, "colora") for name in ("colora", "colora-mean", "fed-colora", "mtl-lora")]
        [True, True, True, False]
    """
    return f"-{reference}-" in f"-{name}-"


def chooses_settings(experiment: Experiment) -> bool:
    """Whether an experiment was measured on validation examples alone: it chooses settings, and answers nothing."""
    return bool(experiment.records) and all(record.trial.split == "val" for record in experiment.records)


def headline(
    experiments: Sequence[Experiment], main: Sequence[str] = (), reference: str | None = None
) -> list[Comparison]:
    """The comparisons that answer the question, one for each group and regime, in the order of the experiments.

    Args:
        experiments: all there are.
        main: names of those that count; by default the one with the most comparisons, then the most methods, of those
            measured on test examples (of all, if none was).
        reference: name of the method compared; by default "colora", or "fed-colora" where that is missing.

    Returns:
        at each group and regime the comparison with the most examples a task, then the most tasks, then the most rows.
        Only those with the most frequent reference: a mean over several methods would be of none.
    """
    pool = [one for one in experiments if one.name in main] if main else list(experiments)
    if not main and not all(map(chooses_settings, pool)):
        pool = [one for one in pool if not chooses_settings(one)]
    found = [_comparisons(one, reference) for one in pool]
    if not main and found:
        found = [max(found, key=lambda of: (len(of), len({row.method for one in of for row in one.rows})))]
    kept: dict[tuple[str, str, tuple[str, ...]], Comparison] = {}
    for one in (one for of in found for one in of):
        key = (one.place.group, one.place.regime, one.place.rest)
        if key not in kept or _size(one) > _size(kept[key]):
            kept[key] = one
    names = [one.reference.method for one in kept.values()]
    return [one for one in kept.values() if one.reference.method == max(names, key=names.count)]


def regret(comparison: Comparison, metric: Metric) -> Regret | None:
    """The reference's lead over the best rival by one metric; None if there is no rival that has it."""
    rivals = comparison.rivals(metric)
    reference = comparison.reference.sample
    if not rivals or not reference.seed_means(metric.name):
        return None
    best = max(rivals, key=lambda row: signed_mean(row, metric) or 0.0)
    seeds = common_seeds(reference, best.sample, metric.name)
    sign = _sign(metric)
    drawn = {
        row.label: sign * drawn_means(row.sample, metric.name, seeds, over_tasks=True)
        for row in rivals
        if set(seeds) <= set(common_seeds(reference, row.sample, metric.name))
    }
    lead = sign * drawn_means(reference, metric.name, seeds, over_tasks=True) - drawn[best.label]
    ours, theirs = reference.seed_means(metric.name), best.sample.seed_means(metric.name)
    mean = sign * fmean(ours[seed] - theirs[seed] for seed in seeds)
    favour = float(np.mean(np.max(list(drawn.values()), axis=0) - drawn[best.label]))
    return Regret(best, difference(mean, lead, len(seeds)), lead, favour, len(rivals))


def mean_regret(regrets: Sequence[Regret]) -> Difference:
    """The mean over groups, all counting alike; its interval holds for these groups, over seeds, tasks and examples."""
    drawn = np.mean([one.drawn for one in regrets], axis=0)
    return difference(
        fmean(one.difference.mean for one in regrets), drawn, min(one.difference.seeds for one in regrets)
    )


def signed_mean(row: Row, metric: Metric) -> float | None:
    """The mean, negative where lower is better."""
    mean = row.sample.mean(metric.name)
    return None if mean is None else _sign(metric) * mean


def _comparisons(experiment: Experiment, reference: str | None) -> list[Comparison]:
    found = []
    for place, rows in experiment.places.items():
        chosen = reference_row(rows, reference)
        if chosen is None:
            continue
        rivals = [row for row in rows if not is_variant(row.method, chosen.method)]
        common = [
            metric
            for metric in measures()
            if any(common_seeds(chosen.sample, row.sample, metric.name) for row in rivals)
        ]
        if common:
            measure = main_measure(common, chosen)
            losses = [metric for metric in common if not metric.higher_is_better and metric is not measure]
            nats = losses[-1] if losses else None  # the table's later ones say more of a task than those before
            found.append(Comparison(experiment.name, place, chosen, tuple(rows), measure, nats))
    return found


def main_measure(metrics: Sequence[Metric], reference: Row) -> Metric:
    """What the experiment says it is judged by; else accuracy where it was measured, exact match where answers are a
    word or so, and the first score that ranks elsewhere.
    """
    if named := [metric for metric in metrics if metric.name == reference.judged_by]:
        return named[0]
    tokens = [count for record in reference.records for one in record.scores.values() for count in one.tokens]
    short = {"exact_match"} if tokens and median(tokens) <= SHORT_ANSWER else set()

    def order(metric: Metric) -> tuple[bool, ...]:
        plain = metric.name == "accuracy"
        return (not plain, metric.name not in short, not metric.higher_is_better, not metric.ranks)

    return min(metrics, key=order)


def _size(comparison: Comparison) -> tuple[int, int, int]:
    return (comparison.place.examples, comparison.place.tasks, len(comparison.rows))


def _sign(metric: Metric) -> float:
    return 1.0 if metric.higher_is_better else -1.0
