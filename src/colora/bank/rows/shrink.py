"""Cores at the size that they need: of a bank that was extended when every core still grew with A and B."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.adapter.task_names import TaskNames
from colora.bank.keys import is_part
from colora.bank.layout import TENSORS_FILE
from colora.bank.rows.change import changed_copy, no_larger_than_cores
from colora.bank.rows.folder import write_beside_rows
from colora.bank.rows.index import CORES_FOLDER, TaskIndex
from colora.bank.rows.save import columns_of, numbers_of
from colora.bank.rows.write import RowWriter
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError

__all__ = ["shrink_bank"]

AT_ONCE = 1024


def shrink_bank(bank: str | Path, output: Path | None = None) -> dict[int, int]:
    """Write a bank in which no core has rows and columns at its end that are all zero; no task's model changes.

    Tasks to come then have the rank that most tasks have.

    Args:
        bank: folder of a bank or of a run.
        output: folder for the new bank; by default it takes the old one's place, at once and whole.

    Returns:
        how many tasks have cores of which rank now.

    Raises:
        BankFileError: the bank is damaged.
        ConfigError: every core needs the size that it has; nothing is written.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    saved = SavedBank(bank)
    saved.check()
    names, info = TaskNames(saved.tasks), saved.info
    before = np.array([saved.core_rank(task) for task in range(len(names))])
    after = np.concatenate([_needed(rows) for _, rows in _chunks(saved, len(names))])
    if not (after < before).any():
        raise ConfigError(f"{saved.folder}: every core already has the size that it needs; nothing was changed")
    counts = Counter(after.tolist())
    common = max(counts, key=lambda rank: (counts[rank], -rank))
    layers = list(saved.layers)
    with changed_copy(saved, output) as staging:
        (staging / TENSORS_FILE).unlink()
        first = next(iter(saved.cores([0]).values()))
        writer, places = RowWriter(staging / CORES_FOLDER, layers, first.dtype), list[np.ndarray]()
        columns = columns_of(_cut(saved, after, places), writer)
        columns = {name: column[np.argsort(np.concatenate(places))] for name, column in columns.items()}
        columns |= {
            name: numbers_of(names, table) for name, table in (("examples", info.examples), ("seen", info.seen))
        }
        fields, tensors = no_larger_than_cores(saved, max(counts), saved.config.core_rank or common)
        own = {key: tensors[key] for key in tensors if not is_part(key, "core")}
        write_beside_rows(staging, fields, own, info, TaskIndex(names, columns, writer.close()))
    return dict(sorted(counts.items()))


def _chunks(saved: SavedBank, tasks: int) -> Iterator[tuple[Int[np.ndarray, " n"], Float[Tensor, "n layers r r"]]]:
    for begin in range(0, tasks, AT_ONCE):
        some = np.arange(begin, min(begin + AT_ONCE, tasks))
        yield some, torch.stack(list(saved.cores(some.tolist()).values()), 1)


def _needed(rows: Float[Tensor, "n layers r r"]) -> Int[np.ndarray, " n"]:
    """The smallest rank that holds all numbers of each core, in all layers; 1 at least."""
    used = (rows != 0).any(1)
    reached = used.any(1) | used.any(2)
    places = torch.arange(1, rows.shape[-1] + 1)
    found: np.ndarray = (reached * places).max(1).values.clamp_min(1).numpy()
    return found


def _cut(saved: SavedBank, ranks: Int[np.ndarray, " K"], places: list[np.ndarray]) -> Iterator[Tensor]:
    """The cores of some tasks of one rank at a time; which they are is added to `places`."""
    for some, rows in _chunks(saved, len(ranks)):
        for rank in np.unique(ranks[some]).tolist():
            chosen = np.flatnonzero(ranks[some] == rank)
            places.append(some[chosen])
            yield rows[torch.from_numpy(chosen), :, :rank, :rank]
