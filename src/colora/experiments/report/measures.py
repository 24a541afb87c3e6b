"""What a report measures: the table of metrics, then what is measured where answers are chosen from a closed set."""

from colora.evaluation.choices import CHOICE_METRICS
from colora.evaluation.metrics import METRICS, Metric

__all__ = ["BY_EXAMPLE", "RANK_CORRELATION", "measures"]

RANK_CORRELATION = CHOICE_METRICS["rank_correlation"]
"""One number for all examples of a trial: it has a mean over seeds, but no interval."""
BY_EXAMPLE = {name: metric for name, metric in CHOICE_METRICS.items() if metric is not RANK_CORRELATION}
"""Those of choices that each example has."""


def measures() -> list[Metric]:
    """Every measure that each example has, in the order of tables."""
    return [*METRICS.values(), *BY_EXAMPLE.values()]
