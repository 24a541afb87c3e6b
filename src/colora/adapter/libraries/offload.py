"""Tensors of a bank that accelerate keeps on disk or in the CPU's memory (`device_map`), fetched when they are read.

accelerate leaves a tensor without data and fetches it when its module's `forward` is called. A dictionary of parameters
has no forward that anybody calls, so it fetches by itself.
"""

from typing import Any

from accelerate.utils import PrefixedDataset
from torch import nn

from colora.errors import ConfigError

__all__ = ["AdapterTensors", "check_not_offloaded"]


class AdapterTensors(nn.ParameterDict):
    """One parameter for each adapter name. An offloaded one is read as a copy on the device that computes."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if value.is_meta and (hook := _offloading_hook(self)) is not None:
            return _fetched(hook.weights_map, key).to(hook.execution_device)
        return value


def check_not_offloaded(base: nn.Module, layer_name: str) -> None:
    """Raises ConfigError where a new bank would be put on an offloaded layer: its tensors would have no data."""
    if _offloading_hook(base) is not None:
        raise ConfigError(
            f"layer {layer_name!r} is offloaded to disk or to the CPU (device_map): expected a layer in memory for a "
            "new bank; leave it out with exclude_modules or layers_to_transform, or load the base without offloading"
        )


def _offloading_hook(module: nn.Module) -> Any:
    """accelerate's hook that has the module's tensors, or None."""
    hook = getattr(module, "_hf_hook", None)
    return next((one for one in getattr(hook, "hooks", [hook]) if getattr(one, "offload", False)), None)


def _fetched(weights: PrefixedDataset, key: str) -> Any:
    try:
        return weights[key]
    except KeyError:
        # PEFT writes adapters to disk as layer.<adapter>.<tensor>, for it takes the tensors to be modules.
        layer, _, name = weights.prefix.removesuffix(".").rpartition(".")
        return weights.dataset[f"{layer}.{key}.{name}"]
