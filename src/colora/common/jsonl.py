"""Files of records, one JSON object a line: read line by line, written atomically, appended to atomically."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from colora.common.files import write_text
from colora.common.systems import patiently
from colora.errors import ColoraError

__all__ = ["append_jsonl", "model_parser", "read_jsonl", "write_jsonl"]

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


def read_jsonl(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """What `parse` makes of each line of a file that is not empty.

    Raises:
        ColoraError: with one "file:line: ..." for each line at which `parse` raised it.
        OSError: if the file cannot be read.
    """
    records, faults = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(parse(line))
        except ColoraError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        raise ColoraError("\n".join(faults))
    return records


def model_parser(model: type[Model]) -> Callable[[bytes], Model]:
    """For `read_jsonl`: a line as a pydantic model; the ColoraError names the first field at fault."""

    def parse(line: bytes) -> Model:
        try:
            return model.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ColoraError(f"{field + ': ' if field else ''}{first['msg']}") from None

    return parse


def write_jsonl(path: Path, lines: Iterable[str]) -> None:
    """Write a file of these lines atomically, in place of an old one.

    Raises:
        CheckpointError: if the file cannot be written; it is then as before.
    """
    write_text(path, "".join(f"{line}\n" for line in lines))


def append_jsonl(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Add lines to a file, which is created if need be; a last line without an end gets one first.

    The new content is written beside the file and renamed over it: whatever interrupts the write, the file holds all
    of the new lines or none. One process at a time may append to a file.

    Raises:
        OSError: if the file cannot be written; it is then as before.
    """
    added = "".join(f"{line}\n" for line in lines)
    target = Path(os.path.realpath(path))  # a link stays a link
    before = target.read_bytes() if target.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(before + added.encode())
            file.flush()
            os.fsync(file.fileno())
        patiently(partial(os.replace, beside, target))
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
