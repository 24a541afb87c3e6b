"""Where the cores of a run are while they are trained (`training.cores`)."""

from collections.abc import Callable
from pathlib import Path

import psutil
from peft import PeftModel

from colora.adapter.stored.access import bytes_of_task, store_cores, stored_cores
from colora.training.config import ON_DEVICE, RunConfig

__all__ = ["place_cores", "room_for"]

SHARE_OF_MEMORY = 0.5


def place_cores(bank: PeftModel, config: RunConfig, tasks: int, log: Callable[[str], None]) -> None:
    """Put the cores of a new bank where the run file says.

    Args:
        bank: with all its cores on the device; one whose cores are in a store already stays as it is.
        config: the run.
        tasks: K.
        log: takes a line that says where.

    Raises:
        CheckpointError: the disk cannot be written.
    """
    if stored_cores(bank) is not None:
        return
    place, size = config.training.cores, tasks * bytes_of_task(bank)
    if place == "auto":
        fits = size < SHARE_OF_MEMORY * psutil.virtual_memory().available
        place = "device" if tasks <= ON_DEVICE else "memory" if fits else "disk"
    if place == "device":
        return
    store_cores(bank, room_for(config), Path(config.output) if place == "disk" else None)
    log(f"the cores of {tasks} tasks are kept {'in memory' if place == 'memory' else 'on disk'}, {size / 1e9:.1f} GB")


def room_for(config: RunConfig) -> int:
    """The most tasks that are at hand at once."""
    return max(config.training.rows, config.evaluation.rows)
