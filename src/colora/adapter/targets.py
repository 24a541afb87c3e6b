"""Which modules of a base model a bank adapts."""

import re
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["is_target", "linear_names"]


def is_target(config: PeftConfig, key: str) -> Any:
    """PEFT's answer (truthy, falsy, or its mark of an excluded module), with `layers_to_transform` always heeded.

    PEFT itself heeds it only for targets listed by their last name, not for a regular expression, and for "all-linear"
    only in models with many layers.
    """
    found = check_target_module_exists(config, key)
    if not found or config.layers_to_transform in (None, []):
        return found
    chosen = config.layers_to_transform
    return _layer_index(key, config.layers_pattern) in ([chosen] if isinstance(chosen, int) else chosen)


def linear_names(model: nn.Module) -> str:
    """The last names of all linear layers, for an error message."""
    names = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    return ", ".join(sorted(names)) or "none"


def _layer_index(key: str, patterns: list[str] | str | None) -> int | None:
    """The first number in the name that stands for a layer, as PEFT reads it."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", key):
            return int(match[1])
    return None
