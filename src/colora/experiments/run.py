"""Run an experiment: every trial that is not finished, one after another, each kept as soon as it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from colora.common.mixed_code import refuse_mixture
from colora.errors import ConfigError, InterruptedRunError
from colora.experiments.code import trial_code
from colora.experiments.config import Experiment
from colora.experiments.display import open_bar, trial_names
from colora.experiments.methods.runner import Runner
from colora.experiments.plan import planned_trials
from colora.experiments.store import Store
from colora.experiments.trial import Trial, TrialRecord
from colora.experiments.worker import Log, MakeTasks, TaskCache, TrialRunner, Worker
from colora.tasks.families import make as families

__all__ = ["ExperimentOptions", "Summary", "chosen_trials", "collect_experiment", "parse_shard", "run_experiment"]


@dataclass(frozen=True)
class Summary:
    """How a call ended.

    Attributes:
        trials: trials of the experiment.
        finished: how many of them are finished now, whoever ran them and when.
        ran: names of the trials that this call ran, in their order, also of those that failed.
        failed: names of the trials of this call's share that failed, with the first line of why.
        elsewhere: trials of this call's share that another process is running.
        records: the file that holds the records of all trials that ended.
    """

    trials: int
    finished: int
    ran: list[str]
    failed: dict[str, str]
    elsewhere: int
    records: Path

    def __str__(self) -> str:
        lines = [f"{self.finished} of {self.trials} trials finished: {self.records}"]
        if self.elsewhere:
            lines.append(f"{self.elsewhere} more are with another process")
        if self.failed:
            lines.append(f"{len(self.failed)} failed; `colora compare` tries them again:")
        return "\n".join([*lines, *(f"  - {name}: {reason}" for name, reason in self.failed.items())])


@dataclass(frozen=True)
class ExperimentOptions:
    """What a call runs of an experiment.

    Attributes:
        shard: (i, n): of the trials only the i-th, (i+n)-th, ...; i from 1 to n.
        only: a pattern as of a shell for the trials' keys: only these are run.
        data: folder of task files, for groups that need some.
        mixed: keep finished trials that other sources made.
        rerun_old: run these again.

    Raises:
        ConfigError: both `mixed` and `rerun_old`.
    """

    shard: tuple[int, int] = (1, 1)
    only: str | None = None
    data: Path | None = None
    mixed: bool = False
    rerun_old: bool = False

    def __post_init__(self) -> None:
        if self.mixed and self.rerun_old:
            raise ConfigError("expected one of --mixed and --rerun-old, found both")


def run_experiment(
    experiment: Experiment,
    output: Path,
    options: ExperimentOptions | None = None,
    *,
    log: Log = lambda line: None,
    progress: bool = False,
    make_runner: Callable[[str, str], TrialRunner] = Runner,
    make_tasks: MakeTasks = families.make_tasks,
) -> Summary:
    """Run what is not finished of an experiment's trials and collect the records of all that are.

    A trial that raises an error is recorded as failed, and tried again by the next call. Several processes may run one
    experiment into one folder: each takes trials that no other has.

    Args:
        experiment: which trials.
        output: the folder, shared by as many experiments as you like; see `store`.
        options: which of the trials, and what becomes of those that other sources made; all, and refused, if None.
        log: told a line when a trial ends.
        progress: show a bar, if standard error is a terminal.
        make_runner: makes what trains and measures, from the name of a base and its dtype.
        make_tasks: what makes tasks.

    Raises:
        ConfigError: finished trials of other sources, without `mixed` and `rerun_old`; a task that cannot be made; no
            trial that fits `only`.
        InterruptedRunError: after Ctrl-C; the same call goes on.
    """
    options = options or ExperimentOptions()
    code, store, trials = trial_code(), Store(output), planned_trials(experiment)
    only_code = code if options.rerun_old else None
    first, parts = options.shard
    share = chosen_trials(experiment, options.only)[first - 1 :: parts]
    store.restore(experiment.name)
    if not (options.mixed or options.rerun_old):
        refuse_mixture(store.finished(trials), code, store.folder)
    before = {trial.key: store.read(trial) for trial in share}
    pending = [trial for trial in share if _is_due(before[trial.key], only_code)]
    tasks = TaskCache(make_tasks, options.data)
    load = partial(make_runner, experiment.base, experiment.dtype)
    worker = Worker(store, code, tasks, load, trial_names(trials), log)
    try:
        tasks.check(pending)
        with open_bar(len(share), progress) as bar:
            elsewhere = worker.work(pending, before, bar)
    except KeyboardInterrupt:
        finished = len(store.finished(trials))
        raise InterruptedRunError(
            f"stopped with {finished} of {len(trials)} trials finished; the same command goes on from there"
        ) from None
    path, records = store.collect(experiment.name, trials, only_code)
    return _summary(path, records, trials, share, worker.ran, len(elsewhere))


def collect_experiment(experiment: Experiment, output: Path, mixed: bool = False) -> Summary:
    """Run nothing, and write OUTPUT/NAME.jsonl from what is finished.

    Raises:
        ConfigError: the trials came from several versions of the sources, without `mixed`.
    """
    store, trials = Store(output), planned_trials(experiment)
    records = store.finished(trials)
    if records and not mixed:
        newest = max(records, key=lambda record: record.environment.get("date", ""))
        refuse_mixture(records, newest.code, store.folder)
    path, records = store.collect(experiment.name, trials)
    return _summary(path, records, trials, trials, [], 0)


def chosen_trials(experiment: Experiment, only: str | None) -> list[Trial]:
    """The trials whose keys fit a pattern as of a shell; all of them by default. Raises ConfigError if none does."""
    trials = planned_trials(experiment)
    chosen = [trial for trial in trials if only is None or fnmatchcase(trial.key, only)]
    if not chosen:
        raise ConfigError(
            f"--only: expected a pattern that fits a trial, found {only!r}, which fits none of {len(trials)}; the "
            f"first of them is {trials[0].key!r}"
        )
    return chosen


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 3) from "2/3". Raises ConfigError."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--shard: expected I/N with I from 1 to N, such as 1/2, found {text!r}")
    return int(first), int(last)


def _summary(
    path: Path, records: list[TrialRecord], trials: list[Trial], share: list[Trial], ran: list[str], elsewhere: int
) -> Summary:
    names, keys = trial_names(trials), {trial.key for trial in share}
    errors = {record.trial.key: record.error for record in records if record.error is not None}
    failed = {names[key]: error.splitlines()[0] for key, error in errors.items() if key in keys}
    return Summary(len(trials), len(records) - len(errors), ran, failed, elsewhere, path)


def _is_due(record: TrialRecord | None, only_code: str | None) -> bool:
    return record is None or record.error is not None or (only_code is not None and record.code != only_code)
