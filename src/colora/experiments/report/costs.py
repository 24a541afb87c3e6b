"""What the methods cost: parameters to store as tasks come, and bytes sent between clients and server."""

from collections.abc import Sequence
from statistics import fmean

from colora.experiments.report.gather import Experiment, Place, Row
from colora.experiments.report.measures import measures
from colora.experiments.report.quality import bytes_entries, quality_entries
from colora.experiments.report.tables import NOTHING, Entry, Table, bytes_text, code_notes, count_text, table
from colora.experiments.trial import TrialRecord

__all__ = ["BYTES_PER_PARAMETER", "MANY_TASKS", "bytes_moved", "federated_table", "is_federated", "storage_tables"]

BYTES_PER_PARAMETER = 4  # fp32
MANY_TASKS = (10, 100, 1000)


def storage_tables(experiment: Experiment) -> list[Table]:
    """Parameters trained and kept, and bytes as tasks are added; one table for all groups with the same ones."""
    sizes: dict[tuple[str, int, tuple[str, ...]], dict[tuple[str, int, int, int], None]] = {}
    regimes: dict[tuple[str, int, tuple[str, ...]], list[str]] = {}
    for place, rows in experiment.places.items():
        key = (place.group, place.tasks, place.rest)
        if place.regime not in regimes.setdefault(key, []):
            regimes[key].append(place.regime)
        for row in rows:
            for one in row.records:
                sizes.setdefault(key, {})[row.label, one.trainable, one.shared_numbers, one.task_numbers] = None
    headers = ["method", "trained parameters", "shared parameters", "parameters per task", "a new task"]
    headers += [f"{count_text(tasks)} tasks" for tasks in MANY_TASKS]
    titles: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for (group, tasks, rest), lines in sizes.items():
        shown = tuple((label, *_size_texts(trainable, shared, own)) for label, trainable, shared, own in lines)
        where = " and ".join(regimes[group, tasks, rest])
        title = " · ".join([f"{group} · {where} · trained with {tasks} task{'' if tasks == 1 else 's'}", *rest])
        titles.setdefault(shown, []).append(title)
    notes = [*code_notes(experiment), "Bytes at fp32, four per parameter, of what is kept beside the base model."]
    return [table("; ".join(of), headers, shown, notes) for shown, of in titles.items()]


def _size_texts(trainable: int, shared: int, own: int) -> tuple[str, ...]:
    """The three counts, the bytes of a new task, and the bytes of many tasks."""
    stored = [own, *(shared + tasks * own for tasks in MANY_TASKS)]
    return (
        *map(count_text, (trainable, shared, own)),
        *(bytes_text(BYTES_PER_PARAMETER * number) for number in stored),
    )


def is_federated(experiment: Experiment, place: Place) -> bool:
    """Whether bytes were counted for any method at this place."""
    return any(one.bytes_up is not None for row in experiment.places[place] for one in row.records)


def federated_table(experiment: Experiment, place: Place) -> Table:
    """Rounds, bytes over all clients and rounds, and quality, of the methods that count bytes."""
    rows = [row for row in experiment.places[place] if _counts_bytes(row)]
    metrics = [metric for metric in measures() if any(row.sample.seed_means(metric.name) for row in rows)]
    rounds = [_span([one.rounds for one in row.records]) for row in rows]
    local = [_span([one.trial.local_steps for one in row.records]) for row in rows]
    totals = [[total for one in row.records if (total := bytes_moved(one)) is not None] for row in rows]
    columns: list[Sequence[str | Entry]] = [
        [row.label for row in rows],
        rounds,
        local,
        bytes_entries(rows, "bytes_up"),
        bytes_entries(rows, "bytes_down"),
        [bytes_text(fmean(total)) if total else NOTHING for total in totals],
        *(quality_entries(rows, metric) for metric in metrics),
    ]
    headers = [
        "method",
        "rounds",
        "steps a round",
        "bytes up",
        "bytes down",
        "up and down",
        *(m.title for m in metrics),
    ]
    notes = [*code_notes(experiment), "Bytes are over all clients and rounds, the mean over seeds."]
    return table(place.title, headers, list(zip(*columns, strict=True)), notes)


def _counts_bytes(row: Row) -> bool:
    return any(one.bytes_up is not None or one.bytes_down is not None for one in row.records)


def bytes_moved(record: TrialRecord) -> int | None:
    """Bytes up and down together; None if either was not counted."""
    return None if record.bytes_up is None or record.bytes_down is None else record.bytes_up + record.bytes_down


def _span(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return ", ".join(map(str, known)) or NOTHING
