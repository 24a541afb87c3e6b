"""A bank in rows on a model: its cores are in a store, which reads each from the bank's files when it is wanted."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.adapter.lookup import bank_layers, only_bank
from colora.adapter.stored.cores import StoredCores
from colora.adapter.stored.starts import Starts
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.bank.rows.read import SavedRows

__all__ = ["MEAN", "RowChoice", "RowStarts", "store_saved"]

MEAN = -1
"""In place of a row: the mean of all."""


@dataclass(frozen=True)
class RowChoice:
    """Which tasks a bank on a model has, and which rows of a saved one they are.

    Attributes:
        names: of the tasks.
        places: ids of the rows in the saved bank, (n,); or `MEAN`.
    """

    names: TaskNames
    places: Int[np.ndarray, " n"]


class RowStarts:
    """The rows of a saved bank as a store has them: of each layer, in the order of the model, one after the other.

    Args:
        saved: the rows.
        choice: which of them.
        layers: names of the layers, in the order of the model.
    """

    def __init__(self, saved: SavedRows, choice: RowChoice, layers: list[str]) -> None:
        self._saved, self._places = saved, choice.places
        places = {name: place for place, name in enumerate(saved.index.form.layers)}
        self._order = [places[name] for name in layers]

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, tasks: Int[np.ndarray, " n"], rank: int) -> Float[np.ndarray, "n numbers"]:
        """The cores of these tasks, all of this rank. Raises BankFileError if one is damaged."""
        places = self._places[tasks]
        found = np.empty((len(tasks), len(self._order) * rank**2))
        known = places != MEAN
        if known.any():
            found[known] = self._flat(self._saved.rows(places[known], rank))
        if not known.all():
            found[~known] = self._flat(resized_core(self._mean, rank)[None])[0]
        return found

    @cached_property
    def _mean(self) -> Float[Tensor, "layers r r"]:
        return self._saved.mean(int(self._saved.index.columns["rank"].max()))

    def _flat(self, rows: Float[Tensor, "n layers r r"]) -> Float[np.ndarray, "n numbers"]:
        values: np.ndarray = rows[:, self._order].flatten(1).double().numpy()
        return values


def store_saved(model: PeftModel, saved: SavedRows, choice: RowChoice, room: int, folder: Path | None) -> None:
    """Give a model with a bank of other tasks the tasks of a saved bank, with their cores in a store.

    Args:
        model: with one active bank, of A and B of the saved one, and `room` cores of any kind.
        saved: the rows.
        choice: which of them.
        room, folder: see `store_cores`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    base, router, adapter_name = only_bank(model)
    stacks = {name: layer.colora_core[adapter_name] for name, layer in bank_layers(base, adapter_name).items()}
    starts = Starts(len(choice.names), RowStarts(saved, choice, list(stacks)))
    config = model.peft_config[adapter_name]
    ranks = np.where(choice.places == MEAN, config.rank_of_new, saved.index.columns["rank"][choice.places])
    router.current = None
    router.stored[adapter_name] = StoredCores(stacks, room, folder, ranks, starts)
    config.tasks = TaskSequence(choice.names)
    router.register(adapter_name, choice.names)
