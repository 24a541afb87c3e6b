"""Parquet files, and tables of the `datasets` library, to rows; class labels become their names."""

import io
from collections.abc import Collection
from typing import TYPE_CHECKING

from colora.tasks.faults import Faults, quoted
from colora.tasks.tables import Row, Table

if TYPE_CHECKING:
    import datasets

__all__ = ["dataset_table", "parquet_table"]


def parquet_table(file: str, content: bytes, wanted: Collection[str], faults: Faults) -> Table:
    """The rows of a file, with those of its columns that are `wanted`."""
    # Here, because the imports take a second that most runs save.
    import pyarrow
    from datasets import Dataset
    from pyarrow.parquet import ParquetFile

    try:
        parquet = ParquetFile(io.BytesIO(content))
        names = tuple(parquet.schema_arrow.names)
        if twice := [name for name in dict.fromkeys(names) if name in wanted and names.count(name) > 1]:
            faults.add(file, f"expected column names that differ, found {quoted(twice)} twice")
            return Table(file, (), [])
        # Columns that nobody reads may be of types that the library does not know.
        used = [name for name in names if name in wanted] or list(names[:1])
        table = dataset_table(file, Dataset(parquet.read().select(used)), wanted, "", faults)
        return Table(file, names, table.rows)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        faults.add(file, f"expected a parquet file, found {type(error).__name__}: {first}")
    return Table(file, (), [])


def dataset_table(
    file: str, data: "datasets.Dataset", wanted: Collection[str], split: str, faults: Faults, first: int = 0
) -> Table:
    """The rows of a dataset; each one's place is its number in `split`, counted from `first`."""
    from datasets import ClassLabel

    columns = tuple(data.column_names)
    used = [column for column in columns if column in wanted]
    used = used or list(columns[:1])  # without any column, the library yields no rows either
    labels = {c: data.features[c].names for c in used if isinstance(data.features[c], ClassLabel)}
    rows = []
    # Only the columns in use: images or audio beside them would be decoded one by one.
    for index, values in enumerate(data.select_columns(used) if used else (), start=first):
        for column, names in labels.items():
            label = values[column]
            # -1 marks a hidden label on the hub; it stays a number and is reported as such.
            if label is not None and 0 <= label < len(names):
                values[column] = names[label]
        rows.append(Row(values, f"{split}[{index}]"))
    if not rows:
        faults.add(file, "expected at least one example, found none", split or None)
    return Table(file, columns, rows)
