"""A saved bank on a model, with its cores in a store: of a bank in rows, each is read when it is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.adapter.lookup import bank_layers, only_bank
from colora.adapter.stored.cores import StoredCores
from colora.adapter.stored.starts import SavedCores, Starts
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.bank.rows.read import SavedRows
from colora.bank.tensors import SavedBank

__all__ = ["MEAN", "RowChoice", "RowStarts", "StackStarts", "store_saved"]

MEAN = -1
"""In place of a row: the mean of all."""


@dataclass(frozen=True)
class RowChoice:
    """Which tasks a bank on a model has, and which of a saved one they are.

    Attributes:
        names: of the tasks.
        places: ids of the tasks in the saved bank, (n,); or `MEAN`.
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


class StackStarts:
    """The same of a bank whose cores are in stacks, (K, r, r) for each layer: they are all in memory.

    Args:
        stacks: of all its tasks, and at the end the mean of them, by layer, in the order of the model.
        choice: which of the tasks.
    """

    def __init__(self, stacks: Mapping[str, Float[Tensor, "K1 r r"]], choice: RowChoice) -> None:
        self._cores = torch.cat([stack.flatten(1) for stack in stacks.values()], 1)
        self._places = choice.places  # MEAN, -1, is the last

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, tasks: Int[np.ndarray, " n"], rank: int) -> Float[np.ndarray, "n numbers"]:
        """The cores of these tasks; the rank is r."""
        found: np.ndarray = self._cores[self._places[tasks]].double().numpy()
        return found


def store_saved(model: PeftModel, saved: SavedBank, choice: RowChoice, room: int, folder: Path | None) -> None:
    """Give a model with a bank of other tasks the tasks of a saved bank, with their cores in a store.

    Args:
        model: with one active bank, of A and B of the saved one, and `room` cores of any kind.
        saved: the bank.
        choice: which of its tasks.
        room, folder: see `store_cores`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    base, router, adapter_name = only_bank(model)
    stacks = {name: layer.colora_core[adapter_name] for name, layer in bank_layers(base, adapter_name).items()}
    config = model.peft_config[adapter_name]
    starts: SavedCores
    if saved.rows is not None:
        starts = RowStarts(saved.rows, choice, list(stacks))
        ranks = np.where(choice.places == MEAN, config.rank_of_new, saved.rows.index.columns["rank"][choice.places])
    else:
        mean, cores = saved.mean_core(), saved.cores(range(len(saved.tasks)))
        starts = StackStarts({name: torch.cat([cores[name], mean[name][None]]) for name in stacks}, choice)
        ranks = np.full(len(choice.names), config.r)
    router.current = None
    router.stored[adapter_name] = StoredCores(stacks, room, folder, ranks, Starts(len(choice.names), starts))
    config.tasks = TaskSequence(choice.names)
    router.register(adapter_name, choice.names)
