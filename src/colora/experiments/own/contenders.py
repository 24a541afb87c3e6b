"""What a user's tasks are tried with, the simplest first, and which settings each of these is tried at.

Every contender that is trained has the same number of settings: who is tuned more, wins more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from colora.experiments.methods.registry import METHODS
from colora.tasks.schema import Task
from colora.training.rates import CORE_LR, LR

__all__ = ["COLORA", "CONTENDERS", "IN_CONTEXT", "MOST_SETTINGS", "Contender", "Setting", "known_contenders"]

COLORA, IN_CONTEXT = "colora", "in-context"


@dataclass(frozen=True)
class Setting:
    """The peak learning rates of A and B, and of the cores where there are any."""

    lr: float
    core_lr: float | None = None

    def __str__(self) -> str:
        return f"lr {self.lr:g}" + ("" if self.core_lr is None else f", core lr {self.core_lr:g}")


@dataclass(frozen=True)
class Contender:
    """A method as users are told of it.

    Attributes:
        method: its name in the registry.
        title: what it is, in a user's words.
        settings: the most important first: a smaller grid has the first so many.
    """

    method: str
    title: str
    settings: tuple[Setting, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether anything is trained."""
        return bool(self.settings)


# The default first, then a factor of two apart: dates want the highest of these, facts and words the lowest.
_RATES = (LR, 2 * LR, LR / 2)
MOST_SETTINGS = len(_RATES)
_FACTORS = tuple(Setting(rate) for rate in _RATES)
_CORES = tuple(Setting(rate, CORE_LR) for rate in _RATES)

CONTENDERS = (
    Contender("base", "the base model as it is"),
    Contender(IN_CONTEXT, "examples in the prompt"),
    Contender("pooled", "one LoRA for all tasks", _FACTORS),
    Contender(COLORA, "CoLoRA", _CORES),
    Contender("local", "a LoRA for each task", _FACTORS),
    Contender("oppu", "one LoRA for all, then one more for each task", _FACTORS),
)
"""The simplest first: of what does as well, the first is recommended."""


def known_contenders(tasks: Iterable[Task]) -> tuple[list[Contender], list[str]]:
    """Those whose method is there and can be had for these tasks, and a line for each that is left out."""
    why = {one.method: "this version has no such method" for one in CONTENDERS if one.method not in METHODS}
    if any(example.history for task in tasks for examples in task.splits.values() for example in examples):
        why.setdefault(IN_CONTEXT, "a conversation of several turns has no place in a plain text")
    there = [one for one in CONTENDERS if one.method not in why]
    return there, [f"{one.title} ({one.method}): {why[one.method]}" for one in CONTENDERS if one.method in why]
