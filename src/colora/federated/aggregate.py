"""The end of a round at the server: malformed replies and outliers are dropped, the others change the factors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from colora.errors import FederationError
from colora.federated.combine import combine
from colora.federated.compression import decompress
from colora.federated.optimizer import server_step
from colora.federated.schedule import trained_parts
from colora.federated.state import Reply, ServerState, Tensors, select_parts
from colora.training.config import FederationSpec

__all__ = ["Private", "RoundReport", "aggregate", "update_norm"]

HALF_MAX = 65504  # the largest finite number in 16 bits
NORM_ROUNDING = 1e-4  # share by which the norm of a clipped update may exceed the limit

Private = Callable[[Sequence[Tensors]], Tensors | None]
"""The mean of clipped updates with noise, or None if nothing may be released."""


@dataclass(frozen=True)
class RoundReport:
    """The outcome of a round.

    Attributes:
        round: number of the round, from 0.
        accepted: the clients whose updates counted.
        dropped: for each other client, why its update did not count.
        losses: of the accepted clients that shared theirs.
        void: whether too few updates counted; then the factors are as before.
    """

    round: int
    accepted: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    void: bool = False


def aggregate(
    state: ServerState, replies: Sequence[Reply], spec: FederationSpec, private: Private | None = None
) -> tuple[ServerState, RoundReport]:
    """The server's part at the end of a round. A malformed reply is dropped, whatever it holds.

    Args:
        state: the server before the round.
        replies: of the clients, in any order.
        spec: the federation's settings.
        private: makes the mean private; None: no differential privacy.

    Returns:
        the server after the round, and the outcome.
    """
    like = select_parts(state.shared, trained_parts(spec, state.round))
    updates: list[_Update] = []
    dropped: dict[str, str] = {}
    for reply in sorted(replies, key=lambda reply: reply.client):
        try:
            updates.append(_read(reply, state, like, spec))
        except FederationError as error:
            dropped[reply.client] = str(error)
    if spec.clip is None:  # with privacy one client must not decide whether another counts
        outliers = _outliers(updates, spec.norm_ratio)
        dropped |= outliers
        updates = [update for update in updates if update.reply.client not in outliers]
    counted = [update.reply for update in updates]
    losses = {reply.client: reply.loss for reply in counted if reply.loss is not None and math.isfinite(reply.loss)}
    report = RoundReport(state.round, [reply.client for reply in counted], dropped, losses)
    lost: dict[str, dict[str, str]] = {reply.client: {} for reply in replies if reply.missing}
    holders = dict(state.holders) | dict.fromkeys(report.accepted, state.digests) | lost
    combined = _combine(updates, spec, private) if len(updates) >= spec.replies else None
    if combined is None:
        return replace(state, round=state.round + 1, holders=holders), replace(report, void=True)
    shared, moments = server_step(
        state.shared, combined, state.moments, spec.server, spec.server_lr, spec.server_momentum
    )
    if spec.download == "fp16":  # rounded here, so that the factors of clients are those of the server, to the bit
        shared |= {name: shared[name].clamp(-HALF_MAX, HALF_MAX).half().float() for name in combined}
    return replace(state, round=state.round + 1, shared=shared, moments=moments, holders=holders), report


def update_norm(update: Tensors) -> float:
    """Euclidean norm of an update over all its tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


@dataclass(frozen=True)
class _Update:
    """A well-formed reply with its decompressed update and the Euclidean norm of that."""

    reply: Reply
    tensors: Tensors
    norm: float


def _read(reply: Reply, state: ServerState, like: Tensors, spec: FederationSpec) -> _Update:
    """The update of a reply. Raises FederationError with what is wrong with the reply."""
    if reply.missing:
        raise FederationError("had lost a factor; is sent both next time")
    if reply.federation != state.federation:
        raise FederationError("of another federation")
    if reply.round != state.round:
        raise FederationError(f"expected round {state.round}, found {reply.round}")
    if not reply.examples > 0:
        raise FederationError(f"expected training examples, found {reply.examples}")
    tensors = decompress(reply.payload, like, spec.compression)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"{name}: NaN or infinite")
    norm = update_norm(tensors)
    for limit, option in ((spec.max_norm, "max_norm"), (spec.clip, "clip")):
        if limit is not None and norm > limit * (1 + NORM_ROUNDING):
            raise FederationError(f"norm {norm:.3g}, expected at most {limit:g} ({option})")
    return _Update(reply, tensors, norm)


def _outliers(updates: Sequence[_Update], norm_ratio: float) -> dict[str, str]:
    """The clients whose updates are far larger than the median of the round, and why that drops them.

    Updates of zeros do not count for the median, so that clients that send them cannot make all others outliers.
    """
    norms = sorted(update.norm for update in updates if update.norm > 0)
    if not norms:
        return {}
    median = norms[(len(norms) - 1) // 2]  # the lower of the two in the middle
    return {
        update.reply.client: f"norm {update.norm:.3g}, {update.norm / median:.3g} times the round's median"
        for update in updates
        if update.norm > norm_ratio * median
    }


def _combine(updates: Sequence[_Update], spec: FederationSpec, private: Private | None) -> Tensors | None:
    tensors = [update.tensors for update in updates]
    if private is not None:
        return private(tensors)
    weights = [update.reply.examples if spec.weights == "examples" else 1 for update in updates]
    return combine(tensors, weights, spec.rule, spec.trim)
