"""Every example of a table, checked, as Arrow on disk: what stays of the table once it has been read.

A row has the name of its task, its place in the table for messages, the split that the table gives it, the texts of the
example, and its value of `group_by`. `datasets` maps the file into memory, so what is not looked at takes none.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colora.common.files import NAME_RULE, fits_name_rule
from colora.tasks.column.source import TasksSource
from colora.tasks.examples import row_group, row_reader
from colora.tasks.faults import Faults
from colora.tasks.schema import SPLITS, Example
from colora.tasks.tables import Row, Table

if TYPE_CHECKING:
    import pyarrow

__all__ = ["example_of", "hashed_name", "schema", "write_examples"]

_ORDINARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 _.:+-]{0,99}")


def schema() -> "pyarrow.Schema":
    """The columns of the file."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "task": pa.string(),
        "file": pa.int16(),
        "place": pa.string(),
        "split": pa.int8(),
        "input": pa.string(),
        "outputs": pa.list_(pa.string()),
        "instruction": pa.string(),
        "history": pa.list_(pa.string()),
        "group": pa.string(),
    }
    return pa.schema(list(columns.items()))


def write_examples(parts: Iterator[tuple[str, Table]], source: TasksSource, path: Path, faults: Faults) -> list[str]:
    """Write every example of a table; rows with faults are left out and noted in `faults`.

    Args:
        parts: some rows at a time, with the split that they are given in.
        source: what the columns mean.
        path: of the file.

    Returns:
        the files that the rows are from, by the number that a row has.
    """
    import pyarrow as pa

    files: list[str] = []
    reading: dict[tuple[str, str], Any] = {}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema()) as stream:
        for split, table in parts:
            if not table.rows:
                continue
            if table.file not in files:
                files.append(table.file)
            key = (split, table.file)
            if key not in reading:  # by its first rows; what others lack is told row by row
                reading[key] = row_reader(table, source.each, faults)
            if (read := reading[key]) is not None:
                rows = [_written(row, table.file, source, read, faults) for row in table.rows]
                common = {"split": SPLITS.index(split), "file": files.index(table.file)}
                some = [row | common for row in rows if row is not None]
                stream.write_batch(pa.RecordBatch.from_pylist(some, schema=schema()))
    return files


def example_of(row: Mapping[str, Any]) -> Example:
    """The example of a row of the file, without a template."""
    return Example(row["input"], tuple(row["outputs"]), row["instruction"], tuple(row["history"] or ()))


def hashed_name(value: str) -> str:
    """What `names: hashed` calls the task of a value: `printf %s VALUE | sha256sum | cut -c1-32`.

    Examples:
        >>> hashed_name("anna@example.org")
        'a3bf86238a1c59bd2f0a648af9293620'
    """
    return hashlib.sha256(value.encode()).hexdigest()[:32]


def _written(row: Row, file: str, source: TasksSource, read: Any, faults: Faults) -> dict[str, Any] | None:
    before = len(faults)
    name = _name(row, file, source, faults)
    group = None if source.group_by is None else row_group(file, row, source.group_by, "group_by", faults)
    example = read(row)
    if name is None or example is None or len(faults) > before:
        return None
    texts = {"input": example.input, "outputs": list(example.outputs), "instruction": example.instruction}
    return {"task": name, "place": str(row.place), "history": list(example.history), "group": group, **texts}


def _name(row: Row, file: str, source: TasksSource, faults: Faults) -> str | None:
    value = row_group(file, row, source.task, "tasks_from.task", faults)
    if value is None or source.names == "hashed":
        return None if value is None else hashed_name(value)
    if _ORDINARY.fullmatch(value) or fits_name_rule(value):
        return value
    rule = f'expected in "{source.task}" a task name of {NAME_RULE}'
    faults.add(file, f'{rule}, found "{value[:120]}"; names: hashed in tasks_from takes any text', row.place)
    return None
