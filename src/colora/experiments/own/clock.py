"""The budget of time of a comparison, over all its starts and all processes that work on it.

OUTPUT/clock.json: what is compared, when the time is over, in seconds since 1970, and how many seconds were left when
that was written. A process that joins others has their deadline. One that goes on after all others died has what was
left: at most the time since the last trial ended is lost. What was left of another comparison in the same folder, such
as one of the task files before they were edited, says nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colora.common.files import write_json
from colora.common.json_text import parse_json
from colora.common.locks import waiting_lock

__all__ = ["Clock"]


@dataclass
class Clock:
    """Seconds until the budget is used up.

    Attributes:
        path: of the file.
        asked: digest of what is compared, the budget included.
        deadline: seconds since 1970.
        now: tells the time.
    """

    path: Path
    asked: str
    deadline: float
    now: Callable[[], float] = time.time

    @classmethod
    def start(
        cls, path: Path, asked: str, minutes: float, joins: bool, begun: float, now: Callable[[], float] = time.time
    ) -> "Clock":
        """The clock of a start.

        Args:
            path: of the file; of another comparison or damaged, it counts as none.
            asked: digest of what is compared, the budget included.
            minutes: the budget.
            joins: whether other processes are at work.
            begun: when this process began, in seconds since 1970.
            now: tells the time.
        """
        known = _read(path, asked)
        if known is None:
            return cls._written(path, asked, begun + 60 * minutes, now)
        deadline, left = known
        return cls._written(path, asked, deadline if joins else begun + left, now)

    def left(self) -> float:
        """Seconds; below zero when the time is over."""
        return self.deadline - self.now()

    def tick(self) -> None:
        """Keep how much is left now."""
        with waiting_lock(self.path.with_name(f"{self.path.name}.lock")):
            write_json(self.path, {"asked": self.asked, "deadline": self.deadline, "left": self.left()})

    @classmethod
    def _written(cls, path: Path, asked: str, deadline: float, now: Callable[[], float]) -> "Clock":
        clock = cls(path, asked, deadline, now)
        clock.tick()
        return clock


def _read(path: Path, asked: str) -> tuple[float, float] | None:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        if value["asked"] != asked:
            return None
        return float(value["deadline"]), float(value["left"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
