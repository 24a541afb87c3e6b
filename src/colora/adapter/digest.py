"""The digest of a bank's tensors, by which a config and the tensors it was saved with are matched."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["tensors_sha256"]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the bank's own tensors (names, shapes, values), independent of device, order and PEFT's prefix.

    They are asked for one by one, so that a mapping may read each from a file.
    """
    digest = hashlib.sha256()
    for name, key in sorted((key.removeprefix("base_model.model."), key) for key in tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
