"""Reads the tasks that a column of a table names: once for a table, into the cache, and from there ever after.

$COLORA_CACHE/tasks/KEY/     what `build` makes; may be deleted when no run uses it
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colora.common.cache import cache_folder
from colora.common.files import staged_folder
from colora.common.locks import waiting_lock
from colora.tasks.column.build import build
from colora.tasks.column.source import TasksSource
from colora.tasks.column.tables import dataset_parts, file_parts
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.examples import used_columns
from colora.tasks.faults import Faults
from colora.tasks.hub import dataset_splits, is_saved_dataset
from colora.tasks.read import given_files, is_usable
from colora.tasks.tables import Table

__all__ = ["read_column_tasks"]

FORMAT = 1
LONGEST_WAIT = 6 * 3600.0


def read_column_tasks(source: TasksSource, seed: int = 0) -> ColumnTasks:
    """The tasks of a table with one column that names them, each as `read_tasks` would read it from a file of its own.

    The table is read some rows at a time and is never in memory as a whole (a .json file is). A value of the column is
    a task; values that differ in white space or Unicode composition alone are one, as are the number 1 and the text
    "1". Tasks that are left without training examples are left out, which `ColumnTasks.notes` tells.

    Args:
        source: where the table is and what its columns mean.
        seed: decides every draw of splits, together with the task's name.

    Raises:
        TaskFileError: listing all faults as "file:line: expected X, found Y", at most 20 a file: those of examples, and
            values that cannot be the name of a task.
        CheckpointError: the cache cannot be written.
    """
    faults = Faults()
    each = source.each
    tables: dict[str, Any] = {}
    if is_usable(each, faults):
        saved = source.path is not None and is_saved_dataset(Path(source.path))
        tables = dict(dataset_splits(each, faults) if source.path is None or saved else given_files(each, faults))
    faults.raise_any()
    folder = cache_folder() / "tasks" / _key(source, tables, seed)
    if not (folder / "summary.json").is_file():
        with waiting_lock(folder.with_suffix(".lock"), LONGEST_WAIT):
            if not (folder / "summary.json").is_file():  # another process has made it meanwhile
                with staged_folder(folder) as staging:
                    build(_parts(source, tables, faults), list(tables), source, seed, staging, faults)
                    faults.raise_any()
    return ColumnTasks(folder, source, seed)


def _parts(source: TasksSource, tables: dict[str, Any], faults: Faults) -> Iterator[tuple[str, Table]]:
    wanted = used_columns(source.each) | {source.task, source.task.split(".")[0]}
    for split, table in tables.items():
        if isinstance(table, Path):
            parts = file_parts(table, wanted, faults)
        else:
            parts = dataset_parts(source.origin, table[1], wanted, table[0], faults)
        for part in parts:
            yield split, part


def _key(source: TasksSource, tables: dict[str, Any], seed: int) -> str:
    """What the folder's files depend on."""
    said = {name: value for name, value in asdict(source).items() if name not in ("path", "dataset", "subset")}
    contents = {}
    for split, table in tables.items():
        if isinstance(table, Path):
            with table.open("rb") as file:
                contents[split] = [str(table), hashlib.file_digest(file, "sha256").hexdigest()]
        else:
            contents[split] = [source.origin, table[0], table[1]._fingerprint]
    text = json.dumps([FORMAT, said, seed, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
