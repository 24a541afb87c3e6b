"""Smaller uploads: eight bits a number, or the largest numbers alone; the rest is kept for the next update.

Error feedback (Seide et al., 2014; Karimireddy et al., arXiv:1901.09847): a client adds to each update what compression
left out of the updates before, so that nothing is lost, only late.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from colora.errors import FederationError
from colora.federated.state import Tensors

__all__ = ["Compression", "compress", "decompress"]

Compression = Literal["none", "int8", "topk"]
KINDS = get_args(Compression)
SUFFIXES = {"none": ("",), "int8": (".int8", ".scale"), "topk": (".index", ".value")}


def compress(update: Tensors, residual: Tensors, kind: Compression, keep: float) -> tuple[Tensors, Tensors]:
    """The payload that encodes `update` + `residual`, and the new residual.

    Args:
        update: the change of the client's factors.
        residual: what was left out of earlier updates; may lack names.
        kind: "none"; "int8": each row by its largest magnitude over 127; "topk": the `keep` largest magnitudes.
        keep: share of the numbers to send, in (0, 1].

    Examples:
        >>> payload, residual = compress({"A/x": torch.tensor([[3.0, -1.0]])}, {}, "topk", keep=0.5)
        >>> payload["A/x.value"], residual["A/x"]
        (tensor([3.]), tensor([[ 0., -1.]]))
    """
    if kind == "none":
        return dict(update), {}
    payload: Tensors = {}
    remaining: Tensors = {}
    for name, tensor in update.items():
        whole = tensor + residual[name] if name in residual else tensor
        if kind == "int8":
            scale = whole.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
            pieces = {".int8": (whole / scale).round().to(torch.int8), ".scale": scale.squeeze(1)}
        else:
            flat = whole.flatten()
            index = flat.abs().topk(max(1, round(keep * flat.numel()))).indices.sort().values
            pieces = {".index": index.to(torch.int32), ".value": flat[index]}
        payload |= {f"{name}{suffix}": piece for suffix, piece in pieces.items()}
        remaining[name] = whole - _restore(pieces, tensor, kind)
    return payload, remaining


def decompress(payload: Tensors, like: Tensors, kind: Compression) -> Tensors:
    """The update that a payload encodes, with the names and shapes of `like`.

    Raises:
        FederationError: a name, shape, type or index is not what `kind` gives for `like`.
    """
    expected = {f"{name}{suffix}" for name in like for suffix in SUFFIXES[kind]}
    if payload.keys() != expected:
        first = min(expected ^ payload.keys())
        raise FederationError(f"expected {len(expected)} tensors, found {len(payload)}, first difference {first!r}")
    update = {}
    for name, tensor in like.items():
        pieces = {suffix: payload[f"{name}{suffix}"] for suffix in SUFFIXES[kind]}
        _check(name, pieces, tensor, kind)
        update[name] = _restore(pieces, tensor, kind)
    return update


def _restore(pieces: Tensors, like: Tensor, kind: Compression) -> Tensor:
    if kind == "none":
        return pieces[""]
    if kind == "int8":
        return pieces[".int8"].to(torch.float32) * pieces[".scale"].unsqueeze(1)
    flat = torch.zeros(like.numel())
    return flat.index_copy_(0, pieces[".index"].long(), pieces[".value"]).view(like.shape)


def _check(name: str, pieces: Tensors, like: Tensor, kind: Compression) -> None:
    shapes = {"": like.shape, ".int8": like.shape, ".scale": like.shape[:1]}
    types = {".int8": torch.int8, ".index": torch.int32}
    for suffix, piece in pieces.items():
        wanted = types.get(suffix, torch.float32)
        if piece.dtype != wanted:
            raise FederationError(f"{name}{suffix}: expected {wanted}, found {piece.dtype}")
        if suffix in shapes and piece.shape != shapes[suffix]:
            raise FederationError(f"{name}{suffix}: expected shape {tuple(shapes[suffix])}, found {tuple(piece.shape)}")
    if kind == "topk":
        index, value = pieces[".index"], pieces[".value"]
        if index.ndim != 1 or index.shape != value.shape or not len(index):
            raise FederationError(f"{name}: expected as many indices as values, found {index.shape}, {value.shape}")
        if int(index.min()) < 0 or int(index.max()) >= like.numel() or len(index.unique()) != len(index):
            raise FederationError(f"{name}: expected different indices from 0 to {like.numel() - 1}")
