"""What there is of a bank in a base model: its layers, its router, its forward hook."""

from torch import Tensor, nn

from colora.adapter.experts import ExpertLinear
from colora.adapter.hook import RoutingHook
from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router

__all__ = ["active_adapters", "bank_layers", "bank_router", "base_weights", "model_type", "remove_hook"]


def bank_layers(model: nn.Module, adapter_name: str) -> dict[str, CoLoRALinear]:
    """The adapted layers of an adapter by their name in the base model (without PEFT's `base_model.model.`)."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, CoLoRALinear) and adapter_name in module.colora_core
    }


def base_weights(model: nn.Module, adapter_name: str) -> dict[str, nn.Module | Tensor]:
    """What of the base an adapter adapts: its linear layers, and its fused weights."""
    layers: dict[str, nn.Module | Tensor] = {}
    for name, layer in bank_layers(model, adapter_name).items():
        if isinstance(layer, ExpertLinear):
            layers[name.rpartition(".")[0]] = layer.fused_weight
        else:
            layers[name] = layer.get_base_layer()
    return layers


def bank_router(model: nn.Module) -> Router | None:
    """The router of a base model that has a bank, or None."""
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, RoutingHook):
            return hook.router
    return None


def remove_hook(model: nn.Module) -> None:
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, RoutingHook):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, after in list(model._forward_hooks.items()):
        if isinstance(getattr(after, "__self__", None), RoutingHook):
            del model._forward_hooks[key]


def active_adapters(model: nn.Module) -> list[str]:
    """Active adapters, read off the layers, for the tuner is not there when transformers loaded the bank itself."""
    for module in model.modules():
        if isinstance(module, CoLoRALinear):
            return [name for name in module.active_adapters if name in module.colora_core]
    return []


def model_type(model: nn.Module) -> str | None:
    """What transformers calls the kind of this model, if it is one of transformers'."""
    return getattr(getattr(model, "config", None), "model_type", None)
