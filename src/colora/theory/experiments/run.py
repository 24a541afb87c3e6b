"""Run a recovery experiment: trials that are not finished, in several processes, each kept as soon as it ends.

OUTPUT/NAME.jsonl        the records of the trials that ended, in the order of the experiment; behind them those that an
                         earlier call with other fields made, which nothing throws away
OUTPUT/NAME.jsonl.lock   a process is running it
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch

from colora.common.failure import describe_error
from colora.common.locks import file_lock
from colora.common.mixed_code import refuse_mixture
from colora.common.progress import progress_bar
from colora.common.provenance import code_digest, environment
from colora.errors import ColoraError, ConfigError, InterruptedRunError
from colora.theory.experiments.config import RecoveryExperiment
from colora.theory.experiments.measure import measure
from colora.theory.experiments.records import (
    RecoveryRecord,
    RecoveryTrial,
    read_recovery_records,
    write_recovery_records,
)

__all__ = ["CODE", "RecoverySummary", "run_recovery"]

# The sources that a result depends on: `measure` and what it imports.
_THEORY = (
    "alternating",
    "baselines",
    "cores",
    "cramer_rao",
    "descent",
    "design",
    "digits",
    "factors",
    "freedom",
    "history",
    "problems",
    "recover",
    "second_order",
    "settings",
    "starts",
    "stopping",
    "tangent",
    "users",
)
CODE = ("algebra", *(f"theory/{name}" for name in _THEORY), "theory/experiments/measure")
SAVE_SECONDS = 2.0  # a crash loses the trials of this long at most


@dataclass(frozen=True)
class RecoverySummary:
    """How a call ended.

    Attributes:
        records: of all trials that ended, well or not, in the order of the experiment.
        trials: how many the experiment has.
        ran: how many this call ran.
        path: their file.
    """

    records: list[RecoveryRecord]
    trials: int
    ran: int
    path: Path

    @property
    def failed(self) -> list[RecoveryRecord]:
        return [record for record in self.records if record.failure is not None]

    def __str__(self) -> str:
        lines = [
            f"{len(self.records) - len(self.failed)} of {self.trials} trials finished, {self.ran} run now: {self.path}"
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed; the same command tries them again:")
            lines += [f"  - {one.trial.method}: {one.failure.splitlines()[0]}" for one in self.failed if one.failure]
        return "\n".join(lines)


def run_recovery(
    experiment: RecoveryExperiment,
    output: Path,
    *,
    workers: int = 1,
    mixed: bool = False,
    rerun_old: bool = False,
    log: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> RecoverySummary:
    """Run what is not finished of an experiment. The same call goes on after a crash, and retries trials that failed.

    Args:
        experiment: which trials.
        output: folder of the records.
        workers: processes, of one thread each.
        mixed: keep finished trials that other sources made.
        rerun_old: run these again.
        log: told a line when a trial fails.
        progress: show a bar, if standard error is a terminal.

    Raises:
        ConfigError: finished trials of other sources, without `mixed` and `rerun_old`; another process is at work on
            it.
        InterruptedRunError: after Ctrl-C; what had ended is kept.
        ColoraError: a file of records that cannot be read.
    """
    if mixed and rerun_old:
        raise ConfigError("expected one of --mixed and --rerun-old, found both")
    path, code = output / f"{experiment.name}.jsonl", code_digest(CODE)
    with file_lock(path.with_name(f"{path.name}.lock")) as mine:
        if not mine:
            raise ConfigError(
                f"{path}: another process is running this experiment; wait for it, or take another --output"
            )
        kept = _Kept.read(path, experiment.trials())
        well = [record for record in kept.records() if record.failure is None]
        if not (mixed or rerun_old):
            refuse_mixture(well, code, path)
        finished = {record.key for record in well if record.code == code or not rerun_old}
        pending = [trial for trial in kept.trials if trial.key not in finished]
        made = environment("cpu") | {"threads": 1, "workers": workers}
        try:
            with progress_bar(shown=progress) as bar, closing(_ended(pending, workers)) as ended:
                step = bar.add_task("", total=len(kept.trials), completed=len(finished))
                for record in ended:
                    date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
                    kept.add(record.model_copy(update={"code": code, "environment": made | date}))
                    bar.update(step, advance=1, description=record.trial.method)
                    if record.failure is not None:
                        log(f"{record.trial.method} failed: {record.failure.splitlines()[0]}")
        except KeyboardInterrupt:
            done = len(finished) + kept.added
            raise InterruptedRunError(
                f"stopped with {done} of {len(kept.trials)} trials ended; the same command goes on from there"
            ) from None
        finally:
            kept.save()
    return RecoverySummary(kept.records(), len(kept.trials), len(pending), path)


@dataclass
class _Kept:
    """The file of records: those of the experiment's trials, and behind them those that others made.

    Attributes:
        path: the file.
        trials: of the experiment, in its order.
        ended: records of trials that ended, well or not, by key.
        others: records of trials that are not the experiment's.
        added: how many trials this call ended.
    """

    path: Path
    trials: list[RecoveryTrial]
    ended: dict[str, RecoveryRecord]
    others: list[RecoveryRecord]
    added: int = 0
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, path: Path, trials: list[RecoveryTrial]) -> "_Kept":
        """What the file holds; nothing where there is none."""
        before = {record.key: record for record in read_recovery_records(path)} if path.exists() else {}
        ended = {trial.key: before[trial.key] for trial in trials if trial.key in before}
        return cls(path, trials, ended, [record for key, record in before.items() if key not in ended])

    def records(self) -> list[RecoveryRecord]:
        """Of the experiment's trials that ended, in its order."""
        return [self.ended[trial.key] for trial in self.trials if trial.key in self.ended]

    def add(self, record: RecoveryRecord) -> None:
        """Keep a record, and write the file if the last time was a while ago."""
        self.ended[record.key] = record
        self.added += 1
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        write_recovery_records(self.path, [*self.records(), *self.others])
        self._saved = time.monotonic()


def _ended(trials: Sequence[RecoveryTrial], workers: int) -> Generator[RecoveryRecord, None, None]:
    """The records of trials as they end, in whatever order."""
    if not trials:
        return
    # Processes begin anew: forking one that has used torch's threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            for future in as_completed([pool.submit(_attempt, trial) for trial in trials]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ColoraError(
                "a worker process died, perhaps because memory ran out; the same command goes on from the trials that "
                "had ended; --workers 1 needs the least memory"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(trial: RecoveryTrial) -> RecoveryRecord:
    try:
        return measure(trial)
    except Exception as error:  # the others go on
        return RecoveryRecord(trial=trial, failure=describe_error(error))
