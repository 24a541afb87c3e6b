"""Whether a bank's tensors are those that are expected: by their shapes, and by the digest they were saved with."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["misfits", "tensors_sha256"]


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


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Which of the expected tensors are missing among those found, or have another shape."""
    missing = [f"{key}: missing" for key in sorted(expected.keys() - found.keys())]
    return missing + [
        f"{key}: expected shape {tuple(expected[key].shape)}, found {tuple(found[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
