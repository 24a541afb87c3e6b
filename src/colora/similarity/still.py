"""A model that is looked at and not changed: in evaluation mode, with gradients where they are wanted."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["still"]


@contextmanager
def still(model: nn.Module, asking: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Inside, no module is in training mode and the parameters `asking` require gradients; afterwards all is as it was.

    Module by module, for `model.train()` would also wake those that somebody had put to rest.
    """
    training = [module for module in model.modules() if module.training]
    frozen = [parameter for parameter in asking if not parameter.requires_grad]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in training:
            module.training = True
