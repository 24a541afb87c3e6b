"""Files to tables: JSONL, CSV and JSON become rows of named values, each of which knows its place in the file."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colora.common.json_text import JsonFault, parse_json
from colora.tasks.faults import Faults, describe, quoted
from colora.tasks.natural_instructions import is_natural_instructions, natural_instructions_rows

__all__ = ["SUFFIXES", "Row", "Table", "read_table"]


@dataclass(frozen=True)
class Row:
    """One record: its values by column, and its place, a line number or a path such as Instances[12]."""

    values: dict[str, Any]
    place: int | str


@dataclass(frozen=True)
class Table:
    """The rows of one file or split; `columns` holds every column that any row has."""

    file: str
    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: Path, faults: Faults) -> Table:
    """Reads one file by its suffix; what cannot be read is left out and noted in `faults`."""
    file, before = str(path), len(faults)
    text = _read_text(path, faults)
    rows = [] if text is None else _READERS[path.suffix.lower()](file, text, faults)
    if not rows and len(faults) == before:
        faults.add(file, "expected at least one example, found none")
    columns = dict.fromkeys(column for row in rows for column in row.values)
    return Table(file, tuple(columns), rows)


def _read_text(path: Path, faults: Faults) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.add(str(path), f"expected a readable file, found {error.strerror or error}")
    except UnicodeDecodeError as error:
        # `error.object` lacks a byte-order mark that the codec has taken off: count it in again.
        offset = error.start + path.stat().st_size - len(error.object)
        line = error.object[: error.start].count(b"\n") + 1
        bad = error.object[error.start]
        faults.add(str(path), f"expected UTF-8 text, found the byte 0x{bad:02x} at byte offset {offset}", line)
    return None


def _jsonl_rows(file: str, text: str, faults: Faults) -> list[Row]:
    rows = []
    # Not splitlines(): it also splits at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except JsonFault as error:
            column = f" at column {error.column}" if error.column else ""
            faults.add(file, f"expected a JSON object, found bad JSON: {error}{column}", number)
        else:
            if isinstance(value, dict):
                rows.append(Row(value, number))
            else:
                faults.add(file, f"expected a JSON object, found {describe(value)}", number)
    return rows


def _csv_rows(file: str, text: str, faults: Faults) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    rows, line = [], 1
    try:
        for cells in reader:
            # A quoted cell may span lines, and the reader counts those it has consumed: a row begins one after.
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    faults.add(file, f"expected column names that differ, found {quoted(header)}", start)
                    return []
            elif len(cells) != len(header):
                faults.add(file, f"expected {len(header)} columns, found {len(cells)}", start)
            else:
                rows.append(Row(dict(zip(header, cells, strict=True)), start))
    except csv.Error as error:
        faults.add(file, f"expected CSV, found {error}", line)
    return rows


def _json_rows(file: str, text: str, faults: Faults) -> list[Row]:
    wanted = 'expected a list of examples or a Natural Instructions object with "Definition" and "Instances"'
    if not text.strip():
        return []
    try:
        value = parse_json(text)
    except JsonFault as error:
        column = f" at column {error.column}" if error.column else ""
        faults.add(file, f"expected JSON, found {error}{column}", error.line or None)
        return []
    if isinstance(value, list):
        named = [(f"[{index}]", item) for index, item in enumerate(value)]
    elif is_natural_instructions(value):
        named = natural_instructions_rows(file, value, faults)
    else:
        found = f"an object with {quoted(value)}" if isinstance(value, dict) else describe(value)
        faults.add(file, f"{wanted}, found {found}")
        return []
    for place, item in named:
        if not isinstance(item, dict):
            faults.add(file, f"expected an object, found {describe(item)}", place)
    return [Row(item, place) for place, item in named if isinstance(item, dict)]


_READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".json": _json_rows}
SUFFIXES = tuple(_READERS)
