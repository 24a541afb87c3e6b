"""Federated CoLoRA as pure functions: `init`, `broadcast`, `client_update`, `aggregate`, `finish`.

Client k's weights are W0 + s · B Λ_k A (arXiv:2602.07218). A and B travel; Λ_k and the text never do. In a round
client k trains Λ_k and the factors of the schedule by a few local steps, and sends the change of these factors:

    simultaneous   A and B in every round
    alternating    round 0, 2, ...: B with A frozen; round 1, 3, ...: A with B frozen

With one factor frozen every client's weight is linear in what is averaged, so the mean of the factors is the mean of
the updates; averaging both at once adds cross terms. In the measurements the simultaneous schedule learns more all the
same (docs/decisions/federated.md). B is trained first: it starts at zero, where A has no gradient. A client is sent
only the factors it does not have, so in alternating rounds one of the two goes each way.

Nothing here depends on Flower, files or clocks; `federate` is the whole algorithm in one process.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from colora.errors import FederationError
from colora.federated.aggregate import Private, RoundReport, aggregate, update_norm
from colora.federated.compression import compress
from colora.federated.local import LocalData, LocalModel, Phase
from colora.federated.schedule import FINAL_RATE, round_phases, trained_parts
from colora.federated.state import (
    PARTS,
    Broadcast,
    ClientState,
    Reply,
    ServerState,
    digest,
    part_of,
    select_parts,
)
from colora.training.config import FederationSpec

__all__ = [
    "AfterRound",
    "broadcast",
    "client_update",
    "federate",
    "finish",
    "init",
    "sample",
]

AfterRound = Callable[[ServerState, RoundReport, Sequence[Broadcast], Sequence[Reply]], Any]
"""Takes the server after the round, the outcome, the messages and the replies."""


def init(federation: str, local: LocalModel) -> ServerState:
    """The server before round 0."""
    return ServerState(federation, 0, local.start, local.identity)


def sample(clients: Iterable[str], spec: FederationSpec, round_number: int, seed: int) -> list[str]:
    """The clients that take part in a round: a `fraction` of them, at least one, a function of the arguments alone."""
    names = sorted(clients)
    count = max(1, round(spec.fraction * len(names)))
    return sorted(random.Random(f"{seed}:{round_number}").sample(names, count))


def broadcast(state: ServerState, client: str, start: Mapping[str, str]) -> Broadcast:
    """The message that starts the coming round at a client.

    Args:
        state: the server.
        client: the server's name for the client.
        start: the digests of the A and B that a new client has.
    """
    held = state.holders.get(client, start)
    lacking = "".join(part for part in PARTS if held.get(part) != state.digests[part])
    factors = {name: _shortest(tensor) for name, tensor in select_parts(state.shared, lacking).items()}
    return Broadcast(state.federation, state.round, state.base, state.digests, factors)


def client_update(
    state: ClientState,
    message: Broadcast,
    local: LocalModel,
    data: LocalData,
    spec: FederationSpec,
    seed: int,
    tell_loss: bool = True,
) -> tuple[Reply, ClientState]:
    """One client's part of a round: it trains its core and the factors of the schedule.

    Args:
        state: the client before the round.
        message: from the server.
        local: the model to train.
        data: the client's examples.
        spec: the federation's settings.
        seed: of the order of the examples.
        tell_loss: whether the reply has the training loss.

    Returns:
        the reply, and the client's new state. If the client lacks a factor that the server took it to have, the reply
        says so, and the core is not trained.

    Raises:
        FederationError: the server sent a tensor that is not a factor of this model.
        TrainingDivergedError: a loss is NaN or infinite.
    """
    state = _with_received(state, message)
    reply = Reply(data.name, message.federation, message.round, {}, len(data.rows))
    if state.digests != message.digests:
        return replace(reply, missing=True), state
    parts = trained_parts(spec, message.round)
    is_late = message.round > 0 and state.steps == 0
    onboard_steps = spec.onboard_steps if is_late and spec.core_steps else 0
    phases = round_phases(spec, message.round, parts, onboard_steps)
    after, trained, losses = local.train(state, data, phases, spec.rows, seed, spec.factor_moments == "kept")
    update = {name: trained[name] - before for name, before in select_parts(state.shared, parts).items()}
    if spec.clip is not None:
        shrink = min(1.0, spec.clip / max(update_norm(update), 1e-12))
        update = {name: shrink * tensor for name, tensor in update.items()}
    payload, residual = compress(update, state.residual, spec.compression, spec.keep)
    loss = sum(losses) / len(losses) if tell_loss else None
    after = replace(after, round=message.round + 1, residual=state.residual | residual)
    return replace(reply, payload=payload, loss=loss), after


def finish(
    state: ClientState, message: Broadcast, local: LocalModel, data: LocalData, spec: FederationSpec, seed: int
) -> ClientState:
    """A client after the last round: it takes the final factors and fits its core to them once more.

    Args:
        state: the client after the last round that it took part in.
        message: from the server.
        local: the model to train.
        data: the client's examples.
        spec: the federation's settings.
        seed: of the order of the examples.

    Raises:
        FederationError: if a factor is lacking, or the server sent a tensor that is not a factor of this model.
    """
    state = _with_received(state, message)
    if state.digests != message.digests:
        raise FederationError("the final factors are not those that the server names")
    onboard_steps = spec.onboard_steps if state.steps == 0 else 0
    steps = onboard_steps + spec.finish_steps if spec.core_steps else 0
    phase = Phase(True, "", [FINAL_RATE] * steps)
    after, _, _ = local.train(state, data, [phase], spec.rows, seed)
    return replace(after, round=message.round + 1)


def federate(
    state: ServerState,
    clients: dict[str, ClientState],
    data: Mapping[str, LocalData],
    local: LocalModel,
    spec: FederationSpec,
    seed: int,
    after_round: AfterRound = lambda *_: None,
    private: Private | None = None,
) -> ServerState:
    """The whole algorithm in one process: the reference for the networked federation.

    Args:
        state: the server, before round 0 or where it stopped.
        clients: each client's state; replaced as they train.
        data: each client's examples.
        local: the model that all clients share, one after the other.
        spec: the federation's settings.
        seed: of the sample of clients and the order of examples.
        after_round: called after each round.
        private: makes the mean private.

    Returns:
        the server after the last round; `clients` then have the final factors and cores.

    Raises:
        TrainingDivergedError: a loss is NaN or infinite.
    """
    start = local.start_digests
    while state.round < spec.rounds:
        messages, replies = [], []
        for client in sample(clients, spec, state.round, seed):
            messages.append(broadcast(state, client, start))
            reply, clients[client] = client_update(clients[client], messages[-1], local, data[client], spec, seed)
            replies.append(reply)
        state, report = aggregate(state, replies, spec, private)
        after_round(state, report, messages, replies)
    for client in clients:
        message = broadcast(state, client, start)
        clients[client] = finish(clients[client], message, local, data[client], spec, seed)
    return state


def _with_received(state: ClientState, message: Broadcast) -> ClientState:
    """The client with the factors it was sent, and the digests of all its factors.

    Only factors that were received, or have not been hashed since they were read from disk, are hashed.

    Raises:
        FederationError: a tensor is not a factor of this model.
    """
    for name, tensor in message.factors.items():
        expected = tuple(state.shared[name].shape) if name in state.shared else "no such factor"
        if tuple(tensor.shape) != expected:
            raise FederationError(f"{name}: expected {expected}, found {tuple(tensor.shape)}")
    shared = state.shared | {name: tensor.float() for name, tensor in message.factors.items()}
    received = {part_of(name) for name in message.factors}
    known = {part: value for part, value in state.digests.items() if part not in received}
    return replace(state, shared=shared, digests={part: known.get(part) or digest(shared, part) for part in PARTS})


def _shortest(tensor: Tensor) -> Tensor:
    """The tensor in 16 bits if that loses nothing, else as it is."""
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor
