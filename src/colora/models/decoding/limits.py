"""What a model's configuration says about the lengths from which on it works differently."""

import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from colora.errors import ConfigError

__all__ = ["check_scaling", "spans"]

# Positions scaled by the same factors at any length; "dynamic" and "longrope" look at the longest row of the batch.
_STATIC_SCALING = {"default", "linear", "yarn", "llama3", "proportional"}
# Fields that may say how far a layer looks, whatever the model calls it. Those that check_attention and check_scaling
# understand are left out.
_SPAN = re.compile(r"window|chunk|local|block|span|stride|segment|floor_scale|context|memory|attention_(size|length)")
_NO_SPAN = re.compile(
    r"^(num|n)_|experts?|layers?|heads?|hidden|intermediate|_id$|_dim$|^sliding_window$|^initial_context|theta|freq|base"
)


def check_scaling(config: PretrainedConfig, positions: int) -> None:
    """Refuse rotary positions whose scaling changes with the longest row, where a row may be as long as that.

    Raises:
        ConfigError: naming the scaling and the length up to which it does not change.
    """
    text = config.get_text_config()
    for scaling in _scalings(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)):
        kind = str(scaling.get("rope_type", scaling.get("type", "default")))
        if kind in _STATIC_SCALING:
            continue
        original = scaling.get("original_max_position_embeddings")
        limit = original or getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
        if limit < positions:
            raise ConfigError(
                f"expected rotary positions that are scaled alike at every length up to {positions}, found {kind!r} "
                f"({text.model_type}), which changes for all rows of a batch as soon as one is longer than {limit}: "
                f"choose a length of at most {limit}"
            )


def _scalings(parameters: Any) -> Iterator[dict[str, Any]]:
    """The scaling of all layers, or one of each kind of layers."""
    if isinstance(parameters, dict):
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        yield from nested or [parameters]


def spans(config: PretrainedConfig, positions: int) -> dict[str, int]:
    """Fields of the configuration that may say that something changes at a length below `positions`."""
    return {
        name: value
        for name, value in _numbers(config.get_text_config().to_dict())
        if 1 < value < positions and _SPAN.search(name) and not _NO_SPAN.search(name.rpartition(".")[2])
    }


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
