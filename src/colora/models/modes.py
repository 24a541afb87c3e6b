"""Evaluation mode for a while: without gradients, or with gradients of chosen parameters only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["eval_mode", "eval_mode_with_gradients", "training_mode"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule has the mode it had.

    `no_grad` and not `inference_mode`: what a module computes once and keeps (a rotary table, a dequantised weight)
    would otherwise be an inference tensor, and the next training step would fail on it.
    """
    with _evaluating(model), torch.no_grad():
        yield


@contextmanager
def eval_mode_with_gradients(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode in which `parameters` require gradients; afterwards all is as it was."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with _evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode; afterwards every submodule has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Module by module, since `model.train()` would also change modules that were in evaluation mode before.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
