"""Whether this vLLM is one that the plugin knows: what it takes the place of, or calls, is private in parts."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vllm.config.lora import LoRAConfig
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.linear import LinearMethodBase, MergedColumnParallelLinear, QKVParallelLinear
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker import lora_model_runner_mixin

from colora.vllm.worker import BankWorkerManager

__all__ = ["differences"]

OWN = ("create_lora_manager", "set_active_adapters", "add_adapter", "remove_adapter", "add_dummy_lora")
"""Methods whose parameters must be those that are known; of the others the name is enough."""


def differences() -> list[str]:
    """What is not as the plugin needs it, one line each; empty if all is."""
    return [
        *_missing(lora_model_runner_mixin, "LRUCacheWorkerLoRAManager"),
        *_methods(),
        *_parameters(CpuPlatform.check_and_update_config, ["vllm_config"]),
        *_parameters(LoRAConfig.compute_hash, ["self"]),
        *_parameters(LinearMethodBase.apply, ["self", "layer", "x", "bias"]),
        *_parameters(MergedColumnParallelLinear.weight_loader, ["self", "param", "loaded_weight", "loaded_shard_id"]),
        *_parameters(QKVParallelLinear.weight_loader, ["self", "param", "loaded_weight", "loaded_shard_id"]),
    ]


def _missing(owner: ModuleType, name: str) -> list[str]:
    return [] if hasattr(owner, name) else [f"{owner.__name__} has no {name}"]


def _methods() -> list[str]:
    theirs, ours = _public(LRUCacheWorkerLoRAManager), _public(BankWorkerManager)
    found = [f"LRUCacheWorkerLoRAManager.{name} is new" for name in sorted(theirs - ours)]
    for name in OWN:
        if name not in theirs:
            found.append(f"LRUCacheWorkerLoRAManager has no {name}")
            continue
        names = [
            len(inspect.signature(getattr(one, name)).parameters)
            for one in (LRUCacheWorkerLoRAManager, BankWorkerManager)
        ]
        if names[0] != names[1]:
            found.append(f"LRUCacheWorkerLoRAManager.{name} takes {names[0]} parameters, not {names[1]}")
    return found


def _public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")} - {"settings"}


def _parameters(function: Callable[..., Any], expected: list[str]) -> list[str]:
    found = list(inspect.signature(function).parameters)
    return [] if found == expected else [f"{function.__qualname__} takes {', '.join(found)}"]
