"""Which parameters move when: jointly, or cores and shared factors in turns."""

from typing import Any, Literal

from transformers import TrainerCallback

__all__ = ["AlternatingCallback", "Schedule", "frozen_roles"]

Schedule = Literal["joint", "alternating"]


def frozen_roles(schedule: Schedule, step: int, turn: int) -> set[str]:
    """The roles that rest in optimiser step `step` (from 0).

    "alternating" is the paper's alternating minimisation (arXiv:2602.07218) with `turn` gradient steps for each half.
    A and B go first: training starts at B = 0, where the cores have no gradient.

    Example:
        >>> [frozen_roles("alternating", step, turn=2) for step in range(4)]
        [{'core'}, {'core'}, {'shared'}, {'shared'}]
    """
    if schedule == "joint":
        return set()
    return {"core"} if (step // turn) % 2 == 0 else {"shared"}


class AlternatingCallback(TrainerCallback):
    """Freezes the resting groups of a `TaskAdamW` at every step; a function of the step alone, so it can resume."""

    def __init__(self, schedule: Schedule, turn: int) -> None:
        self.schedule = schedule
        self.turn = turn

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        inner.freeze(frozen_roles(self.schedule, state.global_step, self.turn))
