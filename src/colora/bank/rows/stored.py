"""A bank in rows on a model: its cores are in a store, which reads each from the bank's files when it is wanted."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from peft import PeftModel

from colora.adapter.lookup import bank_layers, only_bank
from colora.adapter.stored.cores import StoredCores
from colora.adapter.stored.starts import Starts
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.bank.rows.read import SavedRows

__all__ = ["RowStarts", "store_saved"]


class RowStarts:
    """The rows of a saved bank as a store has them: of each layer, in the order of the model, one after the other.

    Args:
        saved: the rows.
        layers: names of the layers, in the order of the model.
    """

    def __init__(self, saved: SavedRows, layers: list[str]) -> None:
        self._saved = saved
        places = {name: place for place, name in enumerate(saved.index.form.layers)}
        self._order = [places[name] for name in layers]

    def __len__(self) -> int:
        return len(self._saved)

    def rows(self, tasks: Int[np.ndarray, " n"], rank: int) -> Float[np.ndarray, "n numbers"]:
        """The cores of these tasks, all of this rank. Raises BankFileError if one is damaged."""
        found = self._saved.rows(tasks, rank)[:, self._order].flatten(1)
        values: np.ndarray = found.double().numpy()
        return values


def store_saved(model: PeftModel, saved: SavedRows, room: int, folder: Path | None) -> None:
    """Give a model with a bank of other tasks the tasks of a saved bank, with their cores in a store.

    Args:
        model: with one active bank, of A and B of the saved one, and `room` cores of any kind.
        saved: the rows.
        room, folder: see `store_cores`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    base, router, adapter_name = only_bank(model)
    stacks = {name: layer.colora_core[adapter_name] for name, layer in bank_layers(base, adapter_name).items()}
    starts = Starts(len(saved), RowStarts(saved, list(stacks)))
    names: TaskNames = saved.index.names
    router.current = None
    router.stored[adapter_name] = StoredCores(stacks, room, folder, saved.index.columns["rank"], starts)
    model.peft_config[adapter_name].tasks = TaskSequence(names)
    router.register(adapter_name, names)
