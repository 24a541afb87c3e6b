"""Run a recovery experiment: cells that are not finished, in several processes, each kept as soon as it ends.

OUTPUT/NAME.jsonl        the records of the cells that ended, in the order of the experiment; behind them those that an
                         earlier call with other fields made, which nothing throws away
OUTPUT/NAME.jsonl.lock   a process is running it
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch

from colora.common.failure import describe_error
from colora.common.locks import claimed
from colora.common.mixed_code import refuse_mixture
from colora.common.progress import progress_bar
from colora.common.provenance import code_digest, environment
from colora.errors import ColoraError, ConfigError, InterruptedRunError
from colora.theory.experiments.config import RecoveryExperiment
from colora.theory.experiments.measure import measure
from colora.theory.experiments.records import (
    RecoveryCell,
    RecoveryRecord,
    read_recovery_records,
    write_recovery_records,
)

__all__ = ["CODE", "RecoverySummary", "run_recovery"]

# The sources that a result depends on: `measure` and what it imports.
_THEORY = (
    "alternating", "baselines", "cores", "cramer_rao", "descent", "design", "digits", "factors", "freedom", "history",
    "problems", "recover", "second_order", "starts", "stopping", "tangent", "users",
)  # fmt: skip
CODE = ("algebra", *(f"theory/{name}" for name in _THEORY), "theory/experiments/measure")
SAVE_SECONDS = 2.0  # a crash loses the cells of this long at most


@dataclass(frozen=True)
class RecoverySummary:
    """How a call ended.

    Attributes:
        records: of all cells that ended, well or not, in the order of the experiment.
        ran: how many this call ran.
        path: their file.
    """

    records: list[RecoveryRecord]
    cells: int
    ran: int
    path: Path

    @property
    def failed(self) -> list[RecoveryRecord]:
        return [record for record in self.records if record.failure is not None]

    def __str__(self) -> str:
        lines = [
            f"{len(self.records) - len(self.failed)} of {self.cells} cells finished, {self.ran} run now: {self.path}"
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed; the same command tries them again:")
            lines += [f"  - {one.cell.method}: {one.failure.splitlines()[0]}" for one in self.failed if one.failure]
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
    """Run what is not finished of an experiment. The same call goes on after a crash, and retries cells that failed.

    Args:
        experiment: which cells.
        output: folder of the records.
        workers: processes, of one thread each.
        mixed: keep finished cells that other sources made.
        rerun_old: run these again.
        log: told a line when a cell fails.
        progress: show a bar, if standard error is a terminal.

    Raises:
        ConfigError: finished cells of other sources, without `mixed` and `rerun_old`; another process is at work on it.
        InterruptedRunError: after Ctrl-C; what had ended is kept.
        ColoraError: a file of records that cannot be read.
    """
    if mixed and rerun_old:
        raise ConfigError("expected one of --mixed and --rerun-old, found both")
    path, cells, code = output / f"{experiment.name}.jsonl", experiment.cells(), code_digest(CODE)
    with claimed(path.with_name(f"{path.name}.lock")) as mine:
        if not mine:
            raise ConfigError(
                f"{path}: another process is running this experiment; wait for it, or take another --output"
            )
        before = {record.cell.key: record for record in read_recovery_records(path)} if path.exists() else {}
        known = {cell.key: before[cell.key] for cell in cells if cell.key in before}
        others = [record for key, record in before.items() if key not in known]
        well = [record for record in known.values() if record.failure is None]
        if not (mixed or rerun_old):
            refuse_mixture(well, code, path)
        finished = {record.cell.key for record in well if record.code == code or not rerun_old}
        pending = [cell for cell in cells if cell.key not in finished]

        def save() -> list[RecoveryRecord]:
            records = [known[cell.key] for cell in cells if cell.key in known]
            write_recovery_records(path, [*records, *others])
            return records

        made = environment("cpu") | {"threads": 1, "workers": workers}
        done, saved = len(finished), time.monotonic()
        try:
            with progress_bar(shown=progress) as bar, closing(_ended(pending, workers)) as ended:
                step = bar.add_task("", total=len(cells), completed=done)
                for record in ended:
                    date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
                    known[record.cell.key] = record.model_copy(update={"code": code, "environment": made | date})
                    done += 1
                    bar.update(step, completed=done, description=record.cell.method)
                    if record.failure is not None:
                        log(f"{record.cell.method} failed: {record.failure.splitlines()[0]}")
                    if time.monotonic() - saved > SAVE_SECONDS:
                        save()
                        saved = time.monotonic()
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"stopped with {done} of {len(cells)} cells ended; the same command goes on from there"
            ) from None
        finally:
            records = save()
    return RecoverySummary(records, len(cells), len(pending), path)


def _ended(cells: Sequence[RecoveryCell], workers: int) -> Generator[RecoveryRecord, None, None]:
    """The records of cells as they end, in whatever order."""
    if not cells:
        return
    # Processes begin anew: forking one that has used torch's threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            for future in as_completed([pool.submit(_attempt, cell) for cell in cells]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ColoraError(
                "a process at work died, perhaps for want of memory; the same command goes on from the cells that had "
                "ended, with fewer --workers if need be"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(cell: RecoveryCell) -> RecoveryRecord:
    try:
        return measure(cell)
    except Exception as error:  # the others go on
        return RecoveryRecord(cell=cell, failure=describe_error(error))
