"""A new task on its way into a bank, beside others: its examples in tokens, and what has become of it so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from colora.tasks.encode import EncodedRow, EncodedTasks
from colora.transfer.onboarding.coverage import Coverage

__all__ = ["Newcomer", "rows_of"]


@dataclass
class Newcomer:
    """One new task.

    Attributes:
        name: of the task.
        rows: its training examples. held_out: its validation examples.
        before: nats per token of its training examples without any adapter; `at_start` with the core where it starts,
            `after` with the trained one.
        coverage: how much of its gradient the shared subspace holds.
        start: the name of the chosen start.
        start_nll: nats per token of some examples under each start that was tried.
        validation: nats per token of its validation examples, if it has any.
        fault: why it was given up; nothing after that is measured.
    """

    name: str
    rows: Sequence[EncodedRow]
    held_out: Sequence[EncodedRow] = ()
    before: float = float("nan")
    at_start: float = float("nan")
    after: float = float("nan")
    coverage: Coverage | None = None
    start: str = ""
    start_nll: dict[str, float] = field(default_factory=dict)
    validation: float | None = None
    fault: str | None = None


def rows_of(data: EncodedTasks) -> list[EncodedRow]:
    """The rows of a dataset, in their order."""
    return [data[index] for index in range(len(data))]
