"""The forward pre-hook of the base model, which takes the task ids out of the keywords.

A hook rather than the tuner's `forward`, for a base model is also called without its tuner: by `PeftModel` without a
task type, and after transformers' own `load_adapter`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from colora.adapter.libraries.checkpointing import checkpointed_blocks, keep_routing
from colora.adapter.router import Router
from colora.adapter.routing import Routing
from colora.errors import TaskIdError

__all__ = ["ROUTED_KEY", "RoutingHook", "batch_of", "check_rows"]

ROUTED_KEY = "colora_task_ids"
"""The keyword under which task ids pass through PEFT's model classes, which swallow one named `task_ids`."""

_BATCH_KEYS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids")


class RoutingHook:
    """The forward hooks of the base model: take the task ids out of the keywords, make the `Routing`, drop it after."""

    def __init__(self, router: Router, adapter_names: Callable[[nn.Module], list[str]]) -> None:
        self.router = router
        self.adapter_names = adapter_names
        self.blocks: list[nn.Module] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if module.training and not torch.compiler.is_compiling():
            self._keep_routing(module)
        task_ids = kwargs.pop(ROUTED_KEY, None)
        plain = kwargs.pop("task_ids", None)
        task_ids = plain if task_ids is None else task_ids
        batch = batch_of(args, kwargs)
        shape = batch.shape if batch is not None else None
        tokens = int(shape[1]) if shape is not None and len(shape) > 1 else None
        router = self.router
        if task_ids is not None:
            device = batch.device if batch is not None else None
            ids = router.resolve(task_ids, self.adapter_names(module), device)
            router.enter(Routing(ids, tokens))
            if shape is not None:
                check_rows(ids, shape)
        elif (generating := router.generating) is not None:
            router.enter(Routing(generating.ids, tokens, expandable=True))
        else:
            router.enter(router.bound(self.adapter_names(module)))
        return args, kwargs

    def _keep_routing(self, module: nn.Module) -> None:
        if getattr(module, "_is_replica", False):  # one of DataParallel's, made anew for each call
            keep_routing(checkpointed_blocks(module), self.router)
            return
        if self.blocks is None:
            self.blocks = checkpointed_blocks(module)
        keep_routing(self.blocks, self.router)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """The forward pass has ended, or failed."""
        self.router.leave()


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor among a model's arguments that tells the number of rows."""
    batch = next((kwargs[key] for key in _BATCH_KEYS if kwargs.get(key) is not None), args[0] if args else None)
    return batch if isinstance(batch, Tensor) else None


def check_rows(ids: dict[str, Tensor | int], shape: torch.Size) -> None:
    """Raises TaskIdError unless there is one id per row of a batch of this shape."""
    for rows in ids.values():
        if isinstance(rows, Tensor) and rows.shape[0] != shape[0]:
            raise TaskIdError(
                f"task_ids name {rows.shape[0]} rows, but the batch has {shape[0]} (its shape is {tuple(shape)})"
            )
