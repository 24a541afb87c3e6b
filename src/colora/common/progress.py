"""The one progress bar: on standard error, for results go to standard output; none where that is no terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


def progress_bar(*columns: ProgressColumn, shown: bool = True, stays: bool = False, period: float = 30.0) -> Progress:
    """A bar of rich, to be entered with `with`; its `add_task` takes what is done and out of how many.

    Args:
        columns: shown after the description, the count and the time left.
        shown: whether it is wanted at all.
        stays: whether the last state stays on the screen.
        period: seconds that the speed is estimated over; longer than a step takes.
    """
    console = Console(stderr=True)
    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        *usual,
        *columns,
        console=console,
        disable=not (shown and console.is_terminal),
        transient=not stays,
        speed_estimate_period=period,
    )
