"""The main tables: quality, difference to colora, and cost of every method at one place."""

from collections.abc import Sequence
from statistics import fmean, median, stdev

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.measures import RANK_CORRELATION, measures
from colora.experiments.report.statistics import Difference, paired_difference
from colora.experiments.report.tables import (
    NOTHING,
    Entry,
    Table,
    bytes_text,
    code_notes,
    count_text,
    difference_text,
    mean_text,
    table,
)
from colora.experiments.trial import Trial

__all__ = ["EQUAL", "EXPLANATION", "bytes_entries", "main_table", "quality_entries", "settings_table"]

EQUAL = "≈"
EXPLANATION = (
    "Each quality is the mean over tasks, then the mean over seeds ± the sample standard deviation between seeds. The "
    f"best of a column is bold; {EQUAL} marks what differs from the best by no more than chance may explain (the 95 % "
    "interval of the difference holds zero). A difference is the row minus the reference, paired: over the seeds, "
    "tasks and test examples that both have. Its interval, in brackets, and its p-value come from 2000 bootstrap "
    "draws: each draws seeds with replacement, then test examples within each task with replacement, the same for all "
    "methods and seeds. p-values are not corrected for the number of comparisons. With fewer than about five seeds the "
    "intervals are somewhat too narrow; with one seed they hold for that seed only."
)


def main_table(experiment: Experiment, place: Place) -> Table:
    """All rows at one place: every metric that was measured, differences to the reference, and what they cost."""
    rows = experiment.places[place]
    reference = reference_row(rows)
    metrics = [metric for metric in measures() if any(row.sample.seed_means(metric.name) for row in rows)]
    federated = any(_total(row) is not None for row in rows)
    correlations = _correlations(rows)
    ranks = [RANK_CORRELATION.title] if any(one != NOTHING for one in correlations) else []
    headers = ["method", "seeds", *(metric.title for metric in metrics), *ranks]
    if reference is not None and len(rows) > 1:
        headers += [f"{metric.title} − {reference.method}" for metric in metrics]
    headers += ["trained parameters", "parameters per task"]
    headers += ["bytes up", "bytes down"] if federated else []
    headers += ["training, s"]

    columns: list[list[str | Entry]] = [[row.label for row in rows], [str(_seeds(row)) for row in rows]]
    columns += [quality_entries(rows, metric) for metric in metrics]
    columns += [correlations] if ranks else []
    if reference is not None and len(rows) > 1:
        columns += [[_difference(row, reference, metric) for row in rows] for metric in metrics]
    columns += [[_counts(row, "trainable") for row in rows], [_counts(row, "task_numbers") for row in rows]]
    columns += [bytes_entries(rows, "bytes_up"), bytes_entries(rows, "bytes_down")] if federated else []
    columns += [[_seconds(row) for row in rows]]
    return table(place.title, headers, list(zip(*columns, strict=True)), _notes(experiment, rows, reference))


def _correlations(rows: Sequence[Row]) -> list[str | Entry]:
    """The column of the rank correlation: mean ± spread over seeds."""
    found: list[str | Entry] = []
    for row in rows:
        known = [value for one in row.records if (value := one.mean(RANK_CORRELATION.name)) is not None]
        spread = stdev(known) if len(known) > 1 else None
        found.append(mean_text(fmean(known) if known else None, spread, RANK_CORRELATION.digits))
    return found


def quality_entries(rows: Sequence[Row], metric: Metric) -> list[str | Entry]:
    """The column of a metric: mean ± spread, the best in bold, its equals marked; neither where all are the same."""
    means = [row.sample.mean(metric.name) for row in rows]
    known = [mean for mean in means if mean is not None]
    best = (max(known) if metric.higher_is_better else min(known)) if len(set(known)) > 1 else None
    winner = next((row for row, mean in zip(rows, means, strict=True) if mean == best), None) if known else None
    entries: list[str | Entry] = []
    for row, mean in zip(rows, means, strict=True):
        text = mean_text(mean, row.sample.spread(metric.name), metric.digits)
        if best is not None and mean == best:
            entries.append(Entry(text, bold=True))
        else:
            apart = (
                None if winner is None or best is None else paired_difference(row.sample, winner.sample, metric.name)
            )
            entries.append(f"{text} {EQUAL}" if apart is not None and not apart.is_significant else text)
    return entries


