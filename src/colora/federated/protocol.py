"""Federated CoLoRA as pure functions: `init`, `broadcast`, `client_update`, `aggregate`, `finish`.

Client k's weights are W0 + s · B Λ_k A (arXiv:2602.07218). A and B travel; Λ_k and the text never do. In a round
client k moves Λ_k and the factors whose turn it is by a few local steps, and sends by how much these moved:

    simultaneous   A and B in every round
    alternating    round 0, 2, ...: B with A resting; round 1, 3, ...: A with B resting

With one factor resting every client's weight is linear in what is averaged, so the mean of the factors is the mean of
the updates; averaging both at once adds cross terms. In the measurements both at once learn more all the same
(docs/decisions/federated.md). The first turn is B's, for B starts at zero, where A has no gradient. A client is sent
only the factors it does not have, so in alternating rounds one of the two goes each way.

Nothing here knows of Flower, of files or of clocks; `federate` is the whole algorithm in one process.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from colora.errors import FederationError
from colora.federated.combine import combine
from colora.federated.compression import compress, decompress
from colora.federated.local import LocalData, LocalModel, Phase
from colora.federated.optimizer import server_step
from colora.federated.state import Broadcast, ClientState, Reply, ServerState, Tensors, digests, moving
from colora.training.config import FederationSpec

__all__ = [
    "AfterRound",
    "Private",
    "RoundReport",
    "aggregate",
    "broadcast",
    "client_update",
    "federate",
    "finish",
    "init",
    "sample",
    "turn",
    "update_norm",
]

Private = Callable[[Sequence[Tensors]], Tensors | None]
"""The mean of clipped updates with noise, or None if there must be no release."""

AfterRound = Callable[[ServerState, "RoundReport", Sequence[Broadcast], Sequence[Reply]], Any]


@dataclass(frozen=True)
class RoundReport:
    """What became of a round.

    Attributes:
        round: which, from 0.
        accepted: the clients whose updates counted.
        dropped: why the others' did not.
        losses: of the clients that told theirs.
        void: too few counted, and the factors are as they were.
    """

    round: int
    accepted: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    void: bool = False


def init(federation: str, local: LocalModel) -> ServerState:
    """The server before round 0."""
    return ServerState(federation, 0, local.start, local.identity)


def turn(spec: FederationSpec, round_number: int) -> str:
    """ "A", "B" or "AB": the factors that move in a round, from 0.

    Example:
        >>> [turn(FederationSpec(schedule="alternating"), number) for number in range(4)]
        ['B', 'A', 'B', 'A']
    """
    return "AB" if spec.schedule == "simultaneous" else "BA"[round_number % 2]


def sample(clients: Iterable[str], spec: FederationSpec, round_number: int, seed: int) -> list[str]:
    """The clients that take part in a round: a `fraction` of them, at least one, a function of the arguments alone."""
    known = sorted(clients)
    return sorted(random.Random(f"{seed}:{round_number}").sample(known, max(1, round(spec.fraction * len(known)))))


def broadcast(state: ServerState, client: str, start: Mapping[str, str]) -> Broadcast:
    """What a client is sent at the start of the coming round; `start` are the digests of what each starts with."""
    now = digests(state.shared)
    held = state.holders.get(client, start)
    lacking = "".join(which for which in "AB" if held.get(which) != now[which])
    factors = {name: _shortest(tensor) for name, tensor in moving(state.shared, lacking).items()}
    return Broadcast(state.federation, state.round, state.base, now, factors)


def client_update(
    state: ClientState, message: Broadcast, local: LocalModel, data: LocalData, spec: FederationSpec, seed: int,
    tell_loss: bool = True,
) -> tuple[Reply, ClientState]:  # fmt: skip
    """One client's part in a round: it trains its core and the factors whose turn it is.

    Returns:
        what is sent, and the client's new state. If a factor is lacking that the server took it to have, the reply
        says so, and the core stays.

    Raises:
        FederationError: the server sent something that is no factor of this model.
        TrainingDivergedError: a loss is NaN or infinite.
    """
    state = _informed(state, message)
    reply = Reply(data.name, message.federation, message.round, {}, len(data.rows))
    if digests(state.shared) != message.digests:
        return replace(reply, missing=True), state
    factors = turn(spec, message.round)
    late = spec.onboard_steps if state.steps == 0 and message.round > 0 and spec.core_steps else 0
    phases = _phases(spec, message.round, factors, late)
    after, trained, losses = local.train(state, data, phases, spec.rows, seed, spec.factor_moments == "kept")
    update = {name: trained[name] - before for name, before in moving(state.shared, factors).items()}
    if spec.clip is not None:
        shrink = min(1.0, spec.clip / max(update_norm(update), 1e-12))
        update = {name: shrink * tensor for name, tensor in update.items()}
    payload, left = compress(update, state.residual, spec.compression, spec.keep)
    loss = sum(losses) / len(losses) if tell_loss else None
    after = replace(after, round=message.round + 1, residual=state.residual | left)
    return replace(reply, payload=payload, loss=loss), after


def finish(
    state: ClientState, message: Broadcast, local: LocalModel, data: LocalData, spec: FederationSpec, seed: int
) -> ClientState:
    """A client after the last round: it takes the final factors and fits its core to them once more.

    Raises:
        FederationError: if a factor is lacking, or the server sent something that is no factor of this model.
    """
    state = _informed(state, message)
    if digests(state.shared) != message.digests:
        raise FederationError("the final factors are not those that the server names")
    late = spec.onboard_steps if state.steps == 0 and spec.core_steps else 0
    steps = late + (spec.finish_steps if spec.core_steps else 0)
    phase = Phase(True, "", [0.1] * steps)  # at the rate that the last rounds ended with
    after, _, _ = local.train(state, data, [phase], spec.rows, seed)
    return replace(after, round=message.round + 1)


def aggregate(
    state: ServerState, replies: Sequence[Reply], spec: FederationSpec, private: Private | None = None
) -> tuple[ServerState, RoundReport]:
    """The server's part at the end of a round. A reply that is not what it should be is dropped, whatever it holds.

    Args:
        private: where the mean is to be made private.
    """
    factors = turn(spec, state.round)
    like = moving(state.shared, factors)
    good: list[tuple[Reply, Tensors, float]] = []
    dropped: dict[str, str] = {}
    lost = set()
    for reply in sorted(replies, key=lambda one: one.client):
        try:
            update = _read(reply, state, like, spec)
        except FederationError as error:
            dropped[reply.client] = str(error)
            lost |= {reply.client} if reply.missing else set()
        else:
            good.append((reply, update, update_norm(update)))
    norms = sorted(norm for *_, norm in good if norm > 0)
    if norms and spec.clip is None:  # with privacy one client must not decide whether another counts
        middle = norms[(len(norms) - 1) // 2]  # the lower of two
        limit = spec.norm_ratio * middle
        dropped |= {one.client: f"norm {norm:.3g}, {norm / middle:.3g} times the round's median" for one, _, norm in
                    good if norm > limit}  # fmt: skip
        good = [one for one in good if one[2] <= limit]
    report = RoundReport(
        state.round, [one.client for one, *_ in good], dropped,
        {one.client: one.loss for one, *_ in good if one.loss is not None and math.isfinite(one.loss)},
    )  # fmt: skip
    combined: Tensors | None = None
    if len(good) >= spec.replies:
        updates = [update for _, update, _ in good]
        weights = [one.examples if spec.weights == "examples" else 1 for one, *_ in good]
        combined = private(updates) if private is not None else combine(updates, weights, spec.rule, spec.trim)
    now = digests(state.shared)
    holders = dict(state.holders) | dict.fromkeys(report.accepted, now) | {client: {} for client in lost}
    if combined is None:
        return replace(state, round=state.round + 1, holders=holders), replace(report, void=True)
    shared, moments = server_step(
        state.shared, combined, state.moments, spec.server, spec.server_lr, spec.server_momentum
    )
    if spec.download == "fp16":  # rounded here, so that what clients get is what the server has, to the bit
        shared |= {name: shared[name].clamp(-65504, 65504).half().float() for name in combined}
    return replace(state, round=state.round + 1, shared=shared, moments=moments, holders=holders), report


def federate(
    state: ServerState, clients: dict[str, ClientState], data: Mapping[str, LocalData], local: LocalModel,
    spec: FederationSpec, seed: int, after_round: AfterRound = lambda *_: None, private: Private | None = None,
) -> ServerState:  # fmt: skip
    """The whole algorithm in one process: the reference that the networked one agrees with.

    Args:
        state: the server, before round 0 or where it stopped.
        clients: each client's state; replaced as they train.
        data: each client's examples.
        local: the model that stands for each of them in turn.
        after_round: called after each round.
        private: makes the mean private.
    """
    start = digests(local.start)
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


def update_norm(update: Tensors) -> float:
    """Euclidean norm of an update over all its tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


