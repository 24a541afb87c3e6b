"""A core as a row: of each layer, by name, its r × r matrix; and the digest by which a torn row is found.

Examples:
    >>> import torch
    >>> padded(torch.ones(1, 2, 1, 1), rank=2).tolist()  # one core of two layers, of rank 1 in a bank of rank 2
    [[[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]]
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from colora.bank.rows.index import DIGEST_BYTES

__all__ = ["core_of", "digests", "padded", "row_of"]


def row_of(core: Mapping[str, Tensor], layers: Sequence[str]) -> Float[Tensor, "layers k k"]:
    """A core, (k, k) for each layer by its name, as a row."""
    return torch.stack([core[layer].detach().cpu() for layer in layers])


def core_of(row: Float[Tensor, "layers k k"], layers: Sequence[str]) -> dict[str, Tensor]:
    """The core, (k, k) for each layer by its name, that a row is."""
    return {layer: one.clone() for layer, one in zip(layers, row, strict=True)}


def padded(rows: Float[Tensor, "n layers k k"], rank: int) -> Float[Tensor, "n layers {rank} {rank}"]:
    """Cores of a smaller rank in the leading corner of larger ones, which are zero elsewhere."""
    k = rows.shape[-1]
    if k == rank:
        return rows
    larger = rows.new_zeros(*rows.shape[:2], rank, rank)
    larger[..., :k, :k] = rows
    return larger


def digests(rows: Float[Tensor, "n layers k k"]) -> UInt8[np.ndarray, "n bytes"]:
    """BLAKE2b of the bytes of each row."""
    content = rows.contiguous().flatten(1).view(torch.uint8).numpy()
    found = b"".join(blake2b(row.data, digest_size=DIGEST_BYTES).digest() for row in content)
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
