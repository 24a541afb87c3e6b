"""The base model of a run, as its file says it is loaded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from colora.bank.load import attach_bank, load_bank
from colora.bank.tensors import SavedBank
from colora.common.device import DTYPES, training_device
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.models.sharding import is_sharded, load_sharded, processes
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import RunConfig

__all__ = ["load_run_bank", "load_run_base", "on_device"]


def load_run_base(config: RunConfig, name: str | None = None) -> tuple[Any, Tokenizer]:
    """The base model and its tokenizer: spread over the processes with `training.shard`, else where loading puts it.

    Args:
        config: the run.
        name: another place of the same base model.

    Raises:
        BaseModelError, ConfigError: as `load_base` and `load_sharded`.
    """
    if config.training.shard:
        _check_shard(config)
    load = load_sharded if config.training.shard else load_base
    dtype = DTYPES[config.training.base_dtype]
    return load(name or config.base, dtype=dtype, chat_template=config.chat_template)


def on_device(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model on the device of the run; one that is sharded is there already."""
    device = training_device(config.training.device)
    return model if device is None or is_sharded(model) else model.to(device)


def load_run_bank(
    config: RunConfig, saved: SavedBank, base: str | None = None, tasks: Sequence[str] | None = None
) -> tuple[Any, Tokenizer]:
    """A bank of the run on its base model, to be measured; spread over the processes if there are several.

    Args:
        config: the run.
        saved: the bank.
        base: another place of the same base model.
        tasks: the only ones that are wanted; None: all.

    Raises:
        BankFileError, BaseMismatchError: as `load_bank`.
        BaseModelError, ConfigError: as `load_run_base`.
    """
    if not (config.training.shard and processes() > 1):
        dtype, device = DTYPES[config.training.base_dtype], training_device(config.training.device)
        model, tokenizer, _ = load_bank(saved, base, dtype=dtype, device=device, tasks=tasks)
        return model, tokenizer
    config = config.model_copy(update={"chat_template": saved.info.chat_template})
    model, tokenizer = load_run_base(config, base or saved.info.base)
    return attach_bank(model, saved, tasks=tasks), tokenizer


def _check_shard(config: RunConfig) -> None:
    """Raises ConfigError, before anything is loaded, for what cannot be done on a base that is spread."""
    if config.adapter.modules_to_save:
        raise ConfigError(
            "training.shard: all of the base stays frozen, but adapter.modules_to_save names "
            f"{', '.join(config.adapter.modules_to_save)}: remove one of the two"
        )
    if config.adapter.target_parameters:
        raise ConfigError(
            "training.shard: fused experts are adapted in memory as a whole, but adapter.target_parameters names "
            f"{', '.join(config.adapter.target_parameters)}: remove one of the two"
        )
    if config.training.device == "cpu" and torch.accelerator.is_available():
        raise ConfigError("training.shard: spreads over the accelerators that there are: remove training.device: cpu")
