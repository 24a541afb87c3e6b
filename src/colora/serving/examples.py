"""Examples of a new task in the body of a request: JSON Lines that the trainer can read, or refused at once."""

import tempfile
from pathlib import Path

from colora.common.json_text import JsonFault, parse_json
from colora.errors import ConfigError, TaskFileError
from colora.tasks.faults import describe
from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource

__all__ = ["ExamplesError", "check_readable"]

FORMAT = 'JSON Lines: on each line an object as {"input": "...", "output": "..."}'


class ExamplesError(ConfigError):
    """Examples that nothing can be trained on; it names each fault with its line."""

    def __init__(self, faults: list[str]) -> None:
        some = f"{len(faults)} faults" if len(faults) != 1 else "1 fault"
        super().__init__(f"{some} in the examples; nothing was trained:", faults)


def check_readable(task: str, content: bytes) -> None:
    """Refuse examples that nothing could be trained on, whatever is beside them.

    Args:
        task: name of the new task.
        content: JSON Lines, UTF-8.

    Raises:
        ExamplesError: with at most 20 faults, and the number of others.
    """
    _check_format(content)
    with tempfile.TemporaryDirectory(prefix="colora-examples-") as folder:
        file = Path(folder) / "examples.jsonl"
        file.write_bytes(content)
        try:
            read_tasks([TaskSource(name=task, path=str(file), val=0, test=0)])
        except TaskFileError as error:
            raise ExamplesError([_without_file(fault, str(file)) for fault in error.faults]) from None


def _check_format(content: bytes) -> None:
    """Refuse another format by its first line: what the reader of files advises, to rename it, helps nobody here."""
    text = content.decode("utf-8-sig", "replace")
    lines = enumerate(text.split("\n" if "\n" in text else "\r"), start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not number:
        raise ExamplesError([f"expected {FORMAT}; found none"])
    try:
        value = parse_json(first)
    except JsonFault as fault:
        if not fault.column:  # JSON, but none that says one thing: the reader tells
            return
        found = f"bad JSON, {fault} at column {fault.column}"
    else:
        if isinstance(value, dict):
            return
        found = describe(value)
    raise ExamplesError([f"line {number}: expected {FORMAT}; found {found}"])


def _without_file(fault: str, file: str) -> str:
    """A fault at "FILE:LINE: ..." as one of the body of a request, whose files are nobody's business."""
    place, colon, told = fault.partition(": ")
    line = place.removeprefix(file).removeprefix(":")
    return (f"line {line}{colon}{told}" if line else told).replace(file, "the examples")
