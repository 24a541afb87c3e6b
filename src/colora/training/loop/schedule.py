"""The schedule: which parameters are trained in which step; all, or cores and shared factors alternately."""

from typing import Literal

__all__ = ["Schedule", "frozen_roles"]

Schedule = Literal["joint", "alternating"]


def frozen_roles(schedule: Schedule, step: int, turn: int) -> set[str]:
    """The roles whose parameters are frozen in optimiser step `step` (from 0).

    "alternating" is the paper's alternating minimisation (arXiv:2602.07218) with `turn` gradient steps for each half.
    A and B go first: training starts at B = 0, where the cores have no gradient.

    Examples:
        >>> [frozen_roles("alternating", step, turn=2) for step in range(4)]
        [{'core'}, {'core'}, {'shared'}, {'shared'}]
    """
    if schedule == "joint":
        return set()
    return {"core"} if (step // turn) % 2 == 0 else {"shared"}
