"""Whether a bank's tensors are those that are expected: by their shapes, and by the digest they were saved with."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from colora.common.text import shortened
from colora.errors import BankFileError

__all__ = ["check_tensors", "tensors_sha256"]


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


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], own: Mapping[str, Tensor], sha256: str | None
) -> None:
    """See that a bank's tensors are whole.

    Args:
        expected, found: the bank's parameters on a model, and what was found for them, by the same names.
        own: what was found, by the names of the file.
        sha256: the digest that they should have, if it is known.

    Raises:
        BankFileError: naming tensors that are missing or have another shape; or the digest is another.
    """
    faults = [f"{key}: missing" for key in sorted(expected.keys() - found.keys())]
    faults += [
        f"{key}: expected shape {tuple(expected[key].shape)}, found {tuple(found[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    if not faults and sha256 and tensors_sha256(own) != sha256:
        faults.append(
            "the tensors are not those that adapter_config.json was saved with (digest weights_sha256); if the change "
            "is intended, remove that field from adapter_config.json"
        )
    if faults:
        head = f"the saved bank does not fit its config ({len(faults)} faults):"
        raise BankFileError("\n  - ".join([head, *shortened(faults, 5)]))
