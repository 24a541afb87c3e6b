"""What an optimiser keeps of a core, which goes with it into a store and back."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["MOMENTS", "KeepsMoments"]

MOMENTS = ("exp_avg", "exp_avg_sq")


@runtime_checkable
class KeepsMoments(Protocol):
    """An optimiser with a state for each row of a stack of cores."""

    def core_state(self, cores: Tensor) -> dict[str, Tensor]:
        """Of a stack (n, r, r): "exp_avg" and "exp_avg_sq", (n, r, r), and "step", (n,); they may be written to."""

    def has_state(self, stacks: Iterable[Tensor]) -> bool:
        """Whether it keeps anything of one of these stacks."""
