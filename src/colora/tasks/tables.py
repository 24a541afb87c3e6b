"""Rows of named values, each of which knows its place in its file: what every format of task files becomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "Table"]


@dataclass(frozen=True)
class Row:
    """One record: its values by column, and its place, a line number or a path such as Instances[12]."""

    values: dict[str, Any]
    place: int | str

    def find(self, column: str) -> tuple[bool, Any]:
        """Whether there is such a column, and its value; "answers.text.0" goes down into objects and lists.

        Examples:
            >>> Row({"q": {"text": ["a", "b"]}}, 1).find("q.text.1")
            (True, 'b')
        """
        if column in self.values:
            return True, self.values[column]
        here: Any = self.values
        for part in column.split("."):
            if isinstance(here, Mapping) and part in here:
                here = here[part]
            elif isinstance(here, list | tuple) and part.isdecimal() and int(part) < len(here):
                here = here[int(part)]
            else:
                return False, None
        return True, here


@dataclass(frozen=True)
class Table:
    """The rows of one file or split; `columns` holds every column that any row has."""

    file: str
    columns: tuple[str, ...]
    rows: list[Row]

    def has(self, column: str) -> bool:
        """Whether there is such a column; of a dotted name, whether any row has what it names."""
        return column in self.columns or ("." in column and any(row.find(column)[0] for row in self.rows))
