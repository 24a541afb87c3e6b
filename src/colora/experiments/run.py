"""Run an experiment: every cell that is not finished, one after another, each kept as soon as it ends."""

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
from colora.experiments.display import Bar, cell_names, open_bar, result_line
from colora.experiments.plan import planned_cells
from colora.experiments.store import Store
from colora.experiments.trial import Cell, CellRecord
from colora.tasks.schema import Task

__all__ = ["Summary", "chosen_cells", "collect_experiment", "parse_shard", "run_experiment"]

Log = Callable[[str], None]
MakeTasks = Callable[..., list[Task]]


class Runs(Protocol):
    """What runs cells: `colora.experiments.methods.runner.Bench`, or a stand-in."""

    def run(self, cell: Cell, tasks: list[Task], progress: Callable[[int, int], None] | None = None) -> CellRecord:
        """Train and measure one cell; `code` and `environment` of its record are filled in here."""


@dataclass(frozen=True)
class Summary:
    """How a call ended.

    Attributes:
        cells: cells of the experiment.
        finished: how many of them are finished now, whoever ran them and when.
        ran: names of the cells that this call ran, in their order, also of those that died.
        failed: names of the cells of this call's share that died, with the first line of why.
        elsewhere: cells of this call's share that another process is running.
        records: the file that holds the records of all cells that ended.
    """

    cells: int
    finished: int
    ran: list[str]
    failed: dict[str, str]
    elsewhere: int
    records: Path

    def __str__(self) -> str:
        lines = [f"{self.finished} of {self.cells} cells finished: {self.records}"]
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
    make_bench: Callable[[str, str], Runs] | None = None,
    make_tasks: MakeTasks | None = None,
) -> Summary:
    """Run what is not finished of an experiment's cells and collect the records of all that are.

    A cell that dies is recorded as failed, and tried again by the next call. Several processes may run one experiment
    into one folder: each takes cells that no other has.

    Args:
        experiment: which cells.
        output: the folder, shared by as many experiments as you like; see `store`.
        shard: (i, n): of the cells only the i-th, (i+n)-th, ...; i from 1 to n.
        only: a pattern as of a shell for the cells' keys: only these are run.
        data: folder of task files, for groups that need some.
        mixed: keep finished cells that other sources made.
        rerun_old: run these again.
        log: told a line when a cell ends.
        progress: show a bar, if standard error is a terminal.
        make_bench, make_tasks: `Bench` and `make_tasks` of `colora.experiments.methods` and
            `colora.tasks.families`, or stand-ins.

    Raises:
        ConfigError: finished cells of other sources, without `mixed` and `rerun_old`; a task that cannot be made; no
            cell that fits `only`.
        InterruptedRunError: after Ctrl-C; the same call goes on.
    """
    if mixed and rerun_old:
        raise ConfigError("expected one of --mixed and --rerun-old, found both")
    code, store, cells = trial_code(), Store(output), planned_cells(experiment)
    share = chosen_cells(experiment, only)[shard[0] - 1 :: shard[1]]
    if not (mixed or rerun_old):
        refuse_mixture(store.finished(cells), code, store.folder)
    before = {cell.key: store.read(cell) for cell in share}
    pending = [cell for cell in share if _is_due(before[cell.key], code if rerun_old else None)]
    names = cell_names(cells)
    crew = _Crew(experiment, store, code, data, make_bench, make_tasks, before)
    try:
        if pending:
            crew.check_tasks(pending)
        with open_bar(len(share), progress) as bar:
            left = crew.work(pending, len(share), names, bar, log)
    except KeyboardInterrupt:
        finished = len(store.finished(cells))
        raise InterruptedRunError(
            f"stopped with {finished} of {len(cells)} cells finished; the same command goes on from there"
        ) from None
    path, records = store.collect(experiment.name, cells, only_code=code if rerun_old else None)
    return _summary(path, records, cells, share, crew.ran, len(left))


def collect_experiment(experiment: Experiment, output: Path, mixed: bool = False) -> Summary:
    """Run nothing, and write OUTPUT/NAME.jsonl from what is finished.

    Raises:
        ConfigError: the cells came from several versions of the sources, without `mixed`.
    """
    store, cells = Store(output), planned_cells(experiment)
    records = store.finished(cells)
    if records and not mixed:
        newest = max(records, key=lambda record: record.environment.get("date", ""))
        refuse_mixture(records, newest.code, store.folder)
    path, records = store.collect(experiment.name, cells)
    return _summary(path, records, cells, cells, [], 0)


