"""The updates of several clients combined to one: their mean, or a rule that a few bad updates cannot move far."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from colora.federated.state import Tensors

__all__ = ["Rule", "combine"]

Rule = Literal["mean", "median", "trimmed"]


def combine(updates: Sequence[Tensors], weights: Sequence[float], rule: Rule = "mean", trim: float = 0.25) -> Tensors:
    """One update from those of n clients.

    Args:
        updates: all with the same names and shapes; at least one.
        weights: of the clients in the mean; the other rules count every client once.
        rule: "mean"; "median": of each coordinate; "trimmed": the mean of each coordinate without the ⌊trim · n⌋
            lowest and as many highest values (Yin et al., arXiv:1803.01498).
        trim: share of the clients that "trimmed" leaves out at each end; below 0.5.

    Examples:
        >>> updates = [{"A/x": torch.tensor([value])} for value in (1.0, 2.0, 3.0, 1000.0)]
        >>> combine(updates, [1, 1, 1, 1], "trimmed", trim=0.25)
        {'A/x': tensor([2.5000])}
    """
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    cut = int(trim * len(updates))

    def mean(stack: Tensor) -> Tensor:
        # In float64, so that the clients' order changes no bit of the result: Adam would amplify a last one.
        return torch.tensordot(shares, stack.double(), dims=1).to(stack.dtype)

    def median(stack: Tensor) -> Tensor:
        return stack.quantile(0.5, dim=0)  # torch's own median takes the lower of two in the middle

    def trimmed(stack: Tensor) -> Tensor:
        return stack.sort(dim=0).values[cut : len(stack) - cut].mean(0)

    rules: dict[Rule, Callable[[Tensor], Tensor]] = {"mean": mean, "median": median, "trimmed": trimmed}
    return {name: rules[rule](torch.stack([update[name] for update in updates])) for name in updates[0]}
