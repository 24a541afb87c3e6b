"""How many tokens a base model has positions for."""

from contextlib import suppress
from typing import Any

from torch import nn

from colora.errors import ConfigError

__all__ = ["check_positions", "most_positions"]

# transformers maps n_positions, n_ctx and the like to the first of these.
_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "max_encoder_position_embeddings")


def most_positions(model: nn.Module) -> int | None:
    """The longest sequence in tokens that the model can take; None if nothing bounds it."""
    config: Any = getattr(model, "config", None)
    with suppress(AttributeError, ValueError):
        config = config.get_text_config()
    limits = [limit for field in _FIELDS if isinstance(limit := getattr(config, field, None), int) and limit > 0]
    # RoBERTa and its kin begin to count after the padding's position.
    limits += [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    return min(limits, default=None)


def check_positions(model: nn.Module, max_length: int) -> None:
    """See that the model has positions for sequences of `max_length` tokens. Raises ConfigError if not."""
    positions = most_positions(model)
    if positions is not None and max_length > positions:
        name = getattr(model, "name_or_path", "") or type(model).__name__
        raise ConfigError(
            f"training.max_length is {max_length}, but {name} has {positions} positions: lower training.max_length"
        )