def bytes_entries(rows: Sequence[Row], which: str) -> list[str | Entry]:
    """The column of `bytes_up` or `bytes_down`: the mean over trials."""
    found = [[value for r in row.records if (value := getattr(r, which)) is not None] for row in rows]
    return [bytes_text(fmean(values)) if values else NOTHING for values in found]


SETTINGS = (
    *("rank", "alpha", "lr", "core_lr", "weight_decay", "steps", "warmup_steps", "rows", "local_steps"),
    *("first_layer", "base", "dtype", "split"),
)


def settings_table(experiment: Experiment) -> Table:
    """What each method was run with: every value that occurs; what all methods have in common is a note."""
    methods: dict[str, list[Trial]] = {}
    for rows in experiment.places.values():
        for row in rows:
            methods.setdefault(row.method, []).extend(record.trial for record in row.records)
    values = {name: [_setting(name, trials) for trials in methods.values()] for name in SETTINGS}
    common = {name: found[0] for name, found in values.items() if len(methods) > 1 and len(set(found)) == 1}
    names = [name for name in SETTINGS if name not in common]
    lines = []
    for number, (method, trials) in enumerate(methods.items()):
        options = sorted({f"{k}={v:g}" for trial in trials for k, v in trial.options.items()})
        lines.append([method, *(values[name][number] for name in names), ", ".join(options) or NOTHING])
    title = f"{experiment.name}: settings, over all regimes and numbers of examples"
    told = [f"All methods: {', '.join(f'{name} {value}' for name, value in common.items())}."] if common else []
    return table(title, ["method", *names, "options"], lines, [*told, *code_notes(experiment)])


def _setting(name: str, trials: Sequence[Trial]) -> str:
    """The values of one setting that occur in these trials."""
    values = sorted(
        {getattr(trial, name) for trial in trials}, key=lambda v: (isinstance(v, str), v is not None, v or 0)
    )
    return ", ".join("as lr" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _difference(row: Row, reference: Row, metric: Metric) -> str:
    if row is reference:
        return "reference"
    found: Difference | None = paired_difference(row.sample, reference.sample, metric.name)
    return difference_text(found, metric)


def _notes(experiment: Experiment, rows: Sequence[Row], reference: Row | None) -> list[str]:
    notes = code_notes(experiment)
    seeds = {frozenset(record.trial.seed for record in row.records) for row in rows}
    if len(seeds) > 1:
        notes.append("The methods were not run with the same seeds; each difference is over the seeds both have.")
    if reference is not None and sum(row.method == reference.method for row in rows) > 1:
        notes.append(
            f"The reference, {reference.label}, is the setting of {reference.method} with the best mean here; "
            "chosen on the same examples, it looks slightly better than it is."
        )
    return notes


def _seeds(row: Row) -> int:
    return len({record.trial.seed for record in row.records})


def _counts(row: Row, which: str) -> str:
    values = sorted({int(getattr(record, which)) for record in row.records})
    return count_text(values[0]) if len(values) == 1 else f"{count_text(values[0])} to {count_text(values[-1])}"


def _total(row: Row) -> int | None:
    return next((r.bytes_up for r in row.records if r.bytes_up is not None), None)


def _seconds(row: Row) -> str:
    found = [record.seconds["train"] for record in row.records if "train" in record.seconds]
    return NOTHING if not found else f"{median(found):.0f}" if median(found) >= 10 else f"{median(found):.1f}"
