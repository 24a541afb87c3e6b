"""What a running experiment shows: a bar on a terminal's standard error, and a line for each cell that ended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from colora.cells import Cell, CellRecord

__all__ = ["Bar", "cell_names", "open_bar", "result_line"]

# Shown only where the cells of one method differ in them.
VARYING = {"rank": "r", "steps": "steps ", "lr": "lr ", "core_lr": "core "}


class Bar:
    """A bar of cells; within a cell it moves with the steps."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def start(self, done: int, name: str) -> None:
        """`done` cells have ended, and the one called `name` begins."""
        self._done = done
        self._progress.update(self._task, completed=done, description=name)

    def step(self, done: int, total: int) -> None:
        """Of the present cell `done` of `total` steps have passed."""
        if total:
            self._progress.update(self._task, completed=self._done + min(done / total, 1.0))


@contextmanager
def open_bar(total: int, wanted: bool) -> Iterator[Bar]:
    """A bar for `total` cells on standard error, shown if `wanted` and if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = wanted and console.is_terminal
    with Progress(*columns, console=console, disable=not shown, transient=True, speed_estimate_period=3600) as progress:
        yield Bar(progress, total)


def cell_names(cells: Sequence[Cell]) -> dict[str, str]:
    """For each key a name for people: what tells the cell from the others of its experiment."""
    varying = {
        (name, method)
        for name in VARYING
        for method in {cell.method for cell in cells}
        if len({getattr(cell, name) for cell in cells if cell.method == method}) > 1
    }
    sized = len({(cell.group, len(cell.tasks)) for cell in cells}) > len({cell.group for cell in cells})
    names = {}
    for cell in cells:
        parts = [cell.method, cell.group, *([f"k{len(cell.tasks)}"] if sized else []), cell.regime, f"n{cell.examples}"]
        for name, sign in VARYING.items():
            value = getattr(cell, name)
            if (name, cell.method) in varying and value is not None:
                parts.append(f"{sign}{value:g}")
        parts += [f"{name} {value:g}" for name, value in cell.options.items()]
        names[cell.key] = " ".join([*parts, f"seed {cell.seed}"])
    return names


def result_line(record: CellRecord) -> str:
    """What it gave, as "ROUGE-L 84.1, NLL 0.312, 38 s", or the first line of why it failed."""
    if record.error is not None:
        return "failed: " + record.error.splitlines()[0]
    shown = []
    if (rouge := record.mean("rougeL")) is not None:
        shown.append(f"ROUGE-L {rouge:.1f}")
    if (nll := record.mean("token_nll")) is not None:
        shown.append(f"NLL {nll:.3f}")
    return ", ".join([*shown, f"{sum(record.seconds.values()):.0f} s"])
