"""What a user's tasks are judged by: exact match where answers are one of a few, ROUGE-L elsewhere; nats beside it.

Each has the name that `METRICS`, the reports and docs/measuring.md give it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from colora.tasks.schema import SPLITS, Task

__all__ = ["EXACT_MATCH", "NATS", "ROUGE", "Measure", "measure_of"]

MOST_ANSWERS = 20
REPEATED = 3  # examples for each different answer, on average


@dataclass(frozen=True)
class Measure:
    """A metric as users are told of it.

    Attributes:
        metric: its name in `METRICS`.
        title: with an article or none, as a sentence takes it.
        unit: stands after a number.
        sign: 1 if higher is better, else -1.
        digits: decimals.
    """

    metric: str
    title: str
    unit: str
    sign: int = 1
    digits: int = 1

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.{self.digits}f}{self.unit}"


EXACT_MATCH = Measure("exact_match", "exact match", " %")
ROUGE = Measure("rougeL", "ROUGE-L", "")
NATS = Measure("token_nll", "token NLL", " nats", sign=-1, digits=3)


def measure_of(tasks: Sequence[Task]) -> Measure:
    """Exact match if every task has few different answers that come again and again, as labels do; else ROUGE-L."""
    for task in tasks:
        outputs = [example.outputs for split in SPLITS for example in task.splits[split]]
        different = {one for several in outputs for one in several}
        if len(different) > MOST_ANSWERS or len(different) * REPEATED > len(outputs):
            return ROUGE
    return EXACT_MATCH
