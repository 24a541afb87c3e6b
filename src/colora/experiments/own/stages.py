"""Running the stages of a comparison: trials that are not finished, by one process or several, while time is left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colora.common.locks import is_locked
from colora.experiments.display import Bar
from colora.experiments.own.clock import Clock
from colora.experiments.own.data import OwnTasks
from colora.experiments.own.estimate import OVERHEAD, total_seconds
from colora.experiments.own.plan import Stage
from colora.experiments.own.planned import PlanFile
from colora.experiments.store import Store
from colora.experiments.trial import Trial, TrialRecord
from colora.experiments.worker import Log, TrialRunner, Worker

__all__ = ["StageRunner", "at_work", "failures"]

POLL = 0.5  # seconds between two looks at the trials of another process


class _StageBar(Bar):
    """The bar of the whole, for a worker that knows of some trials of one stage alone; each has a weight."""

    def __init__(self, whole: Bar, before: float, stage: str, weights: Sequence[float]) -> None:
        self._whole, self._before, self._stage, self._weights = whole, before, stage, weights

    def start(self, done: float, name: str, weight: float = 1.0) -> None:
        ended = int(done)
        weight = self._weights[ended] if ended < len(self._weights) else 0.0
        self._whole.start(self._before + sum(self._weights[:ended]), f"{self._stage}: {name}", weight)

    def step(self, done: int, total: int) -> None:
        self._whole.step(done, total)


@dataclass
class StageRunner:
    """Runs stages, and drops those that are not needed when time does not allow them.

    Attributes:
        store: of the records.
        data: the tasks.
        runner: trains and measures.
        plan: on disk at `plan_path`.
        clock: the budget.
        code: digest of the sources.
        rerun: whether trials of other sources count as not run.
        bar: shows how many trials of all have ended; one that takes longer counts more.
        log: told a line for each trial.
        metric: what tasks are judged by.
        per_second: how many trials of the bar a second is, by what all of them are expected to take.
        done: trials of the bar that the stages so far are.
    """

    store: Store
    data: OwnTasks
    runner: TrialRunner
    plan: PlanFile
    plan_path: Path
    clock: Clock
    code: str
    rerun: bool
    bar: Bar
    log: Log
    metric: str
    per_second: float
    done: float = 0.0
    _seen: list[TrialRecord] = field(default_factory=list)

    def run(self, stages: Sequence[Stage], rest: Sequence[Stage]) -> list[list[TrialRecord]]:
        """The finished records of each stage that was run, in their order.

        Args:
            stages: to run, one after the other.
            rest: what is still to come after them.
        """
        found = []
        for number, stage in enumerate(stages):
            coming = [one for one in (*stages[number + 1 :], *rest) if one.needed]
            if self._allowed(stage, coming):
                found.append(self._finished(stage))
        return found

    def _allowed(self, stage: Stage, needed_later: Sequence[Stage]) -> bool:
        """Whether to run a stage: needed ones always, others if what is needed after them still fits."""
        self.plan = self.plan.refreshed(self.plan_path)
        if stage.needed:
            return True
        if stage.name in self.plan.dropped:
            return False
        pending = [trial for trial in stage.trials if self._is_due(trial)]
        if not pending or any(is_locked(self.store.lock(trial)) for trial in pending):
            return True  # nothing to do, or begun by another process: both go on with what it gives
        timings = self.plan.timings.corrected(self._seen)
        seconds = total_seconds([Stage(stage.name, tuple(pending)), *needed_later], timings)
        if seconds + OVERHEAD <= self.clock.left():
            return True
        self.log(f"no time is left for: {stage.name}")
        self.plan = self.plan.drop(stage.name, self.plan_path)
        return False

    def _finished(self, stage: Stage) -> list[TrialRecord]:
        names = {trial.key: _name(trial) for trial in stage.trials}
        worker = Worker(self.store, self.code, self.data, lambda: self.runner, names, self._ended, self.metric)
        pending = [trial for trial in stage.trials if self._is_due(trial)]
        while pending:
            due = {trial.key for trial in pending}
            before = self.done + sum(self._weight(trial) for trial in stage.trials if trial.key not in due)
            bar = _StageBar(self.bar, before, stage.name, [self._weight(trial) for trial in pending])
            held = worker.work(pending, {trial.key: self.store.read(trial) for trial in pending}, bar)
            while any(is_locked(self.store.lock(trial)) for trial in held):
                time.sleep(POLL)
            pending = [trial for trial in held if self._is_due(trial)]  # another process may have died of them
        self.done += sum(map(self._weight, stage.trials))
        records = self.store.finished(stage.trials)
        self._seen += [one for one in records if one.code == self.code]
        return records

    def _weight(self, trial: Trial) -> float:
        """What a trial counts of the bar, whose length is the number of trials: its share of the expected time."""
        return self.plan.timings.seconds(trial) * self.per_second

    def _ended(self, line: str) -> None:
        self.clock.tick()
        self.log(line)

    def _is_due(self, trial: Trial) -> bool:
        record = self.store.read(trial)
        return record is None or record.error is not None or (self.rerun and record.code != self.code)


def at_work(folder: Path) -> bool:
    """Whether another process runs a trial of this folder now."""
    return any(is_locked(path) for path in folder.glob("*.lock"))


def failures(store: Store, trials: Sequence[Trial]) -> dict[str, str]:
    """The first line of why each of these trials failed, by its name for people."""
    records = [record for trial in trials if (record := store.read(trial)) is not None]
    return {_name(one.trial): one.error.splitlines()[0] for one in records if one.error is not None}


def _name(trial: Trial) -> str:
    rates = "" if trial.steps == 1 else f", lr {trial.lr:g}" + (f" and {trial.core_lr:g}" if trial.core_lr else "")
    part = trial.group.partition("-fold")[2].replace("of", " of ")
    return (
        f"{trial.method}{rates}"
        + (f", fold {part}" if part else "")
        + (", validation" if trial.group.endswith("-val") else "")
        + ("" if trial.split == "val" else f", {trial.examples} examples, seed {trial.seed}")
    )
