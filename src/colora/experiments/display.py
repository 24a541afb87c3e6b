"""What a running experiment shows: a bar on a terminal's standard error, and a line for each trial that ended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import Progress

from colora.common.progress import progress_bar
from colora.evaluation.metrics import METRICS, Metric
from colora.experiments.trial import Trial, TrialRecord

__all__ = ["Bar", "open_bar", "result_line", "trial_names"]

TRIALS_SECONDS = 3600.0  # a trial takes a minute, so their speed shows only over many
# Shown only where the trials of one method differ in them.
VARYING = {"rank": "r", "steps": "steps ", "lr": "lr ", "core_lr": "core "}


class Bar:
    """A bar of trials; within a trial it moves with the steps."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def start(self, done: float, name: str, weight: float = 1.0) -> None:
        """`done` trials have ended, and the one called `name` begins, which counts as `weight` trials."""
        self._done, self._weight = done, weight
        self._progress.update(self._task, completed=done, description=name)

    def step(self, done: int, total: int) -> None:
        """Of the present trial `done` of `total` steps have passed."""
        if total:
            self._progress.update(self._task, completed=self._done + self._weight * min(done / total, 1.0))


@contextmanager
def open_bar(total: int, wanted: bool) -> Iterator[Bar]:
    """A bar for `total` trials, shown if `wanted` and if standard error is a terminal."""
    with progress_bar(shown=wanted, period=TRIALS_SECONDS) as progress:
        yield Bar(progress, total)


def trial_names(trials: Sequence[Trial]) -> dict[str, str]:
    """For each key a name for people: what tells the trial from the others of its experiment."""
    varying = {
        (name, method)
        for name in VARYING
        for method in {trial.method for trial in trials}
        if len({getattr(trial, name) for trial in trials if trial.method == method}) > 1
    }
    sized = len({(trial.group, len(trial.tasks)) for trial in trials}) > len({trial.group for trial in trials})
    names = {}
    for trial in trials:
        parts = [
            trial.method,
            trial.group,
            *([f"k{len(trial.tasks)}"] if sized else []),
            trial.regime,
            f"n{trial.examples}",
        ]
        for name, sign in VARYING.items():
            value = getattr(trial, name)
            if (name, trial.method) in varying and value is not None:
                parts.append(f"{sign}{value:g}")
        parts += [f"{name} {value:g}" for name, value in trial.options.items()]
        names[trial.key] = " ".join([*parts, f"seed {trial.seed}"])
    return names


def result_line(record: TrialRecord, judged_by: str | None = None) -> str:
    """What it gave, as "ROUGE-L 84.1, token NLL 0.312, 38 s", or the first line of why it failed.

    With `judged_by`, the name of a metric, it is the one score that is shown.
    """
    if record.error is not None:
        return "failed: " + record.error.splitlines()[0]
    shown = [
        _score(metric, mean)
        for metric in METRICS.values()
        if _is_shown(metric, judged_by) and (mean := record.mean(metric.name)) is not None
    ]
    if (accuracy := record.mean("accuracy")) is not None:
        shown.append(f"accuracy {accuracy:.1f}")
    return ", ".join([*shown, f"{sum(record.seconds.values()):.0f} s"])


def _is_shown(metric: Metric, judged_by: str | None) -> bool:
    if judged_by is None or not metric.higher_is_better:
        return metric.ranks
    return metric.name == judged_by


def _score(metric: Metric, mean: float) -> str:
    """The title's unit stands after the number."""
    name, comma, unit = metric.title.partition(", ")
    return f"{name} {mean:.{metric.digits}f}" + (f" {unit}" if comma else "")
