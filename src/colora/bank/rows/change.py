"""Adding tasks to a saved bank in rows, and removing them. What stays is not written again but by hard links.

A and B are as large as the largest core: a task that brings directions of its own makes them larger, and when it goes
they go with it, for they were made of its examples.

A file of rows never changes, so a link to it is as good as a copy. A bank that is changed in its place is replaced as a
whole: whoever has opened it before goes on with the old one.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from colora.adapter.config import check_task_name
from colora.adapter.task_names import TaskNames
from colora.bank.config_file import read_fields
from colora.bank.keys import is_part
from colora.bank.layout import CONFIG_FILE, INFO_FILE, TENSORS_FILE, BankInfo
from colora.bank.rows.codec import row_of
from colora.bank.rows.folder import write_beside_rows
from colora.bank.rows.index import CORES_FOLDER, UNKNOWN, Form, TaskIndex
from colora.bank.rows.read import SavedRows
from colora.bank.rows.save import columns_of, numbers_of
from colora.bank.rows.write import RowWriter, rows_of_file
from colora.bank.tensors import SavedBank
from colora.common.files import staged_folder
from colora.common.text import shortened
from colora.errors import BankFileError, CheckpointError, ConfigError

__all__ = ["append_tasks", "changed_copy", "extend_bank", "no_larger_than_cores", "remove_tasks", "replace_core"]

AT_ONCE = 1024
ABSORBED = 2
"""A last file of at most so many times the rows to be written is written anew with them, and then perhaps the one
before it, so that files do not become many where tasks come one at a time: a row is written again as often as the
logarithm of what comes."""


def append_tasks(
    saved: SavedBank, cores: Mapping[str, Mapping[str, Tensor]], info: BankInfo, target: Path | None = None
) -> None:
    """Write a bank in rows with further tasks; atomic. Costs what comes, A, B, and the index.

    Args:
        saved: the bank, as it is on disk now.
        cores: of the new tasks by name: of each layer (r_k, r_k), with r_k at most the rank of the bank, or less.
        info: of the bank with the new tasks, as `saved.info` is once they are noted there.
        target: folder to write; by default the bank's own, which is replaced.

    Raises:
        ConfigError: a name that cannot be one or is taken, a core that does not fit the bank or holds NaN or infinity;
            every fault is named, and nothing is changed.
        CheckpointError: it cannot be written, or another process has changed the bank; what was there still is.
        BankFileError: the bank is damaged.
    """
    rows = _in_rows(saved)
    layers, index = rows.index.form.layers, rows.index
    if not cores:
        raise ConfigError("expected at least one new task, found none")
    if faults := [fault for name, core in cores.items() if (fault := _fault(saved, name, core))]:
        raise ConfigError("these tasks cannot be added; nothing was changed:", shortened(faults, 10))
    for name in cores:
        if info.source is not None:
            info.sources.setdefault(name, None)  # not that of the others
    kept = _files_that_stay(saved, len(cores))
    again = np.flatnonzero(index.columns["shard"] >= kept)  # in the order of the tasks
    with changed_copy(saved, target) as staging:
        _link(rows.folder, staging / CORES_FOLDER, index.form.shards[:kept])
        writer = RowWriter(staging / CORES_FOLDER, layers, rows.dtype, index.form.shards[:kept])
        columns = {name: np.array(column) for name, column in index.columns.items()}
        if len(again):
            for name, column in columns_of(_read(rows, again), writer).items():
                columns[name][again] = column
        new = columns_of((row_of(core, layers)[None] for core in cores.values()), writer)
        for name, table in (("examples", info.examples), ("seen", info.seen)):
            new[name] = np.array([table.get(task, UNKNOWN) for task in cores])
        form = writer.close()
        longer = replace(index, columns=columns).extended(list(cores), new, form)
        write_beside_rows(staging, saved.fields, saved, info, longer, outdated=())


def remove_tasks(saved: SavedBank, tasks: Iterable[str], info: BankInfo) -> None:
    """Write a bank in rows without some of its tasks, in its place; atomic. Files that held a core of theirs are gone.

    Args:
        saved: the bank, as it is on disk now.
        tasks: to be removed; not all of them.
        info: of the bank without them.

    Raises:
        TaskIdError: an unknown task.
        CheckpointError: it cannot be written, or another process has changed the bank; what was there still is.
        BankFileError: the bank is damaged.
    """
    gone = saved.indices(list(dict.fromkeys(tasks)))
    with changed_copy(saved, None) as staging:
        _rewrite(saved, gone, {}, info, staging)


def replace_core(
    saved: SavedBank, task: str, core: Mapping[str, Tensor], info: BankInfo, target: Path | None = None
) -> None:
    """Write a bank in rows with another core of one task; atomic. The file that held the old one is written anew.

    Args:
        saved: the bank, as it is on disk now.
        task: whose core.
        core: of each layer (r_k, r_k).
        info: of the bank, with what has changed of the task.
        target: folder to write; by default the bank's own, which is replaced.

    Raises:
        TaskIdError: an unknown task.
        ConfigError: the core does not fit the bank, or holds NaN or infinity.
        CheckpointError, BankFileError: as `append_tasks`.
    """
    (place,) = saved.indices([task])
    if fault := _core_fault(saved, task, core):
        raise ConfigError(f"this core cannot be written; nothing was changed: {fault}")
    with changed_copy(saved, target) as staging:
        _rewrite(saved, [], {place: core}, info, staging)


def _rewrite(
    saved: SavedBank,
    gone: Sequence[int],
    replaced: Mapping[int, Mapping[str, Tensor]],
    info: BankInfo,
    staging: Path,
) -> None:
    """Write the bank without some tasks, and with other cores of some: the files that had theirs anew, links else."""
    rows = _in_rows(saved)
    old, index = rows.index, rows.index.without(gone)
    dropped = np.array([*gone, *replaced])
    touched = np.unique(old.columns["shard"][dropped])
    moved = np.cumsum(~np.isin(np.arange(len(old.form.shards)), touched)) - 1  # numbers of the files that stay
    names = [name for number, name in enumerate(old.form.shards) if number not in touched]
    again = np.setdiff1d(np.flatnonzero(np.isin(old.columns["shard"], touched)), dropped)
    _link(rows.folder, staging / CORES_FOLDER, names)
    writer = RowWriter(staging / CORES_FOLDER, old.form.layers, rows.dtype, names)
    columns = {name: np.array(column) for name, column in index.columns.items()}
    columns["shard"] = moved[columns["shard"]].astype(columns["shard"].dtype)
    new = (row_of(core, old.form.layers)[None] for core in replaced.values())
    for tasks, cores in ((again, _read(rows, again)), (np.array([*replaced], dtype=np.int64), new)):
        if len(tasks):
            after = tasks - np.searchsorted(np.sort(gone), tasks)  # their ids when the others are gone
            for name, column in columns_of(cores, writer).items():
                columns[name][after] = column
    for name, table in (("examples", info.examples), ("seen", info.seen)):
        for place in replaced:
            columns[name][place] = table.get(old.names.name(place), UNKNOWN)
    fields, tensors = no_larger_than_cores(saved, int(columns["rank"].max()))
    if tensors is not saved:
        (staging / TENSORS_FILE).unlink()
    outdated = [old.names.name(place) for place in dropped.tolist()]
    write_beside_rows(staging, fields, tensors, info, TaskIndex(index.names, columns, writer.close()), outdated)


def _files_that_stay(saved: SavedBank, coming: int) -> int:
    """How many files of rows stay as they are when so many rows come; those after them are written anew."""
    rows = _in_rows(saved)
    sizes = np.bincount(rows.index.columns["shard"], minlength=len(rows.index.form.shards))
    most = rows_of_file(len(rows.index.form.layers), saved.config.r, rows.dtype)
    kept = len(sizes)
    while kept and sizes[kept - 1] <= ABSORBED * coming and coming + sizes[kept - 1] <= most:
        coming += int(sizes[kept - 1])
        kept -= 1
    return kept


def _in_rows(saved: SavedBank) -> SavedRows:
    if saved.rows is None:
        raise BankFileError(f"{saved.folder}: expected a bank in rows, found one in stacks")
    saved.check()
    return saved.rows


def _fault(saved: SavedBank, name: str, core: Mapping[str, Tensor]) -> str | None:
    """Why a core cannot be added, or None."""
    if fault := check_task_name(name):
        return fault
    if name in saved.index:
        return f"{name!r} is already a task of {saved.folder}"
    return _core_fault(saved, name, core)


def _core_fault(saved: SavedBank, name: str, core: Mapping[str, Tensor]) -> str | None:
    """What of a core does not fit the bank, or None."""
    if core.keys() != saved.layers.keys():
        odd = sorted(core.keys() ^ saved.layers.keys())
        return f"{name}: expected a core for each adapted layer, found others: {', '.join(shortened(odd, 3))}"
    shapes = {tuple(one.shape) for one in core.values()}
    (shape,) = shapes if len(shapes) == 1 else [()]
    if len(shape) != 2 or shape[0] != shape[1] or not 0 < shape[0] <= saved.config.r:
        return f"{name}: expected matrices of one size up to {(saved.config.r,) * 2}, found {sorted(shapes)}"
    if not all(bool(torch.isfinite(one).all()) for one in core.values()):
        return f"{name}: holds NaN or infinity"
    return None


def _read(rows: SavedRows, tasks: Int[np.ndarray, " n"]) -> Iterator[Tensor]:
    """Cores of these tasks, those of one rank together, in their order."""
    ranks = rows.index.columns["rank"][tasks]
    edges = np.flatnonzero(np.diff(ranks)) + 1
    for part in np.split(tasks, edges):
        rank = rows.rank(int(part[0]))
        for begin in range(0, len(part), AT_ONCE):
            yield rows.rows(part[begin : begin + AT_ONCE], rank)


@contextmanager
def changed_copy(saved: SavedBank, target: Path | None) -> Iterator[Path]:
    """A folder to write a changed bank into, with A, B and what else the old one's folder has."""
    ours = {CONFIG_FILE, INFO_FILE, CORES_FOLDER, TENSORS_FILE}

    def ignored(place: str, names: list[str]) -> set[str]:
        return ours & set(names) if Path(place) == saved.folder else set()

    with staged_folder((target or saved.folder).resolve()) as staging:
        shutil.copytree(saved.folder, staging, dirs_exist_ok=True, ignore=ignored)
        (staging / CORES_FOLDER).mkdir()
        _link(saved.folder, staging, [TENSORS_FILE])
        yield staging
        if read_fields(saved.folder / CONFIG_FILE) != saved.fields:
            raise CheckpointError(
                f"{saved.folder}: another process has changed this bank meanwhile; nothing was written: run the same "
                "command again"
            )


