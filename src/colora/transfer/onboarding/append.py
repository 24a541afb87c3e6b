"""The cores of new tasks at the end of a bank in memory; all that was there stays, to the bit."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from colora.bank.tensors import BankContents, tensor_key

__all__ = ["append_cores"]


def append_cores(files: BankContents, cores: Sequence[tuple[str, Mapping[str, Tensor]]]) -> None:
    """Add tasks to a bank, in this order, each with its core (r, r) for each layer.

    Files may hold other numbers than the cores have (bfloat16, float64): the stacks become as fine as both, so that
    neither is rounded.
    """
    for layer in cores[0][1] if cores else ():
        key = tensor_key(layer, "core")
        before, new = files.tensors[key], torch.stack([core[layer] for _, core in cores])
        work = torch.promote_types(before.dtype, new.dtype)
        files.tensors[key] = torch.cat([before.to(work), new.to(work)])
    files.config["tasks"] = [*files.tasks, *(name for name, _ in cores)]
