"""JSON Lines and JSON files to rows."""

import json
import re

from colora.common.json_text import JsonFault, parse_json
from colora.tasks.faults import Faults, describe, quoted
from colora.tasks.formats.natural_instructions import is_natural_instructions, natural_instructions_rows
from colora.tasks.tables import Row

__all__ = ["json_rows", "jsonl_rows"]

_ONE_A_LINE = "write each example on a line of its own, or a list of all into a .json file"

_TABLE = "Then name it .csv (commas) or .tsv (tabs)"


def jsonl_rows(file: str, text: str, faults: Faults, first_line: int = 1) -> list[Row]:
    """One object a line. Not `splitlines()`: it also splits at U+2028 and others, which JSON strings may hold.

    Args:
        first_line: number of the text's first line in the file.
    """
    rows = []
    first = first_line == 1
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=first_line):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except JsonFault as error:
            if first and _spans_lines(text):
                faults.add(file, f"expected a JSON object a line, found one over several lines; {_ONE_A_LINE}", number)
                return []
            if first and _is_header(line):
                found = f'a line without "{{": {line.strip()[:80]!r}'
                faults.add(file, f"expected a JSON object a line, found {found}; is it a table? {_TABLE}", number)
                return []
            faults.add(file, f"expected a JSON object, found bad JSON: {_told(error)}", number)
        else:
            if isinstance(value, dict):
                rows.append(Row(value, number))
            else:
                more = f"; {_ONE_A_LINE}" if isinstance(value, list) and value and isinstance(value[0], dict) else ""
                faults.add(file, f"expected a JSON object, found {describe(value)}{more}", number)
        first = False
    return rows


def json_rows(file: str, text: str, faults: Faults) -> list[Row]:
    """A list of objects, or a task of Natural Instructions."""
    wanted = 'expected a list of examples or a Natural Instructions object with "Definition" and "Instances"'
    if not text.strip():
        return []
    try:
        value = parse_json(text)
    except JsonFault as error:
        more = "; is it JSON Lines? Then name it .jsonl" if error.message == "Extra data" else ""
        faults.add(file, f"expected JSON, found {_told(error)}{more}", error.line or None)
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


def _told(error: JsonFault) -> str:
    return f"{error} at column {error.column}" if error.column else str(error)


def _is_header(line: str) -> bool:
    """Whether a first line looks like the header of a table with separators."""
    return ("," in line or "\t" in line) and not set("{}[]") & set(line)


def _spans_lines(text: str) -> bool:
    """Whether the text begins with one JSON value that ends on a later line."""
    try:
        _, end = json.JSONDecoder().raw_decode(text, re.match(r"\s*", text).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end].strip()
