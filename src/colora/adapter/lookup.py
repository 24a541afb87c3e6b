"""What there is of a bank in a model, whatever wraps that: its layers, its router, its forward hook, its tasks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft import PeftModel
from torch import Tensor, nn

from colora.adapter.hook import RoutingHook, check_rows
from colora.adapter.layer import CoLoRALinear
from colora.adapter.mixtures.experts import ExpertLinear
from colora.adapter.router import Router
from colora.adapter.routing import TaskIds
from colora.common.packed import keep_differentiable
from colora.errors import ConfigError

__all__ = [
    "active_adapters",
    "add_hook",
    "bank_layers",
    "bank_router",
    "bank_routers",
    "bank_tasks",
    "base_weights",
    "check_on_model",
    "check_unwrapped",
    "model_type",
    "only_bank",
    "remove_hook",
    "set_task",
    "with_tasks",
    "wrapped_router",
]


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


def wrapped_router(model: nn.Module) -> Router | None:
    """The same of a base model that a `PeftModel` may be around."""
    return bank_router(model.get_base_model() if isinstance(model, PeftModel) else model)


def check_on_model(model: nn.Module, adapter_name: str) -> None:
    """Raises ConfigError where most cores of an adapter are in a store."""
    if (router := wrapped_router(model)) is not None:
        router.check_on_model(adapter_name)


def add_hook(model: nn.Module) -> Router:
    """Give a base model the forward hook that routes, if it has none yet; its router.

    A base that is quantised is kept as it can be differentiated.
    """
    router = bank_router(model)
    if router is None:
        keep_differentiable(model)
        hook = RoutingHook(router := Router(), active_adapters)
        model.register_forward_pre_hook(hook, with_kwargs=True)
        model.register_forward_hook(hook.after, always_call=True)
    return router


def remove_hook(model: nn.Module) -> None:
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, RoutingHook):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, after in list(model._forward_hooks.items()):
        if isinstance(getattr(after, "__self__", None), RoutingHook):
            del model._forward_hooks[key]
            model._forward_hooks_always_called.pop(key, None)


def active_adapters(model: nn.Module) -> list[str]:
    """Active adapters, read off the layers, for the tuner is not there when transformers loaded the bank itself."""
    for module in model.modules():
        if isinstance(module, CoLoRALinear):
            return [name for name in module.active_adapters if name in module.colora_core]
    return []


def model_type(model: nn.Module) -> str | None:
    """What transformers calls the kind of this model, if it is one of transformers'."""
    return getattr(getattr(model, "config", None), "model_type", None)


def bank_routers(model: nn.Module) -> list[Router]:
    """The routers of all models with a bank inside this one."""
    return [router for module in model.modules() if (router := bank_router(module)) is not None]


def check_unwrapped(model: nn.Module, adapter_name: str) -> None:
    """Before a bank is made: is this a base model, and has it no bank of this name yet?

    Raises:
        ConfigError: saying what to do instead. PEFT would only warn; the new bank would adapt the layers of the other
            adapter, or take the place of a bank that another `PeftModel` holds.
    """
    if isinstance(model, PeftModel):
        kinds = sorted({str(getattr(one.peft_type, "value", one.peft_type)) for one in model.peft_config.values()})
        raise ConfigError(
            f"expected a base model, found a {type(model).__name__} with {', '.join(kinds)}: add tasks to its bank "
            "with add_tasks, or a second bank with add_adapter(name, config); merge another adapter first "
            "(merge_and_unload)"
        )
    if any(isinstance(one, CoLoRALinear) and adapter_name in one.colora_core for one in model.modules()):
        raise ConfigError(
            f"this {type(model).__name__} has a bank {adapter_name!r} already (get_peft_model and "
            "load_adapter change the base model in place): load the base model again, unload the other "
            "bank, or use another adapter_name"
        )


def bank_tasks(model: nn.Module) -> Sequence[str]:
    """Names of the tasks of the model's active bank, in the order of their ids; a list, unless they are very many.

    Raises:
        ConfigError: if the model has no bank, or several are active.
    """
    _, router, adapter_name = only_bank(model)
    return router.listing(adapter_name)


def set_task(model: nn.Module, name: str | None) -> None:
    """Use one task of the model's bank wherever no `task_ids` are given; None takes the choice back.

    Args:
        model: a `PeftModel`, a transformers model that loaded a bank itself, or one of them wrapped.
        name: the task.

    Raises:
        ConfigError: if the model has no bank, or several are active.
        TaskIdError: if the bank has no such task.
    """
    _, router, adapter_name = only_bank(model)
    router.choose(adapter_name, name)


@contextmanager
def with_tasks(model: nn.Module, task_ids: TaskIds | None, batch: Tensor | None = None) -> Iterator[None]:
    """`CoLoRAModel.tasks_of` for any model with a bank: its tasks for every forward pass inside the `with` block."""
    base, router = _base(model)
    with router.generation(task_ids, active_adapters(base), next(base.parameters()).device) as ids:
        if batch is not None and ids is not None:
            check_rows(ids, batch.shape)
        yield


def _base(model: nn.Module) -> tuple[nn.Module, Router]:
    found = [(module, router) for module in model.modules() if (router := bank_router(module)) is not None]
    if len(found) != 1:
        raise ConfigError(f"expected a model with one bank, found a {type(model).__name__} with {len(found) or 'none'}")
    return found[0]


def only_bank(model: nn.Module) -> tuple[nn.Module, Router, str]:
    """The base model, the router and the name of a model's one active bank.

    Raises:
        ConfigError: if the model has no bank, or several are active.
    """
    base, router = _base(model)
    return base, router, _only_adapter(base)


def _only_adapter(base: nn.Module) -> str:
    active = active_adapters(base)
    if len(active) != 1:
        raise ConfigError(f"expected one active bank, found {len(active)} ({', '.join(active) or 'none'})")
    return active[0]
