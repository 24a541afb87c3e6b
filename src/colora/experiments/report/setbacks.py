"""Where collaboration does not help: every place at which colora is behind a method without it."""

from collections.abc import Sequence

from colora.experiments.report.gather import Experiment, reference_row
from colora.experiments.report.methods import is_rival
from colora.experiments.report.statistics import METRICS, paired_difference
from colora.experiments.report.tables import Table, code_notes, difference_text, mean_text, table

__all__ = ["setbacks"]

HEADERS = (
    "experiment", "group", "regime", "examples a task", "tasks", "metric", "reference", "its mean", "better method",
    "its mean ", "difference",
)  # fmt: skip


def setbacks(experiments: Sequence[Experiment]) -> tuple[Table, int]:
    """The places where the reference's mean is below the better of the `local*` and `pooled*` methods'.

    Judged by ROUGE-L; by token NLL where no answers were generated.

    Returns:
        the table, and the number of places at which both sides were measured.
    """
    lines, compared = [], 0
    for experiment in experiments:
        for place, rows in experiment.places.items():
            reference = reference_row(rows)
            rivals = [row for row in rows if is_rival(row.method)]
            if reference is None or not rivals:
                continue
            metric = next(
                (
                    one for one in (METRICS[0], METRICS[2])
                    if reference.sample.seed_means(one.name) and any(row.sample.seed_means(one.name) for row in rivals)
                ),
                None,
            )  # fmt: skip
            if metric is None:
                continue
            compared += 1
            sign = 1 if metric.higher_is_better else -1
            own = reference.sample.mean(metric.name) or 0.0
            means = [(sign * mean, row) for row in rivals if (mean := row.sample.mean(metric.name)) is not None]
            best, rival = max(means, key=lambda one: one[0])
            if sign * own >= best:
                continue
            difference = paired_difference(reference.sample, rival.sample, metric.name)
            lines.append(
                [
                    experiment.name, " · ".join([place.group, *place.rest]), place.regime, str(place.examples),
                    str(place.tasks), metric.title, reference.label,
                    mean_text(own, reference.sample.spread(metric.name), metric.digits), rival.label,
                    mean_text(sign * best, rival.sample.spread(metric.name), metric.digits),
                    difference_text(difference, metric),
                ]
            )  # fmt: skip
    notes = list(dict.fromkeys(note for experiment in experiments for note in code_notes(experiment)))
    return table("Where collaboration does not help", HEADERS, lines, notes), compared
