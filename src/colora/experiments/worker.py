"""One process at work on an experiment: it takes trials that are due and no other process holds, and keeps each record.

The base model is loaded once, and the tasks of neighbouring trials are made once.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from colora.common.failure import describe_error
from colora.common.locks import file_lock
from colora.common.provenance import environment
from colora.experiments.display import Bar, result_line
from colora.experiments.store import Store
from colora.experiments.trial import Regime, Trial, TrialRecord
from colora.tasks.schema import Task

__all__ = ["Log", "MakeTasks", "TaskCache", "TrialRunner", "TrialTasks", "Worker"]

Log = Callable[[str], None]


class TrialRunner(Protocol):
    """What runs trials: `colora.experiments.methods.runner.Runner`, or a stand-in."""

    def run(self, trial: Trial, tasks: list[Task], progress: Callable[[int, int], None] | None = None) -> TrialRecord:
        """Train and measure one trial; `code` and `environment` of its record are filled in here."""


class TrialTasks(Protocol):
    """What knows the tasks of trials: a `TaskCache`, or another."""

    def of(self, trial: Trial) -> list[Task]:
        """The tasks of a trial."""


class MakeTasks(Protocol):
    """What makes tasks: `colora.tasks.families.make.make_tasks`, or a stand-in."""

    def __call__(
        self,
        names: Sequence[str],
        *,
        examples: int,
        val: int,
        test: int,
        seed: int,
        regime: Regime,
        data: Path | None = None,
    ) -> list[Task]:
        """The tasks with these names, in this order."""


class TaskCache:
    """The tasks of trials; those of the trial before are kept, for neighbouring trials often have the same."""

    def __init__(self, make_tasks: MakeTasks, data: Path | None) -> None:
        self._make_tasks, self._data = make_tasks, data
        self._made: tuple[tuple[object, ...], list[Task]] | None = None

    def check(self, trials: Sequence[Trial]) -> None:
        """Make each set of tasks once, so that a name that nobody knows is found now and not after hours."""
        seen = set()
        for trial in trials:
            if (trial.tasks, trial.examples) not in seen:
                seen.add((trial.tasks, trial.examples))
                self.of(trial)

    def of(self, trial: Trial) -> list[Task]:
        """The tasks of a trial."""
        key = (trial.tasks, trial.examples, trial.seed, trial.regime, trial.split, trial.test)
        if self._made is None or self._made[0] != key:
            tasks = self._make_tasks(
                list(trial.tasks),
                examples=trial.examples,
                # Only what is measured on: some tasks have few validation examples, or none.
                val=trial.test if trial.split == "val" else 0,
                test=trial.test if trial.split == "test" else 0,
                seed=trial.seed,
                regime=trial.regime,
                data=self._data,
            )
            self._made = (key, tasks)
        return self._made[1]


class Worker:
    """Runs trials one after another.

    Args:
        store: where records are kept.
        code: digest of the sources, for the records.
        tasks: knows the tasks.
        load: loads the base model, once there is a trial to run.
        names: of the trials, for people.
        log: told a line when a trial ends.
        judged_by: the metric that the line shows, see `result_line`.

    Attributes:
        ran: names of the trials that were run, in their order, also of those that failed.
    """

    def __init__(
        self,
        store: Store,
        code: str,
        tasks: TrialTasks,
        load: Callable[[], TrialRunner],
        names: Mapping[str, str],
        log: Log,
        judged_by: str | None = None,
    ) -> None:
        self._store, self._code, self._tasks, self._load, self._names, self._log = store, code, tasks, load, names, log
        self._judged_by = judged_by
        self._runner: TrialRunner | None = None
        self._environment = environment()  # now, since the sources may be edited while a long experiment runs
        self.ran: list[str] = []

    def work(self, pending: list[Trial], before: Mapping[str, TrialRecord | None], bar: Bar) -> list[Trial]:
        """Run the trials that are due; those that other processes hold come last, and are returned if they still do.

        Args:
            pending: the trials that are due.
            before: the record, if any, that each trial of this call's share had when it was found due or not.
            bar: shows how many of the share have ended.
        """
        share = len(before)
        done = share - len(pending)
        while pending:
            held = []
            for trial in pending:
                name = self._names[trial.key]
                bar.start(done, name)
                with file_lock(self._store.lock(trial)) as mine:
                    if not mine:
                        held.append(trial)
                        continue
                    done += 1
                    if self._store.read(trial) != before[trial.key]:
                        continue  # another process has run it meanwhile
                    record = self._run(trial, bar)
                    self._store.write(record)
                self.ran.append(name)
                self._log(f"{done}/{share} {name}: {result_line(record, self._judged_by)}")
            if len(held) == len(pending):
                return held
            pending = held
        return []

    def _run(self, trial: Trial, bar: Bar) -> TrialRecord:
        if self._runner is None:  # a base that cannot be loaded is no fault of this trial
            self._runner = self._load()
        try:
            record = self._runner.run(trial, self._tasks.of(trial), bar.step)
            record = TrialRecord.model_validate_json(record.model_dump_json())  # no number that JSON does not know
        except Exception as error:
            record = TrialRecord(trial=trial, error=describe_error(error))
        made = self._environment | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        return record.model_copy(update={"code": self._code, "environment": made})
