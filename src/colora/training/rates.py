"""The default learning rates, in one place: of the factors, and of the cores, which want a larger one.

Chosen on lists, words and dates of which no result is told: `python -m benchmarks.compare.chosen`
(docs/decisions/training.md).
"""

__all__ = ["CORE_LR", "LR"]

LR = 1e-3
"""Peak learning rate of A and B, with Adam."""
CORE_LR = 2e-2
"""Peak learning rate of the cores, with Adam."""
