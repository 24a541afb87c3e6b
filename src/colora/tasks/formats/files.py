"""Task files to tables by the end of their names."""

from collections.abc import Callable, Collection
from pathlib import Path

from colora.tasks.faults import Faults
from colora.tasks.formats.delimited import csv_rows, tsv_rows
from colora.tasks.formats.json_rows import json_rows, jsonl_rows
from colora.tasks.formats.parquet import parquet_table
from colora.tasks.formats.text import decode_text, read_bytes
from colora.tasks.tables import Row, Table

__all__ = ["SUFFIXES", "read_table", "stem_and_suffix"]

_READERS: dict[str, Callable[[str, str, Faults], list[Row]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".json": json_rows,
}
SUFFIXES = (*_READERS, ".parquet")
"""What a file's name may end in, in any case; each may have .gz after it."""


def stem_and_suffix(path: Path) -> tuple[str, str]:
    """The name of a file without its ending, and the ending in lower case without .gz; "" if it is none of ours.

    Examples:
        >>> stem_and_suffix(Path("data/red.v1.JSONL.gz"))
        ('red.v1', '.jsonl')
    """
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    return path.name, ""


def read_table(path: Path, wanted: Collection[str], faults: Faults) -> Table:
    """Reads one file; what cannot be read is left out and noted in `faults`. Of parquet, `wanted` columns alone."""
    file, before = str(path), len(faults)
    _, suffix = stem_and_suffix(path)
    content = read_bytes(path, faults)
    if content is None:
        return Table(file, (), [])
    if suffix == ".parquet":
        return parquet_table(file, content, wanted, faults)
    text = decode_text(file, content, faults)
    rows = [] if text is None else _READERS[suffix](file, text, faults)
    if not rows and len(faults) == before:
        faults.add(file, "expected at least one example, found none")
    columns = dict.fromkeys(column for row in rows for column in row.values)
    return Table(file, tuple(columns), rows)
