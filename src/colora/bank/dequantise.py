"""A base that is quantised, as the numbers that its weights stand for: what a task's update can be added to."""

import warnings
from typing import Any

from peft import PeftModel
from torch import nn

from colora.adapter.model import bank_layers, bank_tuner
from colora.errors import ConfigError

__all__ = ["dequantise"]


def dequantise(model: PeftModel) -> bool:
    """Replace the base's quantised layers by plain ones of the same weights; does nothing to a base that has none.

    Four bits become 16 or 32. What rounding to four bits has cost stays lost; but the sum with an update is not rounded
    once more, which would cost as much again.

    Returns:
        whether the base was quantised.

    Raises:
        ConfigError: transformers cannot undo this quantisation.

    Warns:
        UserWarning: with the dtype, if the base was quantised.
    """
    base: Any = bank_tuner(model).model
    if getattr(base, "hf_quantizer", None) is None:
        return False
    try:
        base.dequantize()
    except NotImplementedError as error:
        raise ConfigError(
            f"this quantised base model cannot be written with the update merged into it ({error}): "
            "export a LoRA, and load it on the quantised base model"
        ) from error
    for layer in bank_layers(base, model.active_adapters[0]).values():
        if isinstance(layer.get_base_layer(), nn.Linear):
            layer.quantization_backend = None
    warnings.warn(
        "the base is quantised: the merged model has what its weights stand for, as "
        f"{str(base.dtype).removeprefix('torch.')}, so that the update is not rounded with them; a LoRA beside the "
        "quantised base takes a fraction of the memory",
        stacklevel=3,
    )
    return True
