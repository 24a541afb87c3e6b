"""Tables as data, before they become HTML or Markdown; and how numbers are written in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment
from colora.experiments.report.statistics import Difference

__all__ = [
    "LEVEL",
    "NOTHING",
    "Entry",
    "Span",
    "Table",
    "bytes_text",
    "code_notes",
    "count_text",
    "difference_text",
    "interval_text",
    "listed",
    "mean_text",
    "plural",
    "signed_text",
    "table",
]

NOTHING = "–"
LEVEL = "≈"  # not to be told from the best
SPACE = "\u00a0"  # a number is not broken over two lines


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        bold: it is the best of its column.
        level: it cannot be told from the best of its column.
        strong: it names what the table is about.
    """

    text: str
    bold: bool = False
    level: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Span:
    """A heading over several columns; without a text it is none."""

    text: str
    columns: int


@dataclass(frozen=True)
class Table:
    """Headers, rows (the first entry of each names it), notes to be read with them, and headings of columns."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()

    def with_spans(self, spans: Sequence[Span]) -> "Table":
        """The same table with headings over its columns, as many columns as it has."""
        return replace(self, spans=tuple(spans))

    def column(self, header: str) -> list[str]:
        """The texts of one column."""
        place = self.headers.index(header)
        return [row[place].text for row in self.rows]

    def keep(self, headers: Sequence[str]) -> "Table":
        """The same table with these columns only, in this order."""
        places = [self.headers.index(header) for header in headers]
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        return replace(self, headers=tuple(headers), rows=rows, spans=())


def table(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str | Entry]], notes: Sequence[str] = ()
) -> Table:
    """A table from plain texts and entries."""
    entries = tuple(tuple(one if isinstance(one, Entry) else Entry(one) for one in row) for row in rows)
    return Table(title, tuple(headers), entries, tuple(notes))


def code_notes(experiment: Experiment) -> list[str]:
    """A note for the tables of an experiment that mixes records of several codes."""
    if len(experiment.codes) < 2:
        return []
    found = ", ".join(f"{code} ({number})" for code, number in experiment.codes.items())
    return [f"MIXED CODE: the trials of this experiment come from several digests of the sources: {found}."]


def mean_text(mean: float | None, spread: float | None, digits: int) -> str:
    """A mean, ± its spread if there is one."""
    if mean is None:
        return NOTHING
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def difference_text(found: Difference | None, metric: Metric) -> str:
    """A difference with its interval and p-value."""
    if found is None:
        return NOTHING
    p = "p ≤ 0.001" if found.p <= 0.001 else f"p = {found.p:.3f}" if found.p < 0.1 else f"p = {found.p:.2f}"
    return f"{interval_text(found, metric.digits)}, {p}"


def interval_text(found: Difference, digits: int) -> str:
    """A difference with its interval."""
    mean, low, high = (signed_text(value, digits) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def count_text(number: float) -> str:
    """An integer in groups of three digits."""
    return f"{number:,.0f}".replace(",", SPACE)


def bytes_text(number: float) -> str:
    """Bytes with three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g}{SPACE}{unit}"
        number /= 1000
    return f"{count_text(number) if number >= 999.5 else format(number, '.3g')}{SPACE}GB"


def signed_text(value: float, digits: int) -> str:
    """A number with its sign; zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def plural(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(texts: Sequence[str]) -> str:
    """Texts as a list in a sentence.

    Examples:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([part for part in (", ".join(texts[:-1]), texts[-1]) if part]) if texts else ""
