"""What moves when: the place of a step in its training, and which parts of a method move and act in that step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Moment", "Schedule", "Turn", "all_move", "first_then_second", "stage_lengths"]


@dataclass(frozen=True)
class Moment:
    """A step of a training.

    Attributes:
        step: counts from 0.
        stages: the lengths in steps of the training's stages; most methods have one.
        local_steps: of each round but perhaps the last; as many as there are steps if the method is not federated.
        options: of the trial, completed.
    """

    step: int
    stages: tuple[int, ...]
    local_steps: int
    options: Mapping[str, float]

    @property
    def stage(self) -> int:
        """Index of the stage."""
        return 0 if self.step < self.stages[0] else 1

    @property
    def stage_step(self) -> int:
        """The step, counted from the beginning of its stage."""
        return self.step - (self.stages[0] if self.stage else 0)

    @property
    def round_number(self) -> int:
        """Counts from 0; 0 if the method is not federated."""
        return self.step // self.local_steps

    @property
    def local_step(self) -> int:
        """The step, counted from the beginning of its round."""
        return self.step % self.local_steps

    @property
    def round_steps(self) -> int:
        """How many steps this round has."""
        return min(self.local_steps, sum(self.stages) - self.round_number * self.local_steps)


@dataclass(frozen=True)
class Turn:
    """What rests in a step.

    Attributes:
        frozen: the parts that do not move, beside those that are never trained: "A", "B", "core" of the first term,
            "A'", "B'", "core'" of the second.
        silent: the indices of terms that add nothing.
    """

    frozen: frozenset[str] = frozenset()
    silent: frozenset[int] = frozenset()


Schedule = Callable[[Moment], Turn]
"""What rests in a step."""


def all_move(moment: Moment) -> Turn:
    """All trained parts move in every step, and all terms act."""
    return Turn()


def first_then_second(moment: Moment) -> Turn:
    """The first term alone in the first stage; then it is frozen, and the second is trained on top of it."""
    if moment.stage == 0:
        return Turn(frozen=frozenset({"A'", "B'"}), silent=frozenset({1}))
    return Turn(frozen=frozenset({"A", "B"}))


def stage_lengths(steps: int, first: float | None, round_steps: int = 1) -> tuple[int, ...]:
    """The lengths of one stage (`first` is None) or of two, of which the first has about this share of the steps.

    The first has at least one round, and ends where a round ends.
    """
    if first is None:
        return (steps,)
    length = min(steps, max(1, round(first * steps / round_steps)) * round_steps)
    return (length, steps - length)
