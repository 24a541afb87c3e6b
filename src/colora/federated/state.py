"""The data of a federation as small values: the server's state, a client's state, and the messages between them.

Factors are named "A/LAYER" (r, d_in) and "B/LAYER" (d_out, r), cores "LAYER" (r, r); all are float32 on the CPU.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

__all__ = [
    "PARTS",
    "Broadcast",
    "ClientState",
    "Reply",
    "ServerState",
    "Tensors",
    "digest",
    "digests",
    "message_bytes",
    "message_content",
    "part_of",
    "select_parts",
]

Tensors = dict[str, Tensor]
PARTS = "AB"
"""The two factors that are shared: each is hashed, sent and frozen as a whole."""


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds.

    Attributes:
        federation: a random name of this federation, under which clients keep their cores.
        round: rounds done.
        shared: all A and B.
        base: identity of the base model, as `base_identity` makes it.
        moments: of the server optimiser, by "m/NAME" and "v/NAME".
        holders: for each client, the digests of the A and the B that it has.
    """

    federation: str
    round: int
    shared: Tensors
    base: Mapping[str, Any]
    moments: Tensors = field(default_factory=dict)
    holders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digests of A and B, hashed once for all clients of a round."""
        return digests(self.shared)


@dataclass(frozen=True)
class ClientState:
    """A client between two rounds. It stays on the client's disk.

    Attributes:
        round: the round after the last one that the client took part in; 0 for a new client.
        cores: the client's Λ of each layer.
        shared: the A and B that the client has.
        position: local batches drawn so far, so that examples come in whole passes.
        moments: Adam's, of the cores: "m/LAYER", "v/LAYER" and, steps made, "t/LAYER"; of the factors if they are kept.
        steps: Adam steps that the cores have made.
        residual: what compression left out of earlier updates.
        digests: of `shared`, or empty where these have not been hashed since they were read from disk.
    """

    round: int
    cores: Tensors
    shared: Tensors
    position: int = 0
    moments: Tensors = field(default_factory=dict)
    steps: int = 0
    residual: Tensors = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to one client to start a round.

    Attributes:
        federation: name of the federation.
        round: number of the round, from 0.
        base: identity of the base model.
        digests: of the A and the B that the round starts from.
        factors: of these A and B, what the client does not have yet.
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
        client: the server's name for the client.
        federation: name of the federation.
        round: number of the round, from 0.
        payload: the update of the trained factors, compressed or not.
        examples: number of the client's training examples.
        loss: mean token NLL over the local steps, or None if the client keeps it to itself.
        missing: whether the client lacks a factor that the server took it to have; then there is no payload.
    """

    client: str
    federation: str
    round: int
    payload: Tensors
    examples: int
    loss: float | None = None
    missing: bool = False


def part_of(name: str) -> str:
    """ "A" or "B": the factor that the tensor `name` belongs to."""
    return name.partition("/")[0]


def select_parts(shared: Tensors, parts: str) -> Tensors:
    """The factors of `shared` that are in `parts`, "A", "B" or "AB"."""
    return {name: tensor for name, tensor in shared.items() if part_of(name) in parts}


def message_content(tensors: Tensors) -> bytes:
    """The tensors as they are sent: the content of one safetensors file."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def message_bytes(tensors: Tensors) -> int:
    """How many bytes it takes to send the tensors."""
    return len(message_content(tensors))


def digest(shared: Tensors, part: str) -> str:
    """SHA-256 over names, shapes and bytes of all A, or all B."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(select_parts(shared, part).items()):
        sha256.update(f"{name}{tuple(tensor.shape)}".encode())
        sha256.update(tensor.detach().to(torch.float32).contiguous().numpy().tobytes())
    return sha256.hexdigest()


def digests(shared: Tensors) -> dict[str, str]:
    """The digests of A and B."""
    return {part: digest(shared, part) for part in PARTS}
