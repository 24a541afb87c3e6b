"""The server's optimiser: it adds a combined update, adds it with momentum, or takes it as a gradient for Adam."""

from typing import Literal

from colora.federated.state import Tensors

__all__ = ["ServerRule", "server_step"]

ServerRule = Literal["average", "momentum", "adam"]


def server_step(
    shared: Tensors,
    update: Tensors,
    moments: Tensors,
    rule: ServerRule = "average",
    lr: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
) -> tuple[Tensors, Tensors]:
    """The factors after a round, and the optimiser's new moments (Reddi et al., arXiv:2003.00295, algorithm 2).

        average    x ← x + lr u          momentum   m ← β1 m + u, x ← x + lr m
        adam       m ← β1 m + (1 − β1) u, v ← β2 v + (1 − β2) u², x ← x + lr m / (√v + ε)

    Args:
        shared: all factors; those without an update stay.
        update: the combined change of some of them.
        moments: "m/NAME" and "v/NAME"; empty before the first step.
        rule: which of the three.
        lr: the learning rate.
        beta1: decay of m.
        beta2: decay of v.
        eps: ε.

    Examples:
        >>> import torch
        >>> server_step({"A/x": torch.ones(1)}, {"A/x": torch.ones(1)}, {}, "momentum", lr=0.5)[0]
        {'A/x': tensor([1.5000])}
    """
    shared, moments = dict(shared), dict(moments)
    for name, u in update.items():
        if rule == "average":
            step = u
        elif rule == "momentum":
            before = moments.get(f"m/{name}")
            step = moments[f"m/{name}"] = u if before is None else beta1 * before + u
        else:
            m = moments[f"m/{name}"] = beta1 * moments.get(f"m/{name}", 0.0 * u) + (1 - beta1) * u
            v = moments[f"v/{name}"] = beta2 * moments.get(f"v/{name}", 0.0 * u) + (1 - beta2) * u.square()
            step = m / (v.sqrt() + eps)
        shared[name] = shared[name] + lr * step
    return shared, moments
