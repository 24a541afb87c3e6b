"""What a federation knows, as small values: the server's, a client's, and what passes between them.

Factors are named "A/LAYER" (r, d_in) and "B/LAYER" (d_out, r), cores "LAYER" (r, r); all are float32 on the CPU.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Broadcast", "ClientState", "Reply", "ServerState", "Tensors", "digest", "digests", "moving", "part"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds.

    Attributes:
        federation: a random name of this federation, under which clients keep their cores.
        round: rounds done.
        shared: all A and B.
        base: identity of the base model, as `base_identity` makes it.
        moments: of the server optimiser, by "m/NAME" and "v/NAME".
        holders: for each client, the digest of A and of B that it is known to have.
    """

    federation: str
    round: int
    shared: Tensors
    base: Mapping[str, Any]
    moments: Tensors = field(default_factory=dict)
    holders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientState:
    """A client between two rounds. Stays on its disk.

    Attributes:
        round: the round after the last one it took part in; 0 for a newcomer.
        cores: its Λ of each layer.
        shared: the A and B it knows.
        position: local batches drawn so far, so that examples come in whole passes.
        moments: Adam's, of the cores: "m/LAYER", "v/LAYER" and, steps made, "t/LAYER"; of the factors if they are kept.
        steps: Adam steps that the cores have made.
        residual: what compression left out of earlier updates.
    """

    round: int
    cores: Tensors
    shared: Tensors
    position: int = 0
    moments: Tensors = field(default_factory=dict)
    steps: int = 0
    residual: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to one client to start a round.

    Attributes:
        round: which round this is, from 0.
        digests: of the A and the B that the round starts from.
        factors: those of them that the client does not have yet.
    """

    federation: str
    round: int
    base: Mapping[str, Any]
    digests: Mapping[str, str]
    factors: Tensors


@dataclass(frozen=True)
class Reply:
    """What a client sends back. Neither its core nor its text is in here.

    Attributes:
        client: who.
        payload: the update of the moving factors, compressed or not.
        examples: training examples that it has.
        loss: mean nats per token over its local steps, or None if the client does not tell.
        missing: it lacks a factor that the server took it to have; then there is no payload.
    """

    client: str
    federation: str
    round: int
    payload: Tensors
    examples: int
    loss: float | None = None
    missing: bool = False


def part(name: str) -> str:
    """ "A" or "B": which factor a tensor belongs to."""
    return name.partition("/")[0]


def moving(shared: Tensors, parts: str) -> Tensors:
    """The factors of `shared` that are in `parts`, "A", "B" or "AB"."""
    return {name: tensor for name, tensor in shared.items() if part(name) in parts}


def digest(shared: Tensors, which: str) -> str:
    """SHA-256 over names, shapes and bytes of all A, or all B."""
    found = hashlib.sha256()
    for name, tensor in sorted(moving(shared, which).items()):
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().to(torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()


def digests(shared: Tensors) -> dict[str, str]:
    """The digest of A and of B."""
    return {which: digest(shared, which) for which in "AB"}