def _informed(state: ClientState, message: Broadcast) -> ClientState:
    """The client with the factors it was sent. Raises FederationError if these are not factors of this model."""
    for name, tensor in message.factors.items():
        expected = tuple(state.shared[name].shape) if name in state.shared else "no such factor"
        if tuple(tensor.shape) != expected:
            raise FederationError(f"{name}: expected {expected}, found {tuple(tensor.shape)}")
    return replace(state, shared=state.shared | {name: tensor.float() for name, tensor in message.factors.items()})


def _shortest(tensor: Tensor) -> Tensor:
    """In 16 bits if nothing is lost by it."""
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def _phases(spec: FederationSpec, round_number: int, factors: str, late: int) -> list[Phase]:
    """A round's local steps; the rates fall as a cosine over all rounds, to a tenth."""
    share = 0.1 + 0.45 * (1 + math.cos(math.pi * round_number / max(1, spec.rounds - 1)))
    onboarding = Phase(True, "", [share] * late)
    if spec.order == "together":
        moving_too = spec.core_steps > 0
        return [onboarding, Phase(moving_too, factors, [share] * (spec.core_steps + spec.local_steps))]
    return [onboarding, Phase(True, "", [share] * spec.core_steps), Phase(False, factors, [share] * spec.local_steps)]


def _read(reply: Reply, state: ServerState, like: Tensors, spec: FederationSpec) -> Tensors:
    """The update of a reply. Raises FederationError with what is wrong with it."""
    if reply.missing:
        raise FederationError("had lost a factor; is sent both next time")
    if reply.federation != state.federation:
        raise FederationError("of another federation")
    if reply.round != state.round:
        raise FederationError(f"expected round {state.round}, found {reply.round}")
    if not reply.examples > 0:
        raise FederationError(f"expected training examples, found {reply.examples}")
    update = decompress(reply.payload, like, spec.compression)
    for name, tensor in update.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"{name}: NaN or infinite")
    norm = update_norm(update)
    for limit, what in ((spec.max_norm, "max_norm"), (spec.clip, "clip")):
        if limit is not None and norm > limit * 1.0001:
            raise FederationError(f"norm {norm:.3g}, expected at most {limit:g} ({what})")
    return update
