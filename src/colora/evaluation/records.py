"""Metric records: one JSON object per line, appended so that an interrupted write leaves the old file whole."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path

from colora.common.jsonl import append_jsonl, read_jsonl
from colora.errors import ColoraError

__all__ = ["Record", "append_records", "read_records"]


@dataclass(frozen=True)
class Record:
    """One measured number.

    Attributes:
        run: which run it belongs to, chosen by the caller.
        method: what was measured, e.g. "CoLoRA".
        task: name of the task.
        split: "train", "dev", "test", ...
        metric: a name of `METRICS` ("rougeL" and "exact_match" in [0, 100], "token_nll" in nats per token), or another.
        value: the number; finite.
        n: how many observations `value` is the mean of: examples, or tokens for "token_nll".
        seed: the seed of the run.

    Raises:
        ColoraError: naming every field with a value of the wrong kind, and a value that is NaN or infinite.
    """

    run: str
    method: str
    task: str
    split: str
    metric: str
    value: float
    n: int
    seed: int

    def __post_init__(self) -> None:
        faults = [
            f"{name}: expected a text, found {found!r}"
            for name in ("run", "method", "task", "split", "metric")
            if not isinstance(found := getattr(self, name), str)
        ]
        if isinstance(self.value, bool) or not isinstance(self.value, Real) or not math.isfinite(self.value):
            faults.append(f"value: expected a finite number, found {self.value!r}")
        else:
            object.__setattr__(self, "value", float(self.value))
        for name, least in (("n", 1), ("seed", None)):
            found = getattr(self, name)
            if isinstance(found, bool) or not isinstance(found, int) or (least is not None and found < least):
                faults.append(f"{name}: expected {'a positive' if least else 'an'} integer, found {found!r}")
        if faults:
            raise ColoraError(f"record of {self.metric!r} for task {self.task!r}: " + "; ".join(faults))


def append_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Add records to a JSONL file, which is created if need be.

    The new content is written beside the file and renamed over it: whatever interrupts the write, the file holds all
    of the new records or none. One process at a time may append to a file; give parallel runs a file each.

    Raises:
        OSError: if the file cannot be written; it is then as before.
    """
    append_jsonl(path, (json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) for record in records))


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """All records of a JSONL file; empty lines are passed over.

    Raises:
        ColoraError: with one "file:line: expected ..., found ..." for each faulty line.
        OSError: if the file cannot be read.
    """
    return read_jsonl(Path(path), _parse)


def _parse(line: bytes) -> Record:
    try:
        found = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        raise ColoraError(f"expected a JSON object, found {_short(line.decode(errors='replace'))}") from None
    if not isinstance(found, dict):
        raise ColoraError(f"expected a JSON object, found {_short(line.decode())}")
    expected = [field.name for field in fields(Record)]
    if set(found) != set(expected):
        raise ColoraError(f"expected the keys {', '.join(expected)}, found {', '.join(found) or 'none'}")
    return Record(**found)


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
