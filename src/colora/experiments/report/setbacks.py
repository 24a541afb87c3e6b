"""Where collaboration does not help: every place at which colora is behind a method without it."""

from collections.abc import Sequence

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.measures import measures
from colora.experiments.report.methods import is_rival
from colora.experiments.report.regret import main_measure
from colora.experiments.report.statistics import paired_difference
from colora.experiments.report.tables import Table, code_notes, difference_text, mean_text, table

__all__ = ["setbacks"]

HEADERS = ("where", "measure", "reference", "better method", "difference", "experiment")


def setbacks(experiments: Sequence[Experiment]) -> tuple[Table, int]:
    """The places where the reference's mean is worse than that of the best method without collaboration.

    Judged by the main measure of the place; see `regret`.

    Returns:
        the table, in which what several experiments share is one line, and the number of places at which both sides
        were measured.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    compared = 0
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
                lines.setdefault(_line(place, reference, best, metric), []).append(experiment.name)
    notes = list(dict.fromkeys(note for experiment in experiments for note in code_notes(experiment)))
    rows_shown = [[*line, ", ".join(names)] for line, names in lines.items()]
    return table("Where collaboration does not help", HEADERS, rows_shown, notes), compared


def _common_metric(reference: Row, rivals: Sequence[Row]) -> Metric | None:
    """The main measure of those that the reference and one of the rivals have; None if there is none."""
    common = [
        metric
        for metric in measures()
        if reference.sample.seed_means(metric.name) and any(row.sample.seed_means(metric.name) for row in rivals)
    ]
    return main_measure(common, reference) if common else None


def _best(rivals: Sequence[Row], metric: Metric) -> Row:
    """The best of those rivals that have the metric."""
    return max(rivals, key=lambda row: _signed_mean(row, metric))


def _signed_mean(row: Row, metric: Metric) -> float:
    """The mean, negative where lower is better; without one, below all."""
    mean = row.sample.mean(metric.name)
    return float("-inf") if mean is None else mean if metric.higher_is_better else -mean


def _line(place: Place, reference: Row, best: Row, metric: Metric) -> tuple[str, ...]:
    difference = paired_difference(reference.sample, best.sample, metric.name)
    means = (
        f"{row.method} {mean_text(row.sample.mean(metric.name), None, metric.digits)}" for row in (reference, best)
    )
    return (place.title, metric.title, *means, difference_text(difference, metric))
