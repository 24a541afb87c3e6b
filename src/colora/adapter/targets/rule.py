"""Whether a module is a target of a config: PEFT's rule, and where a bank departs from it."""

import re
from collections.abc import Iterator
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import SEQ_CLS_HEAD_NAMES

__all__ = ["head_names", "is_target", "is_trained_whole", "layer_index"]

_HEADS = {
    "SEQ_CLS": tuple(SEQ_CLS_HEAD_NAMES),
    "TOKEN_CLS": tuple(SEQ_CLS_HEAD_NAMES),
    "QUESTION_ANS": ("qa_outputs",),
}


def is_target(config: PeftConfig, key: str) -> Any:
    """PEFT's answer (truthy, falsy, or its mark of an excluded module), with `layers_to_transform` always heeded.

    PEFT itself heeds it only for targets listed by their last name, not for a regular expression, and for "all-linear"
    only in models with many layers. Modules that are trained whole are never targets; PEFT forgets heads, and
    names that only end like those of `modules_to_save`.
    """
    found = check_target_module_exists(config, key)
    if found and is_trained_whole(config, key):
        return False
    if not found or config.layers_to_transform in (None, []):
        return found
    chosen = config.layers_to_transform
    return layer_index(key, config.layers_pattern) in ([chosen] if isinstance(chosen, int) else chosen)


def head_names(config: PeftConfig) -> tuple[str, ...]:
    """Heads that PEFT's model of a task type trains whole; for two of the types it says so only after the injection."""
    return _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())


def is_trained_whole(config: PeftConfig, key: str) -> bool:
    """Whether PEFT will train this module in full, or one around it; it compares the ends of names."""
    names = [*(config.modules_to_save or []), *head_names(config)]
    return any(part.endswith(name) for part in _and_around(key) for name in names)


def layer_index(key: str, patterns: list[str] | str | None) -> int | None:
    """The first number in the name that stands for a layer, as PEFT reads it."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", key):
            return int(match[1])
    return None


def _and_around(key: str) -> Iterator[str]:
    while key:
        yield key
        key = key.rpartition(".")[0]
