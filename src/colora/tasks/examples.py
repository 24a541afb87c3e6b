"""Rows to examples: every value is checked, and every fault is noted with its place."""

import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

from colora.common.yaml import near
from colora.tasks.conversations import conversation_example, text_fault
from colora.tasks.faults import Faults, describe, quoted
from colora.tasks.schema import Example, TaskSource
from colora.tasks.tables import Row, Table

__all__ = ["row_group", "row_reader", "table_examples", "table_groups", "used_columns"]

_NAMES: dict[str, tuple[str, ...]] = {
    "input": ("input",),
    "output": ("output", "outputs"),
    "instruction": ("instruction",),
}
_TRL_NAMES = _NAMES | {"input": ("prompt",), "output": ("completion",)}
_TURNS = "messages"


def table_examples(table: Table, source: TaskSource, faults: Faults) -> list[Example]:
    """The examples of one table; rows with faults are left out and noted in `faults`.

    A table without inputs and outputs may have conversations in "messages", or "prompt" and "completion" as TRL has
    them, both texts or both lists of turns.
    """
    read = row_reader(table, source, faults)
    examples = [] if read is None else [read(row) for row in table.rows]
    return [example for example in examples if example is not None]


def row_reader(table: Table, source: TaskSource, faults: Faults) -> Callable[[Row], Example | None] | None:
    """What makes examples of the rows of this table, and of further rows of its file; None if it has none.

    It gives None for a row with faults, which are noted in `faults`; columns that no row of the table has are one
    fault, noted now.
    """
    if not table.rows:
        return None
    columns = _TRL_NAMES if _is_plain(table, source) and _has(table, "prompt", "completion") else _NAMES
    if columns is _NAMES and _is_plain(table, source) and _has(table, _TURNS):
        return partial(_conversation, columns=(_TURNS,), table=table, source=source, faults=faults)
    if columns is _TRL_NAMES and any(isinstance(row.values.get("prompt"), list | tuple) for row in table.rows):
        turns = ("prompt", "completion")
        return partial(_conversation, columns=turns, table=table, source=source, faults=faults)
    named = _columns(table, columns, source, faults)
    return None if named is None else partial(_example, columns=named, table=table, source=source, faults=faults)


def table_groups(table: Table, column: str, faults: Faults) -> list[str]:
    """What a column says of each row of a table whose examples have no faults; faults of the column are noted.

    The number 1 and the text "1" are one group, and so are texts that differ in white space or composition alone.
    """
    found = [row_group(table.file, row, column, "group_by", faults) for row in table.rows]
    return [group for group in found if group is not None]


def row_group(file: str, row: Row, column: str, field: str, faults: Faults) -> str | None:
    """The same of one row; None with a fault that names the run file's `field`."""
    present, value = row.find(column)
    if isinstance(value, str | int) and (text := " ".join(unicodedata.normalize("NFC", str(value)).split())):
        return text
    found = describe(value) if present else quoted(row.values)
    faults.add(file, f'expected a text or a whole number in "{column}" ({field}), found {found}', row.place)
    return None


def used_columns(source: TaskSource) -> set[str]:
    """The columns that examples of this source may be made of; of a dotted name also its first part."""
    named = [*source.fields.values(), *([] if source.group_by is None else [source.group_by])]
    ours = [name for names in (*_NAMES.values(), *_TRL_NAMES.values()) for name in names]
    return {*ours, _TURNS, "tools", *named, *(name.split(".")[0] for name in named)}


def _is_plain(table: Table, source: TaskSource) -> bool:
    """Whether neither the source nor the table says where inputs and outputs are."""
    ours = [name for field in ("input", "output") for name in _NAMES[field]]
    return not {"input", "output"} & source.fields.keys() and not any(map(table.has, ours))


def _has(table: Table, *columns: str) -> bool:
    return all(map(table.has, columns))


