"""Starting a run of very many tasks from a bank: their cores are in a store from the beginning.

Of a bank in rows, no core is read before a step wants it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from colora.adapter.task_names import TaskNames
from colora.bank.load import attach_stored
from colora.bank.rows.stored import MEAN, RowChoice
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.training.config import ON_DEVICE, RunConfig
from colora.training.place_cores import room_for

__all__ = ["start_in_store", "starts_in_store"]


def starts_in_store(config: RunConfig, start: SavedBank | None, tasks: int) -> bool:
    """Whether a run's cores come one by one from the bank that it starts from, and are in a store from the beginning.

    Raises:
        ConfigError: its cores are of several sizes, and the run asks for all of them on the device.
    """
    if start is None:
        return False
    ranks = [start.config.r] if start.rows is None else [int(start.rows.index.columns["rank"].min())]
    several = min(*ranks, start.config.rank_of_new) < start.config.r
    if several and config.training.cores == "device":
        raise ConfigError(
            f"training.cores: {start.folder} has cores of several sizes, which are kept in memory or on disk, not on "
            "the device; leave it out, or say memory or disk"
        )
    return several or (config.training.cores != "device" and tasks > ON_DEVICE)


def start_in_store(model: PreTrainedModel, start: SavedBank, names: Sequence[str], config: RunConfig) -> PeftModel:
    """The bank that a run starts from, trainable, with the run's tasks in its order; new ones start at the mean core.

    Raises:
        BankFileError, BaseMismatchError, CheckpointError: as `attach_bank`.
    """
    places = np.fromiter((start.index.get(name, MEAN) for name in names), dtype=np.int64, count=len(names))
    folder = Path(config.output) if config.training.cores == "disk" else None
    return attach_stored(model, start, RowChoice(TaskNames(names), places), True, room_for(config), folder)
