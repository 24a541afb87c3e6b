"""The server's part of a simulated round: what travels, counted to the byte, and what becomes of it.

The clients' copies are the blocks of one stacked tensor, so averaging is a mean over its first dimension. What travels
is serialised as it would be on the wire (safetensors) and its length counted; nothing is estimated. The start does not
travel where a seed is enough for it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from colora.experiments.methods.layer import ConstrainedLinear, TermLayer
from colora.experiments.methods.method import Method

__all__ = ["Traffic", "averaged_parts", "end_round", "message_bytes"]


@dataclass
class Traffic:
    """Bytes from all clients to the server and from the server to all clients."""

    up: int = 0
    down: int = 0


def message_bytes(tensors: dict[str, Tensor]) -> int:
    """Length of a message on the wire."""
    return len(safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def averaged_parts(layer: ConstrainedLinear, frozen: Collection[str]) -> Iterator[tuple[str, TermLayer, str, Tensor]]:
    """What the server averages in this layer: a name for the message, the term, the part's name, and the copies."""
    for number, term in enumerate(layer.term_layers()):
        for part, tensor in term.parts():
            if term.term.parts()[part].averaged and part + "'" * number not in frozen:
                yield f"{number}.{part}", term, part, tensor


@torch.no_grad()
def end_round(layers: dict[str, ConstrainedLinear], method: Method, frozen: Collection[str]) -> Traffic:
    """Every client sends its copies of what is averaged and moved; all get the mean, and what the method folds.

    All clients weigh the same: they have equally many examples here.

    Returns:
        the bytes of this round.
    """
    clients = max((layer.tasks for layer in layers.values()), default=0)
    sent: list[dict[str, Tensor]] = [{} for _ in range(clients)]
    returned: dict[str, Tensor] = {}
    for place, layer in layers.items():
        residual = _residual(layer) if method.folds_residual else None
        for name, _, _, copies in averaged_parts(layer, frozen):
            for client in range(clients):
                sent[client][f"{place}.{name}"] = copies[client].clone()  # which the mean overwrites
            mean = copies.mean(0, keepdim=True)
            returned[f"{place}.{name}"] = mean[0].clone()
            copies.copy_(mean.expand_as(copies))
        if residual is not None:
            left, right = residual
            returned[f"{place}.residual_B"], returned[f"{place}.residual_A"] = left, right
            update = layer.scale * (left @ right)
            layer.folded = update if layer.folded is None else layer.folded + update
    if not returned:
        return Traffic()
    return Traffic(sum(map(message_bytes, sent)), clients * message_bytes(returned))


def _residual(layer: ConstrainedLinear) -> tuple[Tensor, Tensor]:
    """mean_k B_k A_k − mean(B) mean(A) of all terms as two factors, (d_out, R) and (R, d_in), R = (K + 1) r."""
    left, right = [], []
    for term in layer.term_layers():
        A, B = term.A.detach(), term.B.detach()
        left += [torch.cat([*(B / len(B)), -B.mean(0)], dim=1)]
        right += [torch.cat([*A, A.mean(0)], dim=0)]
    return torch.cat(left, dim=1), torch.cat(right, dim=0)
