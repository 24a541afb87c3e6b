"""A progress bar on standard error that leaves nothing behind; none where that is no terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["terminal_bar"]


def terminal_bar(what: str, total: int, shown: bool = True) -> tuple[Progress, TaskID]:
    """A bar to be entered with `with`, and what its `advance` takes."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
    return bar, bar.add_task(what, total=total)
