"""Where collaboration does not help: every place at which colora is behind a method without it."""

from collections.abc import Sequence

from colora.evaluation.metrics import METRICS, Metric
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.methods import is_rival
from colora.experiments.report.statistics import paired_difference
from colora.experiments.report.tables import Table, code_notes, difference_text, mean_text, table

__all__ = ["setbacks"]

HEADERS = (
    "experiment",
    "group",
    "regime",
    "examples a task",
    "tasks",
    "metric",
    "reference",
    "its mean",
    "better method",
    "its mean ",
    "difference",
)


def setbacks(experiments: Sequence[Experiment]) -> tuple[Table, int]:
    """The places where the reference's mean is below the better of the `local*` and `pooled*` methods'.

    Judged by the first of the ranking metrics that both sides have: by ROUGE-L; by token NLL where no answers were
    generated.

    Returns:
        the table, and the number of places at which both sides were measured.
    """
    lines, compared = [], 0
    for experiment in experiments:
        for place, rows in experiment.places.items():
            reference = reference_row(rows)
            rivals = [row for row in rows if is_rival(row.method)]
            metric = None if reference is None else _common_metric(reference, rivals)
            if reference is None or metric is None:
                continue
            compared += 1
            best = _best(rivals, metric)
            if _signed_mean(reference, metric) < _signed_mean(best, metric):
                lines.append(_line(experiment, place, reference, best, metric))
    notes = list(dict.fromkeys(note for experiment in experiments for note in code_notes(experiment)))
    return table("Where collaboration does not help", HEADERS, lines, notes), compared


def _common_metric(reference: Row, rivals: Sequence[Row]) -> Metric | None:
    """The first ranking metric that the reference and one of the rivals have; None if there is none."""
    for metric in METRICS.values():
        measured = any(row.sample.seed_means(metric.name) for row in rivals)
        if metric.ranks and measured and reference.sample.seed_means(metric.name):
            return metric
    return None


def _best(rivals: Sequence[Row], metric: Metric) -> Row:
    """The best of those rivals that have the metric."""
    return max(rivals, key=lambda row: _signed_mean(row, metric))


def _signed_mean(row: Row, metric: Metric) -> float:
    """The mean, negative where lower is better; without one, below all."""
    mean = row.sample.mean(metric.name)
    return float("-inf") if mean is None else mean if metric.higher_is_better else -mean


def _line(experiment: Experiment, place: Place, reference: Row, best: Row, metric: Metric) -> list[str]:
    difference = paired_difference(reference.sample, best.sample, metric.name)
    return [
        experiment.name,
        " · ".join([place.group, *place.rest]),
        place.regime,
        str(place.examples),
        str(place.tasks),
        metric.title,
        reference.label,
        _mean_text(reference, metric),
        best.label,
        _mean_text(best, metric),
        difference_text(difference, metric),
    ]


def _mean_text(row: Row, metric: Metric) -> str:
    return mean_text(row.sample.mean(metric.name), row.sample.spread(metric.name), metric.digits)
