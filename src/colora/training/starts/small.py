"""A bank of very many tasks: it begins with one, and the others are added once its cores are in a store.

So no stack of all cores is ever made. The tasks that are added start as `add_tasks(init="rotated")` lets them, each at
a rotation that the run's seed and its place decide; a bank that begins whole draws all of them at once.
"""

from collections.abc import Callable, Sequence

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_tuner
from colora.training.config import RunConfig
from colora.training.place_cores import place_cores

__all__ = ["small_start"]

AT_ONCE = 65_536


def small_start(
    config: RunConfig, adapter: CoLoRAConfig, names: Sequence[str], model: PreTrainedModel, log: Callable[[str], None]
) -> PeftModel:
    """The bank on its base model, with its cores where the run file says.

    Args:
        config: the run.
        adapter: the config of the bank, with the first task alone.
        names: of all tasks, in the order of their ids.
        model: the base.
        log: takes a line that says where the cores are.

    Raises:
        ConfigError: a name that cannot be one.
        CheckpointError: the disk cannot be written.
    """
    bank = get_peft_model(model, adapter)
    place_cores(bank, config, len(names), log)
    tuner = bank_tuner(bank)
    for begin in range(1, len(names), AT_ONCE):
        tuner.add_tasks(names[begin : begin + AT_ONCE], init="rotated")
    return bank