def chosen_cells(experiment: Experiment, only: str | None) -> list[Cell]:
    """The cells whose keys fit a pattern as of a shell; all of them by default. Raises ConfigError if none does."""
    cells = planned_cells(experiment)
    chosen = [cell for cell in cells if only is None or fnmatchcase(cell.key, only)]
    if not chosen:
        raise ConfigError(f"--only: no cell fits {only!r}; the first of {len(cells)} is {cells[0].key!r}")
    return chosen


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 3) from "2/3". Raises ConfigError."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--shard: expected I/N with I from 1 to N, such as 1/2, found {text!r}")
    return int(first), int(last)


def _summary(
    path: Path, records: list[CellRecord], cells: list[Cell], share: list[Cell], ran: list[str], elsewhere: int
) -> Summary:
    names, keys = cell_names(cells), {cell.key for cell in share}
    errors = {record.cell.key: record.error for record in records if record.error is not None}
    failed = {names[key]: error.splitlines()[0] for key, error in errors.items() if key in keys}
    return Summary(len(cells), len(records) - len(errors), ran, failed, elsewhere, path)


def _is_due(record: CellRecord | None, only_code: str | None) -> bool:
    return record is None or record.error is not None or (only_code is not None and record.code != only_code)


class _Crew:
    """One process at work on an experiment: loads the base once, and makes the tasks of neighbouring cells once."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        code: str,
        data: Path | None,
        make_bench: Callable[[str, str], Runs] | None,
        make_tasks: MakeTasks | None,
        before: dict[str, CellRecord | None],
    ) -> None:
        self._experiment, self._store, self._code, self._data, self._before = experiment, store, code, data, before
        self._make_bench = make_bench or _default_bench
        self._make_tasks = make_tasks or _default_tasks
        self._bench: Runs | None = None
        self._tasks: tuple[Any, list[Task]] | None = None
        self._environment = environment()  # now, since the sources may be edited while a long experiment runs
        self.ran: list[str] = []

    def check_tasks(self, cells: Sequence[Cell]) -> None:
        """Make each set of tasks once, so that a name that nobody knows is found now and not after hours."""
        seen = set()
        for cell in cells:
            if (cell.tasks, cell.examples) not in seen:
                seen.add((cell.tasks, cell.examples))
                self._tasks_of(cell)

    def work(self, pending: list[Cell], share: int, names: dict[str, str], bar: Bar, log: Log) -> list[Cell]:
        """Run the cells that are due; those that other processes hold come last, and are returned if they still do."""
        done = share - len(pending)
        while pending:
            held = []
            for cell in pending:
                bar.start(done, names[cell.key])
                with claimed(self._store.lock(cell)) as mine:
                    if not mine:
                        held.append(cell)
                        continue
                    done += 1
                    if self._store.read(cell) != self._before[cell.key]:
                        continue  # another process has run it meanwhile
                    record = self._run(cell, bar)
                    self._store.write(record)
                self.ran.append(names[cell.key])
                log(f"{done}/{share} {names[cell.key]}: {result_line(record)}")
            if len(held) == len(pending):
                return held
            pending = held
        return []

    def _run(self, cell: Cell, bar: Bar) -> CellRecord:
        if self._bench is None:  # a base that cannot be loaded is no fault of this cell
            self._bench = self._make_bench(self._experiment.base, self._experiment.dtype)
        try:
            record = self._bench.run(cell, self._tasks_of(cell), bar.step)
            record = CellRecord.model_validate_json(record.model_dump_json())  # no number that JSON does not know
        except Exception as error:
            record = CellRecord(cell=cell, error=describe_error(error))
        made = self._environment | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        return record.model_copy(update={"code": self._code, "environment": made})

    def _tasks_of(self, cell: Cell) -> list[Task]:
        wanted: dict[str, Any] = {"examples": cell.examples, "seed": cell.seed, "regime": cell.regime}
        wanted |= {"val": cell.test, "test": cell.test, "data": self._data}
        if self._tasks is None or self._tasks[0] != (cell.tasks, wanted):
            self._tasks = ((cell.tasks, wanted), self._make_tasks(list(cell.tasks), **wanted))
        return self._tasks[1]


def _default_bench(base: str, dtype: str) -> Runs:
    from colora.experiments.methods.runner import Bench

    return Bench(base, dtype)


def _default_tasks(names: Sequence[str], **wanted: Any) -> list[Task]:
    from colora.tasks.families.make import make_tasks

    return make_tasks(names, **wanted)