def _columns(
    table: Table, columns: dict[str, tuple[str, ...]], source: TaskSource, faults: Faults
) -> dict[str, tuple[str, ...]] | None:
    """Our field names to the columns that may hold them; None, with one fault each, if the table lacks any."""
    names = dict(columns)
    # A column that no row has is one fault, not one per row. CSV rows stand below the header that lacks it.
    place = 1 if ".csv" in table.file.lower()[-7:] or ".tsv" in table.file.lower()[-7:] else table.rows[0].place
    complete = True
    for field in columns:
        if field in source.fields:
            names[field] = (source.fields[field],)
        elif field == "instruction":
            continue
        if not any(map(table.has, names[field])):
            complete = False
            wanted = f'the column "{names[field][0]}"' if field in source.fields else f'a field "{names[field][0]}"'
            found = f"{quoted(table.columns)}{_hint(table, source, field)}"
            faults.add(table.file, f"expected {wanted} for the {field}, found {found}", place)
    return names if complete else None


def _hint(table: Table, source: TaskSource, field: str) -> str:
    if _has(table, "conversations"):
        return f'; turns are read from "{_TURNS}", each with "role" and "content"'
    if field in source.fields:
        return near(source.fields[field], table.columns)
    return f"; `fields: {{{field}: COLUMN}}` in a run file, or `--field {field}=COLUMN` of a command, names another"


def _conversation(
    row: Row, columns: tuple[str, ...], table: Table, source: TaskSource, faults: Faults
) -> Example | None:
    def fault(column: str, message: str) -> None:
        faults.add(table.file, message, _place(row, column))

    if row.values.get("tools"):
        fault("tools", "expected a conversation without tools, for prompts cannot name them, found some")
        return None
    if columns == (_TURNS,):
        if _TURNS not in row.values:
            fault(_TURNS, f'expected a field "{_TURNS}", found {quoted(row.values)}')
            return None
        return conversation_example(row.values[_TURNS], _TURNS, source.instruction, fault)
    turns: list[Any] = []
    for column in columns:
        value = row.values.get(column)
        if not isinstance(value, list | tuple):
            fault(column, f'expected a list of turns in "{column}", as other rows have it, found {describe(value)}')
            return None
        turns += value
    return conversation_example(turns, "prompt + completion", source.instruction, fault)


def _place(row: Row, column: str) -> str | int:
    # A line number says where; a JSON path can say it to the field.
    return row.place if isinstance(row.place, int) else f"{row.place}.{column}"


def _example(
    row: Row, columns: dict[str, tuple[str, ...]], table: Table, source: TaskSource, faults: Faults
) -> Example | None:
    before = len(faults)

    def fault(column: str, message: str) -> None:
        faults.add(table.file, message, _place(row, column))

    def lookup(field: str) -> tuple[bool, str, Any]:
        found = {column: value for column in columns[field] for there, value in [row.find(column)] if there}
        if len(found) > 1:
            fault(next(iter(found)), f"expected one of {quoted(found)}, found both")
        column = next(iter(found), columns[field][0])
        if not found and field != "instruction":
            fault(column, f'expected a field "{column}", found {quoted(row.values)}')
        return bool(found), column, found.get(column)

    def check(column: str, label: str, value: object, expected: str = "text", empty: bool = False) -> None:
        if not isinstance(value, str) or not (empty or value.strip()):
            fault(column, f'expected {expected} in "{label}", found {describe(value)}')
        elif wrong := text_fault(value):
            fault(column, f'expected Unicode text in "{label}", found {wrong}')

    instruction = source.instruction
    if instruction is None:
        _, column, value = lookup("instruction")
        if value is not None:
            check(column, column, value, empty=True)
            instruction = value if isinstance(value, str) and value.strip() else None

    present, column, text = lookup("input")
    if present:
        without = instruction is None
        check(column, column, text, "text (empty only beside an instruction)" if without else "text", not without)

    present, column, outputs = lookup("output")
    if present:
        if isinstance(outputs, (list, tuple)) and outputs:
            for index, output in enumerate(outputs):
                check(f"{column}[{index}]", f"{column}[{index}]", output)
        else:
            check(column, column, outputs, "text or a list of texts")
            outputs = [outputs]
    return Example(text, tuple(outputs), instruction) if len(faults) == before else None