def _link(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Have these files in a folder too, by hard links where the disk can. Raises OSError."""
    for name in dict.fromkeys(names):
        try:
            os.link(source / name, folder / name)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without links
            shutil.copyfile(source / name, folder / name)


def extend_bank(
    saved: SavedBank,
    name: str,
    core: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    info: BankInfo,
    target: Path | None = None,
) -> None:
    """Write a bank in rows with one more task, and with A and B that may have further directions; atomic.

    All other cores have the bytes that they had: those of a bank in rows are the same files, and stacks become rows.

    Args:
        saved: the bank, in either form, as it is on disk now.
        name: of the new task.
        core: of each layer (r_k, r_k), with r_k at most the new rank.
        factors: A and B by the names of the file, as they are to be.
        fields: of `adapter_config.json` that are others now: `r`, `lora_alpha`, `core_rank`.
        info: of the bank with the new task.
        target: folder to write; by default the bank's own, which is replaced.

    Raises:
        CheckpointError: it cannot be written, or another process has changed the bank; what was there still is.
        BankFileError: the bank is damaged.
    """
    saved.check()
    if info.source is not None:
        info.sources.setdefault(name, None)  # not that of the others
    with changed_copy(saved, target) as staging:
        (staging / TENSORS_FILE).unlink()
        index, writer = _all_rows(saved, info, staging / CORES_FOLDER)
        new = columns_of([row_of(core, writer.layers)[None]], writer)
        for column, table in (("examples", info.examples), ("seen", info.seen)):
            new[column] = np.array([table.get(name, UNKNOWN)])
        tensors = {key: one for key, one in saved.items() if not is_part(key, "core")} | dict(factors)
        longer = index.extended([name], new, writer.close())
        write_beside_rows(staging, {**saved.fields, **fields}, tensors, info, longer, outdated=())


def _all_rows(saved: SavedBank, info: BankInfo, folder: Path) -> tuple[TaskIndex, RowWriter]:
    """Have the cores of a bank in a folder of rows; their index, and what writes further ones."""
    if saved.rows is not None:
        index = saved.rows.index
        _link(saved.rows.folder, folder, index.form.shards)
        return index, RowWriter(folder, index.form.layers, saved.rows.dtype, index.form.shards)
    layers, names = list(saved.layers), TaskNames(saved.tasks)
    stacks = [layer.cores for layer in saved.layers.values()]
    writer = RowWriter(folder, layers, stacks[0].dtype)
    chunks = (torch.stack([one[at : at + AT_ONCE] for one in stacks], 1) for at in range(0, len(names), AT_ONCE))
    columns = columns_of(chunks, writer)
    columns |= {
        column: numbers_of(names, table) for column, table in (("examples", info.examples), ("seen", info.seen))
    }
    return TaskIndex(names, columns, Form(layers, "", [])), writer


def no_larger_than_cores(
    saved: SavedBank, largest: int, to_come: int | None = None
) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Fields and tensors of the bank without directions of A and B that neither a core has nor those to come will.

    Args:
        saved: the bank.
        largest: rank of the largest core.
        to_come: rank of the cores of tasks to come; by default what it is.

    Returns:
        the fields, and `saved` itself where its A and B stay as they are.
    """
    config, to_come = saved.config, to_come or saved.config.rank_of_new
    r = max(largest, to_come)
    fields = {key: value for key, value in saved.fields.items() if key != "core_rank"}
    if r != to_come:
        fields["core_rank"] = to_come
    if r == config.r:
        return fields, saved
    fields |= {"r": r, "lora_alpha": config.alpha_of(r)}
    cut = {key: saved[key][:r].clone() for key in saved if is_part(key, "A")}
    cut |= {key: saved[key][:, :r].contiguous() for key in saved if is_part(key, "B")}
    return fields, {**saved, **cut}
