"""The default learning rates, in one place: of the factors, and of the cores, which want a larger one.

Chosen on dates and examples that no demonstration measures: `python -m benchmarks.demo.demo_rates`
(docs/decisions/training.md).
"""

__all__ = ["CORE_LR", "LR"]

LR = 2e-3
"""Peak learning rate of A and B, with Adam."""
CORE_LR = 6e-2
"""Peak learning rate of the cores, with Adam."""
