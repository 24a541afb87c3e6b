"""The history of a federation: metric records of each round, in the form of those of evaluation."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from colora.common.systems import patiently
from colora.evaluation.records import Record, append_records, read_records
from colora.federated.aggregate import RoundReport
from colora.federated.state import Broadcast, Reply, message_bytes

__all__ = ["ALL", "RoundCost", "history_line", "round_cost", "round_records", "write_round"]

METHOD = "colora-federated"
ALL = "all clients"


@dataclass(frozen=True)
class RoundCost:
    """What a round cost.

    Attributes:
        up: bytes of tensors from all clients.
        down: bytes of tensors to all clients.
        seconds: duration of the round.
        epsilon: privacy spent so far; None without differential privacy.
    """

    up: int
    down: int
    seconds: float
    epsilon: float | None = None


def round_cost(
    messages: Iterable[Broadcast], replies: Iterable[Reply], seconds: float, epsilon: float | None = None
) -> RoundCost:
    """The cost of a round with these messages and replies."""
    up = sum(message_bytes(reply.payload) for reply in replies)
    down = sum(message_bytes(message.factors) for message in messages)
    return RoundCost(up, down, seconds, epsilon)


def round_records(run: str, seed: int, report: RoundReport, cost: RoundCost) -> list[Record]:
    """A round as records; `split` is "round N", and reasons of dropped replies are in the metric's name."""
    metrics = {
        "accepted": len(report.accepted),
        "dropped": len(report.dropped),
        "void": int(report.void),
        "bytes_up": cost.up,
        "bytes_down": cost.down,
        "seconds": cost.seconds,
    } | ({} if cost.epsilon is None else {"epsilon": cost.epsilon})

    def record(task: str, metric: str, value: float) -> Record:
        return Record(run, METHOD, task, f"round {report.round}", metric, value, 1, seed)

    return [
        *(record(ALL, metric, value) for metric, value in metrics.items()),
        *(record(client, "train_nll", loss) for client, loss in report.losses.items()),
        *(record(client, f"dropped: {why}", 1) for client, why in report.dropped.items()),
    ]


def write_round(file: Path, records: list[Record]) -> None:
    """Append a round's records, in place of any that the file has of this and later rounds, which a crash undid."""
    number = _round_number(records[0])
    before = read_records(file) if file.is_file() else []
    kept = [record for record in before if _round_number(record) < number]
    if len(kept) == len(before):
        append_records(file, records)
        return
    staged = file.with_name(f".{file.name}.new")
    staged.unlink(missing_ok=True)
    append_records(staged, [*kept, *records])
    patiently(partial(os.replace, staged, file))


def _round_number(record: Record) -> int:
    """The number in a record's `split`, "round N"."""
    return int(record.split.split()[1])


def history_line(report: RoundReport, cost: RoundCost, rounds: int) -> str:
    """A round as a line of the log, and a line for each reply that was dropped."""
    losses = list(report.losses.values())
    loss = f", loss {sum(losses) / len(losses):.3f}" if losses else ""
    epsilon = "" if cost.epsilon is None else f", epsilon {cost.epsilon:.2f}"
    line = (
        f"round {report.round + 1} of {rounds}: {len(report.accepted)} clients{loss}, {cost.up / 1e6:.2f} MB up, "
        f"{cost.down / 1e6:.2f} MB down, {cost.seconds:.1f} s{epsilon}"
    )
    dropped = [f"{client}: {why}" for client, why in report.dropped.items()]
    return "\n  dropped ".join([line + (", does not count" if report.void else ""), *dropped])
