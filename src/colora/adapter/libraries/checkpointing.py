"""Gradient checkpointing that keeps each forward pass's task ids for its own recomputation.

transformers runs a checkpointed block through `block._gradient_checkpointing_func`, and torch's `CheckpointWrapper`,
which accelerate uses for FSDP, through its `checkpoint_fn`. The block is run again during the backward pass, when
another forward pass may have changed the current routing: the gradients would then be those of other tasks' cores,
without a word. So the function is wrapped: it binds the routing of the call.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from colora.adapter.router import Router
from colora.adapter.routing import Routing

__all__ = ["checkpointed_blocks", "keep_routing"]

_FUNCTIONS = ("_gradient_checkpointing_func", "checkpoint_fn")
"""Attributes that hold the checkpointing function: of transformers' blocks, and of torch's `CheckpointWrapper`."""


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model that can be checkpointed, whether or not they are now."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "gradient_checkpointing") or "checkpoint_fn" in vars(module)
    ]


def keep_routing(blocks: Iterable[nn.Module], router: Router) -> None:
    """Wrap the checkpointing function of every block that has one; those already wrapped stay."""
    for block in blocks:
        for name in _FUNCTIONS:
            function = vars(block).get(name)
            if function is not None and not isinstance(function, _RoutedCheckpoint):
                setattr(block, name, _RoutedCheckpoint(function, router))


class _RoutedCheckpoint:
    def __init__(self, function: Callable[..., Any], router: Router) -> None:
        self.function = function
        self.router = router

    def __call__(self, block: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        return self.function(partial(_run, self.router, self.router.current, block), *args, **kwargs)


def _run(router: Router, routing: Routing | None, block: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    with router.during(routing):
        return block(*args, **kwargs)
