"""What a figure shows, as data: lines with their spread, intervals, marks on an axis, a square of numbers.

`drawing` makes pictures of them; `text` says the same in words.
"""

from dataclasses import dataclass
from typing import Literal

from colora.experiments.report.statistics import Difference
from colora.experiments.report.tables import interval_text

__all__ = ["Figure", "Forest", "HeatMap", "Interval", "Kind", "Lines", "Mark", "Panel", "Scale", "Strip", "Strips"]

Scale = Literal["linear", "log2", "log10"]
Kind = Literal["reference", "rival", "base", "variant", "other"]
MOST_PAIRS = 66  # of a heat map that are read out: those of twelve names


@dataclass(frozen=True)
class Lines:
    """A line: for each x the mean over seeds, and the least and greatest of them; `style` numbers its look.

    Where there are many lines, only those that are `strong` stand out.
    """

    label: str
    style: int
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    strong: bool = True


@dataclass(frozen=True)
class Panel:
    """A figure of lines, or of points if `joined` is False (x is then in bytes); `scale` is that of x."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Lines, ...]
    scale: Scale = "linear"
    joined: bool = True

    @property
    def text(self) -> str:
        """The numbers in words, for those who do not see the figure."""
        parts = [
            f"{one.label}: " + ", ".join(f"{y:.4g} at {x:g}" for x, y in zip(one.x, one.mean, strict=True))
            for one in self.lines
        ]
        return f"{self.y_label} against {self.x_label}. " + "; ".join(parts) + "."


@dataclass(frozen=True)
class HeatMap:
    """A square of numbers with a name for each row and column."""

    title: str
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def text(self) -> str:
        """The numbers in words."""
        pairs = [
            f"{a} and {b} {self.values[i][j]:.2f}"
            for i, a in enumerate(self.names)
            for j, b in enumerate(self.names[:i])
        ]
        if len(pairs) > MOST_PAIRS:
            values = [self.values[i][j] for i in range(len(self.names)) for j in range(i)]
            return f"Cosine of the updates of {len(self.names)} tasks, {min(values):.2f} to {max(values):.2f}."
        return "Cosine of the tasks' updates: " + ", ".join(pairs) + "."


@dataclass(frozen=True)
class Interval:
    """A row of a forest: a difference with its interval, and against whom; rows of one heading stand together."""

    label: str
    note: str
    difference: Difference
    heading: str


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals below each other, about a line at zero; `left` and `right` name its sides."""

    title: str
    rows: tuple[Interval, ...]
    left: str
    right: str
    digits: int = 1

    @property
    def text(self) -> str:
        """The numbers in words."""
        parts = [
            " ".join(part for part in (row.label, f"({row.heading})" if row.heading else "", row.note) if part)
            + f": {interval_text(row.difference, self.digits)}"
            for row in self.rows
        ]
        return "Differences with 95 % intervals. " + "; ".join(parts) + "."


@dataclass(frozen=True)
class Mark:
    """A method on a strip."""

    label: str
    value: float
    kind: Kind


@dataclass(frozen=True)
class Strip:
    """A row of marks; rows of one heading stand together."""

    label: str
    measure: str
    marks: tuple[Mark, ...]
    heading: str
    digits: int = 1


@dataclass(frozen=True)
class Strips:
    """Where methods stand, one row of marks below the other, all on one axis."""

    title: str
    rows: tuple[Strip, ...]
    reference: str

    @property
    def text(self) -> str:
        """The numbers in words."""
        parts = [
            f"{row.label} ({row.heading}), {row.measure}: "
            + ", ".join(f"{mark.label} {mark.value:.{row.digits}f}" for mark in row.marks)
            for row in self.rows
        ]
        return "; ".join(parts) + "."


Figure = Panel | HeatMap | Forest | Strips
