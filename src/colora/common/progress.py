"""The one progress bar: on standard error, for results go to standard output; lines where that cannot show a bar."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from colora.common.text import readable_time

__all__ = ["progress_bar"]

LINE_SECONDS = 30.0


def progress_bar(*columns: ProgressColumn, shown: bool = True, stays: bool = False, period: float = 30.0) -> Progress:
    """A bar of rich, to be entered with `with`; its `add_task` takes what is done and out of how many.

    Where standard error is a file, or a terminal that cannot move its cursor, a line every half a minute says the same.

    Args:
        columns: shown after the description, the count and the time left.
        shown: whether it is wanted at all.
        stays: whether the last state stays on the screen.
        period: seconds that the speed is estimated over; longer than a step takes.
    """
    console = Console(stderr=True)
    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    can_draw = console.is_terminal and not console.is_dumb_terminal
    kind = Progress if can_draw or not shown else _Lines
    return kind(
        *usual,
        *columns,
        console=console,
        disable=not (shown and can_draw),
        transient=not stays,
        speed_estimate_period=max(period, LINE_SECONDS) if kind is _Lines else period,
    )


class _Lines(Progress):
    """What a bar would show, in a line now and then. It is never drawn."""

    _told: float | None = None

    def update(self, task_id: TaskID, **fields: object) -> None:
        super().update(task_id, **fields)  # type: ignore[arg-type]
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if self._told is None:
            self._told = now
        if now - self._told < LINE_SECONDS:
            return
        self._told, task = now, next(one for one in self.tasks if one.id == task_id)
        total = "" if task.total is None else f" of {task.total:g}"
        left = "" if task.time_remaining is None else f", about {readable_time(task.time_remaining)} left"
        print(f"{task.description}: {round(task.completed, 1):g}{total}{left}", file=sys.stderr, flush=True)
