"""Run an experiment: every trial that is not finished, one after another, each kept as soon as it ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from colora.common.failure import describe_error
from colora.common.locks import claimed
from colora.common.mixed_code import refuse_mixture
from colora.common.provenance import environment
from colora.errors import ConfigError, InterruptedRunError
from colora.experiments.code import trial_code
from colora.experiments.config import Experiment
from colora.experiments.display import Bar, open_bar, result_line, trial_names
from colora.experiments.plan import planned_trials
from colora.experiments.store import Store
from colora.experiments.trial import Trial, TrialRecord
from colora.tasks.schema import Task

__all__ = ["Summary", "chosen_trials", "collect_experiment", "parse_shard", "run_experiment"]

Log = Callable[[str], None]
MakeTasks = Callable[..., list[Task]]


class Runs(Protocol):
    """What runs trials: `colora.experiments.methods.runner.Runner`, or a stand-in."""

    def run(self, trial: Trial, tasks: list[Task], progress: Callable[[int, int], None] | None = None) -> TrialRecord:
        """Train and measure one trial; `code` and `environment` of its record are filled in here."""


@dataclass(frozen=True)
class Summary:
    """How a call ended.

    Attributes:
        trials: trials of the experiment.
        finished: how many of them are finished now, whoever ran them and when.
        ran: names of the trials that this call ran, in their order, also of those that died.
        failed: names of the trials of this call's share that died, with the first line of why.
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


def run_experiment(
    experiment: Experiment,
    output: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    only: str | None = None,
    data: Path | None = None,
    mixed: bool = False,
    rerun_old: bool = False,
    log: Log = lambda line: None,
    progress: bool = False,
    make_runner: Callable[[str, str], Runs] | None = None,
    make_tasks: MakeTasks | None = None,
) -> Summary:
    """Run what is not finished of an experiment's trials and collect the records of all that are.

    A trial that dies is recorded as failed, and tried again by the next call. Several processes may run one experiment
    into one folder: each takes trials that no other has.

    Args:
        experiment: which trials.
        output: the folder, shared by as many experiments as you like; see `store`.
        shard: (i, n): of the trials only the i-th, (i+n)-th, ...; i from 1 to n.
        only: a pattern as of a shell for the trials' keys: only these are run.
        data: folder of task files, for groups that need some.
        mixed: keep finished trials that other sources made.
        rerun_old: run these again.
        log: told a line when a trial ends.
        progress: show a bar, if standard error is a terminal.
        make_runner, make_tasks: `Runner` and `make_tasks` of `colora.experiments.methods` and
            `colora.tasks.families`, or stand-ins.

    Raises:
        ConfigError: finished trials of other sources, without `mixed` and `rerun_old`; a task that cannot be made; no
            trial that fits `only`.
        InterruptedRunError: after Ctrl-C; the same call goes on.
    """
    if mixed and rerun_old:
        raise ConfigError("expected one of --mixed and --rerun-old, found both")
    code, store, trials = trial_code(), Store(output), planned_trials(experiment)
    share = chosen_trials(experiment, only)[shard[0] - 1 :: shard[1]]
    if not (mixed or rerun_old):
        refuse_mixture(store.finished(trials), code, store.folder)
    before = {trial.key: store.read(trial) for trial in share}
    pending = [trial for trial in share if _is_due(before[trial.key], code if rerun_old else None)]
    names = trial_names(trials)
    crew = _Crew(experiment, store, code, data, make_runner, make_tasks, before)
    try:
        if pending:
            crew.check_tasks(pending)
        with open_bar(len(share), progress) as bar:
            left = crew.work(pending, len(share), names, bar, log)
    except KeyboardInterrupt:
        finished = len(store.finished(trials))
        raise InterruptedRunError(
            f"stopped with {finished} of {len(trials)} trials finished; the same command goes on from there"
        ) from None
    path, records = store.collect(experiment.name, trials, only_code=code if rerun_old else None)
    return _summary(path, records, trials, share, crew.ran, len(left))


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
        raise ConfigError(f"--only: no trial fits {only!r}; the first of {len(trials)} is {trials[0].key!r}")
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


class _Crew:
    """One process at work on an experiment: loads the base once, and makes the tasks of neighbouring trials once."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        code: str,
        data: Path | None,
        make_runner: Callable[[str, str], Runs] | None,
        make_tasks: MakeTasks | None,
        before: dict[str, TrialRecord | None],
    ) -> None:
        self._experiment, self._store, self._code, self._data, self._before = experiment, store, code, data, before
        self._make_runner = make_runner or _default_runner
        self._make_tasks = make_tasks or _default_tasks
        self._runner: Runs | None = None
        self._tasks: tuple[Any, list[Task]] | None = None
        self._environment = environment()  # now, since the sources may be edited while a long experiment runs
        self.ran: list[str] = []

    def check_tasks(self, trials: Sequence[Trial]) -> None:
        """Make each set of tasks once, so that a name that nobody knows is found now and not after hours."""
        seen = set()
        for trial in trials:
            if (trial.tasks, trial.examples) not in seen:
                seen.add((trial.tasks, trial.examples))
                self._tasks_of(trial)

    def work(self, pending: list[Trial], share: int, names: dict[str, str], bar: Bar, log: Log) -> list[Trial]:
        """Run the trials that are due; those that other processes hold come last, and are returned if they still do."""
        done = share - len(pending)
        while pending:
            held = []
            for trial in pending:
                bar.start(done, names[trial.key])
                with claimed(self._store.lock(trial)) as mine:
                    if not mine:
                        held.append(trial)
                        continue
                    done += 1
                    if self._store.read(trial) != self._before[trial.key]:
                        continue  # another process has run it meanwhile
                    record = self._run(trial, bar)
                    self._store.write(record)
                self.ran.append(names[trial.key])
                log(f"{done}/{share} {names[trial.key]}: {result_line(record)}")
            if len(held) == len(pending):
                return held
            pending = held
        return []

    def _run(self, trial: Trial, bar: Bar) -> TrialRecord:
        if self._runner is None:  # a base that cannot be loaded is no fault of this trial
            self._runner = self._make_runner(self._experiment.base, self._experiment.dtype)
        try:
            record = self._runner.run(trial, self._tasks_of(trial), bar.step)
            record = TrialRecord.model_validate_json(record.model_dump_json())  # no number that JSON does not know
        except Exception as error:
            record = TrialRecord(trial=trial, error=describe_error(error))
        made = self._environment | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        return record.model_copy(update={"code": self._code, "environment": made})

    def _tasks_of(self, trial: Trial) -> list[Task]:
        wanted: dict[str, Any] = {"examples": trial.examples, "seed": trial.seed, "regime": trial.regime}
        wanted |= {"val": trial.test, "test": trial.test, "data": self._data}
        if self._tasks is None or self._tasks[0] != (trial.tasks, wanted):
            self._tasks = ((trial.tasks, wanted), self._make_tasks(list(trial.tasks), **wanted))
        return self._tasks[1]


def _default_runner(base: str, dtype: str) -> Runs:
    from colora.experiments.methods.runner import Runner

    return Runner(base, dtype)


def _default_tasks(names: Sequence[str], **wanted: Any) -> list[Task]:
    from colora.tasks.families.make import make_tasks

    return make_tasks(names, **wanted)
