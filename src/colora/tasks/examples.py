"""Rows to examples: every value is checked, and every fault is noted with its place."""

from typing import Any

from colora.tasks.faults import Faults, describe, quoted
from colora.tasks.schema import Example, TaskSource
from colora.tasks.tables import Row, Table

__all__ = ["table_examples", "table_groups"]


def table_examples(table: Table, source: TaskSource, faults: Faults) -> list[Example]:
    """The examples of one table; rows with faults are left out and noted in `faults`."""
    columns = _columns(table, source, faults)
    if columns is None:
        return []
    examples = (_example(row, columns, table, source, faults) for row in table.rows)
    return [example for example in examples if example is not None]


def table_groups(table: Table, column: str, faults: Faults) -> list[str | int]:
    """What a column says of each row of a table whose examples have no faults; faults of the column are noted."""
    groups: list[str | int] = []
    for row in table.rows:
        value = row.values.get(column)
        if isinstance(value, str | int) and str(value).strip():
            groups.append(value)
        else:
            found = describe(value) if column in row.values else quoted(row.values)
            faults.add(
                table.file, f'expected a text or a whole number in "{column}" (group_by), found {found}', row.place
            )
    return groups


def _columns(table: Table, source: TaskSource, faults: Faults) -> dict[str, tuple[str, ...]] | None:
    """Our field names to the columns that may hold them; None, with one fault each, if the table lacks any."""
    if not table.rows:
        return None
    names: dict[str, tuple[str, ...]] = {
        "input": ("input",),
        "output": ("output", "outputs"),
        "instruction": ("instruction",),
    }
    # A column that no row has is one fault, not one per row. CSV rows stand below the header that lacks it.
    place = 1 if table.file.lower().endswith(".csv") else table.rows[0].place
    complete = True
    for field, candidates in names.items():
        if field in source.fields:
            names[field] = (source.fields[field],)
        elif field == "instruction":
            continue
        if not set(names[field]) & set(table.columns):
            complete = False
            wanted = f'the column "{names[field][0]}"' if field in source.fields else f'a field "{candidates[0]}"'
            faults.add(table.file, f"expected {wanted} for the {field}, found {quoted(table.columns)}", place)
    return names if complete else None


def _example(
    row: Row, columns: dict[str, tuple[str, ...]], table: Table, source: TaskSource, faults: Faults
) -> Example | None:
    before = len(faults)

    def fault(column: str, message: str) -> None:
        # A line number says where; a JSON path can say it to the field.
        place = row.place if isinstance(row.place, int) else f"{row.place}.{column}"
        faults.add(table.file, message, place)

    def lookup(field: str) -> tuple[str, Any]:
        present = [column for column in columns[field] if column in row.values]
        if len(present) > 1:
            fault(present[0], f"expected one of {quoted(present)}, found both")
        column = present[0] if present else columns[field][0]
        if not present and field != "instruction":
            fault(column, f'expected a field "{column}", found {quoted(row.values)}')
        return column, row.values.get(column)

    def check(column: str, label: str, value: object, expected: str = "text", empty: bool = False) -> None:
        if not isinstance(value, str) or not (empty or value.strip()):
            fault(column, f'expected {expected} in "{label}", found {describe(value)}')
        elif any("\ud800" <= char <= "\udfff" for char in value):
            # JSON may escape half a character, and no tokenizer takes it.
            fault(column, f'expected Unicode text in "{label}", found a lone surrogate')

    instruction = source.instruction
    if instruction is None:
        column, value = lookup("instruction")
        if value is not None:
            check(column, column, value, empty=True)
            instruction = value if isinstance(value, str) and value.strip() else None

    column, text = lookup("input")
    if column in row.values:
        without = instruction is None
        check(column, column, text, "text (empty only beside an instruction)" if without else "text", not without)

    column, outputs = lookup("output")
    if column in row.values:
        if isinstance(outputs, (list, tuple)) and outputs:
            for index, output in enumerate(outputs):
                check(f"{column}[{index}]", f"{column}[{index}]", output)
        else:
            check(column, column, outputs, "text or a list of texts")
            outputs = [outputs]
    return Example(text, tuple(outputs), instruction) if len(faults) == before else None
