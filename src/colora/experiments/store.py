"""The folder of cells: what is finished, what failed, which code made it, and the file that collects them.

OUTPUT/cells/KEY.json   the record of one cell; experiments that need the same cell share it
OUTPUT/cells/KEY.lock   a process is running it
OUTPUT/NAME.jsonl       the records of experiment NAME, in its order
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from colora.common.locks import is_claimed, waiting_claim
from colora.errors import ColoraError, ConfigError
from colora.experiments.trial import Cell, CellRecord, read_cell_records, write_cell_records

__all__ = ["Store"]


class Store:
    """The cells kept in one output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "cells"

    def path(self, cell: Cell) -> Path:
        """Where the record of a cell stands."""
        return self.folder / f"{cell.key}.json"

    def lock(self, cell: Cell) -> Path:
        """The lock file of a cell."""
        return self.folder / f"{cell.key}.lock"

    def read(self, cell: Cell) -> CellRecord | None:
        """The record of a cell, finished or failed; None if there is none.

        Raises:
            ConfigError: a file that holds something else.
        """
        path = self.path(cell)
        try:
            records = read_cell_records(path)
        except FileNotFoundError:
            return None
        except ColoraError as error:
            raise ConfigError(
                f"expected the record of a cell, found {error}; remove the file to run it again"
            ) from None
        if [record.cell for record in records] != [cell]:
            raise ConfigError(
                f"{path}: expected the record of cell {cell.key}, found "
                f"{', '.join(record.cell.key for record in records) or 'none'}; remove the file to run it again"
            )
        return records[0]

    def write(self, record: CellRecord) -> None:
        """Keep the record of a cell, atomically; an older one is replaced."""
        write_cell_records(self.path(record.cell), [record])

    def state(self, cell: Cell) -> str:
        """One of "finished", "failed", "running", and "-" if nothing is known of it."""
        record = self.read(cell)
        if record is not None and record.error is None:
            return "finished"
        return "running" if is_claimed(self.lock(cell)) else "-" if record is None else "failed"

    def finished(self, cells: Iterable[Cell]) -> list[CellRecord]:
        """The records of those cells that ended well."""
        found = (self.read(cell) for cell in cells)
        return [record for record in found if record is not None and record.error is None]

    def collect(self, name: str, cells: Sequence[Cell], only_code: str | None = None) -> tuple[Path, list[CellRecord]]:
        """Write OUTPUT/NAME.jsonl from the cells that ended, well or not, in their order; if asked, of one code."""
        path = self.output / f"{name}.jsonl"
        with waiting_claim(path.with_name(f"{path.name}.lock")):
            found = [record for record in map(self.read, cells) if record is not None]
            records = [record for record in found if only_code is None or record.code == only_code]
            write_cell_records(path, records)
        return path, records
