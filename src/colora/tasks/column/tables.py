"""A table of any size, some of its rows at a time: JSON Lines, CSV, TSV and parquet as they are read, and datasets.

What is wrong is told as it is of files that are read whole, at the line. Other kinds of files are read whole.
"""

import gzip
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colora.tasks.faults import Faults
from colora.tasks.formats.delimited import delimited_rows
from colora.tasks.formats.files import read_table, stem_and_suffix
from colora.tasks.formats.json_rows import jsonl_rows
from colora.tasks.formats.parquet import dataset_table
from colora.tasks.tables import Row, Table

if TYPE_CHECKING:
    import datasets

__all__ = ["dataset_parts", "file_parts"]

AT_ONCE = 4096
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def file_parts(path: Path, wanted: Collection[str], faults: Faults) -> Iterator[Table]:
    """A file, `AT_ONCE` rows at a time; what cannot be read is left out and noted in `faults`.

    Args:
        path: a name that ends as `read_table` wants it.
        wanted: the columns that are read, where a file has columns of its own.
    """
    file, before, some = str(path), len(faults), False
    _, suffix = stem_and_suffix(path)
    packed = path.suffix.lower() == ".gz"
    try:
        if suffix == ".parquet" and not packed:
            parts = _parquet_parts(path, wanted, faults)
        elif suffix in (".jsonl", ".ndjson"):
            parts = (_table(file, rows) for rows in _jsonl_parts(path, packed, faults))
        elif suffix in SEPARATORS:
            parts = (_table(file, rows) for rows in _delimited_parts(path, packed, SEPARATORS[suffix], faults))
        else:
            parts = iter([read_table(path, wanted, faults)])
        for part in parts:
            some = some or bool(part.rows)
            yield part
    except (OSError, EOFError, zlib.error) as error:
        wrong = "gzip data" if packed else "a readable file"
        faults.add(file, f"expected {wrong}, found {getattr(error, 'strerror', None) or error}")
    if not some and len(faults) == before:
        faults.add(file, "expected at least one example, found none")


def dataset_parts(
    file: str, data: "datasets.Dataset", wanted: Collection[str], split: str, faults: Faults
) -> Iterator[Table]:
    """The same of a dataset of the library; each row's place is its number in `split`."""
    if not len(data):
        faults.add(file, "expected at least one example, found none", split or None)
    for begin in range(0, len(data), AT_ONCE):
        some = data.select(range(begin, min(begin + AT_ONCE, len(data))))
        yield dataset_table(file, some, wanted, split, faults, first=begin)


def _table(file: str, rows: list[Row]) -> Table:
    return Table(file, tuple(dict.fromkeys(column for row in rows for column in row.values)), rows)


def _lines(path: Path, packed: bool, faults: Faults) -> Iterator[str]:
    """The lines of a file with their ends; up to one that is no UTF-8, which is noted."""
    offset = 0
    with gzip.open(path) if packed else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start + len(line) - len(error.object)
                found = f"the byte 0x{error.object[error.start]:02x} at byte offset {at}"
                faults.add(str(path), f"expected UTF-8 text, found {found}", number)
                return
            offset += len(line)


def _jsonl_parts(path: Path, packed: bool, faults: Faults) -> Iterator[list[Row]]:
    first, some = 1, []
    for line in _lines(path, packed, faults):
        some.append(line)
        if len(some) == AT_ONCE:
            yield jsonl_rows(str(path), "".join(some), faults, first)
            first, some = first + len(some), []
    if some:
        yield jsonl_rows(str(path), "".join(some), faults, first)


def _delimited_parts(path: Path, packed: bool, separator: str, faults: Faults) -> Iterator[list[Row]]:
    longest = 2**31 - 2 if packed else path.stat().st_size
    return delimited_rows(str(path), _lines(path, packed, faults), separator, faults, longest, AT_ONCE)


def _parquet_parts(path: Path, wanted: Collection[str], faults: Faults) -> Iterator[Table]:
    import pyarrow
    from datasets import Dataset
    from pyarrow.parquet import ParquetFile

    file, first = str(path), 0
    try:
        with ParquetFile(path) as parquet:
            names = list(parquet.schema_arrow.names)
            used = [name for name in names if name in wanted] or names[:1]
            for batch in parquet.iter_batches(AT_ONCE, columns=used):
                data = Dataset(pyarrow.Table.from_batches([batch]))
                part = dataset_table(file, data, wanted, "", faults, first)
                first += len(data)
                yield Table(file, tuple(names), part.rows)
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        told = (str(error).splitlines() or [""])[0]
        faults.add(file, f"expected a parquet file, found {type(error).__name__}: {told}")
