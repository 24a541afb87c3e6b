"""From files of records to experiments, their places, and the rows at each place.

An experiment is a file. A place is where methods can be compared: a group of tasks, a regime, a number of
examples and of tasks, and whatever else decides what is measured. A row is a method at a place; where an
experiment tries several settings of one method at the same place, each is a row, and its label says what differs
within the group.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from colora.common.text import shortened
from colora.errors import ColoraError
from colora.experiments.report.measures import measures
from colora.experiments.report.methods import REFERENCES, method_order
from colora.experiments.report.statistics import Sample
from colora.experiments.trial import Trial, TrialRecord, read_trial_records

__all__ = ["Experiment", "Place", "Row", "read_experiments", "reference_row", "setting"]

_PLACE = ("base", "dtype", "split", "test", "generate", "max_length", "max_new_tokens")
_SETTINGS = tuple(
    name
    for name in Trial.model_fields
    if name not in {"method", "group", "tasks", "regime", "examples", "seed", *_PLACE}
)
MOST_FAULTS = 3


@dataclass(frozen=True)
class Place:
    """Where methods are compared; `rest` holds what else decides the measurement, if the experiment varies it."""

    group: str
    regime: str
    examples: int
    tasks: int
    rest: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.describe()

    def describe(self, without: str = "") -> str:
        """The place in words; `without` names a field to leave out."""
        examples = [] if without == "examples" else [f"{_count(self.examples, 'example')} a task"]
        tasks = [] if without == "tasks" else [_count(self.tasks, "task")]
        return " · ".join([self.group, self.regime, *examples, *tasks, *self.rest])


@dataclass(frozen=True)
class Row:
    """A method at a place, with the trials of all its seeds.

    Attributes:
        label: the method's name and the settings in which its rows differ.
        settings: those settings alone, by name.
        judged_by: see `Experiment`.
    """

    method: str
    label: str
    settings: dict[str, object]
    records: tuple[TrialRecord, ...]
    judged_by: str | None = None

    @cached_property
    def sample(self) -> Sample:
        return Sample(self.records)


@dataclass(frozen=True)
class Experiment:
    """The records of one file; those of failed trials apart.

    Attributes:
        judged_by: name of the metric that tells which method is better; None: see `main_measure`.
    """

    name: str
    records: tuple[TrialRecord, ...]
    failed: tuple[TrialRecord, ...] = ()
    repeated: int = field(default=0)  # records of a trial that a later record of the same trial replaced
    judged_by: str | None = None

    @classmethod
    def of(cls, name: str, records: Sequence[TrialRecord]) -> "Experiment":
        """The last record of each trial counts."""
        last = {record.trial.key: record for record in records}
        ended = tuple(record for record in last.values() if record.error is None)
        failed = tuple(record for record in last.values() if record.error is not None)
        return cls(name, ended, failed, len(records) - len(last))

    @cached_property
    def codes(self) -> dict[str, int]:
        """How many trials each digest of the sources gave."""
        return dict(sorted(Counter(record.code or "unknown" for record in (*self.records, *self.failed)).items()))

    @cached_property
    def places(self) -> dict[Place, list[Row]]:
        """The rows at each place, both in the order in which they are shown."""
        # What each group has alike all through says nothing that the group's name does not.
        values = {(name, one.trial.group, getattr(one.trial, name)) for one in self.records for name in _PLACE}
        times = Counter((name, group) for name, group, _ in values)
        varied = [name for name in _PLACE if any(times[name, group] > 1 for _, group in times)]
        at: dict[Place, list[TrialRecord]] = {}
        for record in self.records:
            trial = record.trial
            rest = tuple(f"{name}={setting(trial, name)}" for name in varied)
            at.setdefault(Place(trial.group, trial.regime, trial.examples, len(trial.tasks), rest), []).append(record)
        differing = _differing(at.values())
        places = sorted(at, key=lambda one: (one.group, one.regime != "implicit", one.rest, one.tasks, one.examples))
        return {
            place: [replace(row, judged_by=self.judged_by) for row in _rows(at[place], differing)] for place in places
        }


def read_experiments(path: Path, mixed: bool = False) -> list[Experiment]:
    """The experiments of a JSONL file of trial records, or of a folder of such files, each named by its file.

    Args:
        path: the file or folder.
        mixed: whether an experiment may hold records of several digests of the sources.

    Raises:
        ColoraError: if there is nothing to read, for lines that are no trial records, and for mixed digests.
    """
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise ColoraError(f"{path}: expected JSONL files of trial records in this folder, found none")
    elif path.is_file():
        files = [path]
    else:
        raise ColoraError(f"{path}: expected a JSONL file of trial records or a folder of them, found neither")
    experiments = [Experiment.of(file.stem, _read(file)) for file in files]
    for file, one in zip(files, experiments, strict=True):
        if len(one.codes) > 1 and not mixed:
            found = ", ".join(f"{code} ({_count(number, 'trial')})" for code, number in one.codes.items())
            raise ColoraError(
                f"{file}: expected records of one version of the code, found several digests: {found}. Run "
                "the older trials again, or report all of them with --mixed"
            )
    return experiments


def reference_row(rows: Sequence[Row], name: str | None = None) -> Row | None:
    """The row that others are compared with: colora's, or federated colora's; of several the best by `measures`.

    With a name it is that method's.
    """
    for method in REFERENCES if name is None else (name,):
        found = [row for row in rows if row.method == method]
        if found:
            return max(found, key=_rank)
    return None


def _rank(row: Row) -> list[float]:
    """Higher is better, by the first metric that ranks; the next ones decide between equals."""
    ranking = [metric for metric in measures() if metric.ranks]
    return [(1 if metric.higher_is_better else -1) * (row.sample.mean(metric.name) or 0.0) for metric in ranking]


def setting(trial: Trial, name: str) -> str:
    """A setting for readers; `name` is a field of the trial or one of its options."""
    value = _value(trial, name)
    if name == "core_lr" and value is None:
        return "as lr"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _read(file: Path) -> list[TrialRecord]:
    try:
        records = read_trial_records(file)
    except OSError as error:
        raise ColoraError(f"{file}: expected a readable file of trial records, found: {error.strerror}") from error
    except ColoraError as error:
        faults = str(error).splitlines()
        head = f"{file}: expected a trial record on each line, found"
        raise ColoraError("\n  ".join([head, *shortened(faults, MOST_FAULTS)])) from error
    if not records:
        raise ColoraError(f"{file}: expected a trial record on each line, found an empty file")
    return records


def _differing(places: Iterable[list[TrialRecord]]) -> dict[tuple[str, str], list[str]]:
    """For each group and method the settings that take several values at one place, in the order of the fields."""
    found: dict[tuple[str, str], set[str]] = {}
    names = list(_SETTINGS)
    names.remove("options")
    for records in places:
        options = sorted({option for record in records for option in record.trial.options})
        names += [option for option in options if option not in names]
        for method in {record.trial.method for record in records}:
            trials = [record.trial for record in records if record.trial.method == method]
            varied = {name for name in names if len({setting(trial, name) for trial in trials}) > 1}
            found.setdefault((records[0].trial.group, method), set()).update(varied)
    return {key: [name for name in names if name in varied] for key, varied in found.items()}


def _rows(records: list[TrialRecord], differing: dict[tuple[str, str], list[str]]) -> list[Row]:
    found: dict[tuple[str, tuple[str, ...]], list[TrialRecord]] = {}
    for record in records:
        values = tuple(setting(record.trial, name) for name in differing[record.trial.group, record.trial.method])
        found.setdefault((record.trial.method, values), []).append(record)
    rows = []
    for (method, values), of_row in found.items():
        names = differing[of_row[0].trial.group, method]
        label = ", ".join([method, *(f"{name}={value}" for name, value in zip(names, values, strict=True))])
        trial = of_row[0].trial
        settings = {name: _value(trial, name) for name in names}
        rows.append(
            Row(method, label, settings, tuple(sorted(of_row, key=lambda one: (one.trial.seed, one.trial.tasks))))
        )
    return sorted(rows, key=lambda row: (method_order(row.method), [_sortable(v) for v in row.settings.values()]))


def _value(trial: Trial, name: str) -> object:
    return getattr(trial, name) if name in Trial.model_fields else trial.options.get(name)


def _sortable(value: object) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, (int, float)) else (float("-inf"), str(value))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
