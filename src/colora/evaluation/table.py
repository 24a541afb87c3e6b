"""Records side by side: a row for each task, a column for each method and metric; for the terminal or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from rich.table import Table
from rich.text import Text

from colora.errors import ColoraError
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record

__all__ = ["Centre", "comparison_markdown", "records_table"]

Centre = Literal["mean", "median"]
OTHER_DIGITS = 3  # of what is no metric of the table
NOTHING = "–"


@dataclass(frozen=True)
class _Grid:
    columns: list[tuple[str, str]]  # method, metric
    rows: list[tuple[str, list[str]]]  # task, a cell for each column


def records_table(
    records: Sequence[Record], *, split: str | None = None, centre: Centre = "mean", title: str | None = None
) -> Table:
    """A table for the terminal: a row for each task and one for the mean over tasks, columns method × metric.

    A cell with several repeats (seeds, or runs with one seed) shows mean ± sample standard deviation, or, with
    `centre="median"`, median [least, greatest]. Where (run, method, task, metric, seed) occurs twice the later record
    counts. The last row is the mean over the tasks that every column has, taken within each repeat: so no method
    gains by leaving a hard task out, and the spread is that of the mean.

    Args:
        records: what to show; tasks, methods and metrics appear in the order in which they occur.
        split: show only this split; required if the records are of several.
        centre: how repeats are summarised.
        title: printed above the table.

    Raises:
        ColoraError: if there is nothing to show, if several splits are mixed, or for an unknown `centre`.
    """
    grid = _grid(records, split, centre)
    table = Table(title=None if title is None else Text(title))
    table.add_column("task", overflow="fold")
    for method, metric in grid.columns:
        table.add_column(Text(f"{method}\n{metric}" if method else metric), justify="right")
    for index, (task, cells) in enumerate(grid.rows):
        if index == len(grid.rows) - 1:
            table.add_section()
        table.add_row(Text(task), *cells)  # Text: a name may hold square brackets, which rich takes for markup
    return table


def comparison_markdown(records: Sequence[Record], *, split: str | None = None, centre: Centre = "mean") -> str:
    """The table of `records_table` as Markdown text, with a newline at the end.

    Raises:
        ColoraError: as `records_table`.
    """
    grid = _grid(records, split, centre)
    header = ["task", *(f"{method} {metric}".strip() for method, metric in grid.columns)]
    lines = [header, ["---", *["---:"] * len(grid.columns)], *([task, *cells] for task, cells in grid.rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _grid(records: Sequence[Record], split: str | None, centre: Centre) -> _Grid:
    if centre not in ("mean", "median"):
        raise ColoraError(f"centre: expected 'mean' or 'median', found {centre!r}")
    splits = list(dict.fromkeys(record.split for record in records))
    shown = [record for record in records if split is None or record.split == split]
    if split is None and len(splits) > 1:
        raise ColoraError(f"expected records of one split, found {', '.join(splits)}: choose one with split=...")
    if not shown:
        raise ColoraError(f"expected records of split {split!r}, found {', '.join(splits)}" if splits else "no records")

    values: dict[tuple[str, str], dict[str, dict[tuple[str, int], float]]] = {}
    for record in shown:
        column = values.setdefault((record.method, record.metric), {})
        column.setdefault(record.task, {})[record.run, record.seed] = record.value
    methods = list(dict.fromkeys(record.method for record in shown))
    metrics = list(dict.fromkeys(record.metric for record in shown))
    columns = [(method, metric) for method in methods for metric in metrics if (method, metric) in values]

    tasks = list(dict.fromkeys(record.task for record in shown))
    rows = [(task, [_cell(list(values[c].get(task, {}).values()), c[1], centre) for c in columns]) for task in tasks]
    common = [task for task in tasks if all(task in values[column] for column in columns)]
    label = "mean" if len(common) == len(tasks) else f"mean of {len(common)} common tasks"
    means = [_cell(_means_by_repeat(values[column], common), column[1], centre) for column in columns]
    return _Grid(columns, [*rows, (label, means)])


def _means_by_repeat(column: dict[str, dict[tuple[str, int], float]], tasks: list[str]) -> list[float]:
    """The mean over `tasks` for each repeat that has them all."""
    if not tasks:
        return []
    repeats = [repeat for repeat in column[tasks[0]] if all(repeat in column[task] for task in tasks)]
    return [fmean(column[task][repeat] for task in tasks) for repeat in repeats]


def _cell(values: list[float], metric: str, centre: Centre) -> str:
    if not values:
        return NOTHING
    digits = METRICS[metric].digits if metric in METRICS else OTHER_DIGITS
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    if centre == "median":
        return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"
