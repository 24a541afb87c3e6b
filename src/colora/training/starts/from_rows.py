"""Starting a run of very many tasks from a bank in rows: nothing is read before a step wants it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from colora.adapter.task_names import TaskNames
from colora.bank.load import attach_rows
from colora.bank.rows.stored import MEAN, RowChoice
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.training.config import ON_DEVICE, RunConfig

__all__ = ["start_from_rows", "stays_in_rows"]


def stays_in_rows(config: RunConfig, start: SavedBank | None, tasks: int) -> bool:
    """Whether a run's cores come from the files of its first bank one by one, and are in a store from the beginning.

    Raises:
        ConfigError: its cores are of several sizes, and the run asks for all of them on the device.
    """
    if start is None or start.rows is None:
        return False
    several = int(start.rows.index.columns["rank"].min()) < start.config.r or start.config.rank_of_new < start.config.r
    if several and config.training.cores == "device":
        raise ConfigError(
            f"training.cores: {start.folder} has cores of several sizes, which are kept in memory or on disk, not on "
            "the device; leave it out, or say memory or disk"
        )
    return several or (config.training.cores != "device" and tasks > ON_DEVICE)


def start_from_rows(model: PreTrainedModel, start: SavedBank, names: Sequence[str], config: RunConfig) -> PeftModel:
    """The bank that a run starts from, trainable, with the run's tasks in its order; new ones start at the mean core.

    Raises:
        BankFileError, BaseMismatchError, CheckpointError: as `attach_bank`.
    """
    places = np.fromiter((start.index.get(name, MEAN) for name in names), dtype=np.int64, count=len(names))
    folder = Path(config.output) if config.training.cores == "disk" else None
    room = max(config.training.rows, config.evaluation.rows)
    return attach_rows(model, start, RowChoice(TaskNames(names), places), True, room, folder)
