"""The default learning rates and decay, in one place: of the factors, and of the cores, which want a larger rate.

Chosen on lists, words and dates of which no result is told: `python -m benchmarks.compare.chosen`
(docs/decisions/training.md).
"""

__all__ = ["CORE_LR", "DECAY", "FEDERATED_CORE_LR", "FEDERATED_LR", "LR", "default_weight_decay"]

LR = 1e-3
"""Peak learning rate of A and B, with Adam."""
CORE_LR = 2e-2
"""Peak learning rate of the cores, with Adam."""
FEDERATED_LR, FEDERATED_CORE_LR = 2e-3, 6e-2
"""The same in a federation: the mean of the clients' steps is shorter than each, and cores have to follow new factors
every round (docs/decisions/federated.md)."""
DECAY = 0.3
"""What decay takes of A and B over a whole run, as an exponent: exp(−0.3) of what they began with is left."""


def default_weight_decay(lr: float, steps: int) -> float:
    """The decay per unit of the rate of a run at this peak rate, whose mean is half of it; 10 at 1e-3 and 60 steps.

    A constant would take next to nothing in a short run, and everything in a long one.
    """
    return DECAY / (0.5 * lr * steps)
