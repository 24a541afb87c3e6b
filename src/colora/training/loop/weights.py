"""The trained weights of a checkpoint, checked against a model before any of them is changed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from colora.errors import CheckpointError

__all__ = ["check_weights", "put_weights"]


def check_weights(model: nn.Module, saved: Mapping[str, Tensor], checkpoint: Path, cores: bool) -> None:
    """See that these are the weights that this model trains.

    Args:
        model: with a bank.
        saved: by name.
        checkpoint: for messages.
        cores: whether the cores are among them; those in a store are not.

    Raises:
        CheckpointError: a weight is in one of the two alone, or has another shape.
    """
    own = {
        name: tuple(one.shape)
        for name, one in model.named_parameters()
        if one.requires_grad and (cores or "colora_core" not in name)
    }
    if odd := sorted(own.keys() ^ saved.keys()):
        raise CheckpointError(f"{checkpoint} is of another model: only one of the two has {odd[0]}")
    for name, shape in own.items():
        if tuple(saved[name].shape) != shape:
            found = f"{tuple(saved[name].shape)}, expected {shape}"
            raise CheckpointError(f"{checkpoint} is of another model: {name} has the shape {found}")


@torch.no_grad()
def put_weights(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give the model these weights."""
    for name, value in saved.items():
        model.get_parameter(name).copy_(value)
