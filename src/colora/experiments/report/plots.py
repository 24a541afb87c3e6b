"""What a figure shows, as data: lines with their spread, or a square of numbers; drawn by `figures`."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["HeatMap", "Lines", "Panel", "Scale"]

Scale = Literal["linear", "log2", "log10"]


@dataclass(frozen=True)
class Lines:
    """A line: for each x the mean over seeds, and the least and greatest of them; `style` numbers its look."""

    label: str
    style: int
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


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
        return "Cosine of the tasks' updates: " + ", ".join(pairs) + "."
