"""A base model that is spread over processes: FSDP2, as transformers applies it while it loads.

Each process reads its part of each weight and no more. Before a block computes, its weights are gathered from all
processes, and freed after it; so a device holds its part of the model and one block. What is put on the model later,
such as a bank, is on each process as a whole.

    model, tokenizer = load_sharded("a-large-model", dtype=torch.bfloat16)  # in each process of torchrun
"""

import os
import re
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, Trainer
from transformers.utils import is_torch_greater_or_equal

from colora.errors import ConfigError
from colora.models.auto_class import auto_class
from colora.models.base import base_location, load_base
from colora.tasks.tokenizer import Tokenizer

__all__ = ["free_gathered", "is_sharded", "load_sharded", "local_bytes", "processes"]

_ANY_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def processes() -> int:
    """How many processes torchrun started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded(model: nn.Module) -> bool:
    """Whether a model was spread over processes while it was loaded."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def load_sharded(
    name: str, dtype: torch.dtype | str = torch.float32, *, chat_template: bool = True
) -> tuple[Any, Tokenizer]:
    """`load_base`, of which each process of torchrun loads its part, onto the accelerator of its own if there is one.

    Args:
        name, dtype, chat_template: as for `load_base`.

    Raises:
        ConfigError: there is one process, a library is too old, the base is quantised, or has no blocks that could be
            gathered one by one.
        BaseModelError: as `load_base`.
    """
    if processes() < 2:
        raise ConfigError(
            "training.shard: expected several processes, found one: start one for each device (torchrun "
            "--nproc_per_node N -m colora train RUN.yaml), or leave it out"
        )
    if not hasattr(Trainer, "_sync_replicated_trainable_parameters") or not is_torch_greater_or_equal("2.8"):
        raise ConfigError("training.shard: expected transformers 5.19 or later and torch 2.8 or later")
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(fsdp_size=processes(), fsdp_plan=_plan(name))
    model, tokenizer = load_base(name, dtype, chat_template=chat_template, distributed_config=config)
    model._tp_size = None  # PEFT takes the 1 there for tensor parallelism, and would gather the base to save a bank
    return model, tokenizer


def _plan(name: str) -> dict[str, str]:
    """Which modules are gathered one by one: the blocks that the model's class says must stay together."""
    try:
        config = AutoConfig.from_pretrained(base_location(name))
    except (OSError, ValueError):
        return {}  # `load_base` tells what is wrong
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"training.shard: the base {name!r} is quantised, and cannot be spread: use a base that is "
            "not quantised, or leave training.shard out"
        )
    with torch.device("meta"):
        model = auto_class(config, "auto").from_config(config)
    kinds = set(model._no_split_modules or ())
    blocks = {
        _ANY_NUMBER.sub("*", path): "free_full_weight"
        for path, module in model.named_modules()
        if type(module).__name__ in kinds
    }
    if not blocks:
        raise ConfigError(
            f"training.shard: {name!r}, a {type(model).__name__}, does not name the blocks that it "
            "consists of, so all of it would be gathered at once: leave training.shard out"
        )
    return blocks


def local_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters that this process holds."""
    return sum(getattr(one, "_local_tensor", one).nbytes for one in model.parameters())


def free_gathered(model: nn.Module) -> None:
    """Free what is gathered at the moment. For all processes, before one alone saves what is on the model.

    Reading a model's state frees it too: in one process alone, which would then gather where the others do not.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
