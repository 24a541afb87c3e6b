"""Gradient checkpointing that keeps each forward pass's task ids for its own recomputation.

transformers runs a checkpointed block through `block._gradient_checkpointing_func`. The block is run again during
the backward pass, when another forward pass may have changed the current routing: the gradients would then be those
of other tasks' cores, without a word. So the function is wrapped: it binds the routing of the call.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from colora.adapter.routing import Router, Routing

__all__ = ["checkpointed_blocks", "keep_routing"]


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformers model that can be checkpointed, whether or not they are now."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def keep_routing(blocks: Iterable[nn.Module], router: Router) -> None:
    """Wrap the checkpointing function of every block that has one; those already wrapped stay."""
    for block in blocks:
        function = getattr(block, "_gradient_checkpointing_func", None)
        if function is not None and not isinstance(function, _RoutedCheckpoint):
            block._gradient_checkpointing_func = _RoutedCheckpoint(function, router)  # type: ignore[assignment]


class _RoutedCheckpoint:
    def __init__(self, function: Callable[..., Any], router: Router) -> None:
        self.function = function
        self.router = router

    def __call__(self, block: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        return self.function(partial(_run, self.router, self.router.current, block), *args, **kwargs)


def _run(router: Router, routing: Routing | None, block: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    before, router.current = router.current, routing
    try:
        return block(*args, **kwargs)
    finally:
        router.current = before
