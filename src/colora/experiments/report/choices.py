"""What was tried to choose settings: a line for each method, with the measure of each try."""

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment, Row, setting
from colora.experiments.report.measures import measures
from colora.experiments.report.regret import signed_mean
from colora.experiments.report.tables import NOTHING, Table, code_notes, table

__all__ = ["choices_table"]

CHOSEN = "←"


def choices_table(experiment: Experiment) -> Table:
    """For each place and method the settings tried, each with its mean, and an arrow at the best."""
    several = len(experiment.places) > 1
    lines = []
    for place, rows in experiment.places.items():
        metric = _metric(rows)
        for method in dict.fromkeys(row.method for row in rows):
            tried = [row for row in rows if row.method == method]
            lines.append([method, *([place.title] if several else []), *_tries(tried, metric)])
    headers = ["method", *(["place"] if several else []), "tries", "measure", "settings and what they gave"]
    title = experiment.name if several else f"{experiment.name}: {next(iter(experiment.places)).title}"
    notes = [*code_notes(experiment), f"{CHOSEN} the best of the settings tried."]
    return table(title, headers, lines, notes)


def _tries(rows: list[Row], metric: Metric | None) -> list[str]:
    if metric is None:
        return [str(len(rows)), NOTHING, NOTHING]
    means = {row.label: mean for row in rows if (mean := signed_mean(row, metric)) is not None}
    best = max(means, key=lambda label: means[label], default=None)
    told = []
    for row in rows:
        names = ", ".join(f"{name} {setting(row.records[0].trial, name)}" for name in row.settings) or "as set"
        value = f"{abs(means[row.label]):.{metric.digits}f}" if row.label in means else NOTHING
        told.append(f"{names}: {value}" + (f" {CHOSEN}" if row.label == best and len(rows) > 1 else ""))
    return [str(len(rows)), metric.title, " · ".join(told)]


def _metric(rows: list[Row]) -> Metric | None:
    """Likelihood where it was measured: all tries were judged by it."""
    known = [one for one in measures() if any(row.sample.seed_means(one.name) for row in rows)]
    return next((one for one in known if not one.higher_is_better), known[0] if known else None)
