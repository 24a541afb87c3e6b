"""SVG by hand: few elements, one class for each look, coordinates of one decimal.

Letters and lines take their colours from the page's style sheet (`style`), so that a figure is readable on light and
dark ground and on paper. Figures are 360 units wide, about a phone's width, on which letters are then 11 pixels high.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

from colora.common.palette import COLOURS, DASHES, MARKERS

__all__ = ["WIDTH", "figure", "label", "line", "look", "mark", "number", "polyline", "shape", "ticks", "width_of"]

WIDTH = 360.0
LETTER = 6.2  # width of a letter of 10.5 units in a wide typeface
_SHAPES = {
    "o": "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0",
    "s": "m-2.8-2.8h5.6v5.6h-5.6z",
    "^": "m0-3.8l3.6 6.4h-7.2z",
    "D": "m0-4l3.8 4l-3.8 4l-3.8-4z",
    "v": "m0 3.8l3.6-6.4h-7.2z",
    "P": "m-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
    "X": "m-3.4-2l1.4-1.4l2 2l2-2l1.4 1.4l-2 2l2 2l-1.4 1.4l-2-2l-2 2l-1.4-1.4l2-2z",
    "<": "m-3.8 0l6.4-3.6v7.2z",
    ">": "m3.8 0l-6.4-3.6v7.2z",
    "*": "m0-4.4l1.1 3.2h3.3l-2.7 2l1 3.2l-2.7-2l-2.7 2l1-3.2l-2.7-2h3.3z",
    "h": "m0-3.8l3.3 1.9v3.8l-3.3 1.9l-3.3-1.9v-3.8z",
}


def figure(height: float, title: str, text: str, parts: Iterable[str]) -> str:
    """An <svg> element of a height, with a title and a description for those who do not see it."""
    about = f"<title>{escape(title)}</title><desc>{escape(text)}</desc>"
    box = f'viewBox="0 0 {number(WIDTH)} {number(height)}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{about}{"".join(parts)}</svg>\n'


def number(value: float) -> str:
    """A coordinate with one decimal at most."""
    text = f"{value:.1f}"
    return text.removesuffix(".0").replace("-0.", "-.") if text not in ("-0.0", "0.0") else "0"


def label(x: float, y: float, text: str, css: str = "", anchor: str = "") -> str:
    """A text at a point; `anchor` is "m" or "e" for its middle or its end there."""
    kind = " ".join(part for part in (css, anchor) if part)
    attributes = f' class="{kind}"' if kind else ""
    return f'<text x="{number(x)}" y="{number(y)}"{attributes}>{escape(text)}</text>'


def line(x0: float, y0: float, x1: float, y1: float, css: str) -> str:
    """A straight line."""
    return f'<path class="{css}" d="M{number(x0)} {number(y0)}L{number(x1)} {number(y1)}"/>'


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """The path through these points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def shape(points: Iterable[tuple[float, float]], marker: str) -> str:
    """The path of a marker, by matplotlib's name for it, at each point."""
    return "".join(f"M{number(x)} {number(y)}{_SHAPES[marker]}" for x, y in points)


def mark(x: float, y: float, marker: str, css: str) -> str:
    """One marker."""
    return f'<path class="{css}" d="{shape([(x, y)], marker)}"/>'


def look(style: int) -> tuple[str, str, str]:
    """The classes of a colour and of a dash, and the marker, of a number: 0 is an orange disc on a full line.

    The last colour is the ink.
    """
    return f"c{(style + 1) % (len(COLOURS) + 1)}", f"d{style % len(DASHES)}", MARKERS[style % len(MARKERS)]


def width_of(text: str, size: float = 1.0) -> float:
    """About how wide a text is."""
    return LETTER * size * len(text)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most so many and at least two where the range allows.

    Examples:
        >>> ticks(3.0, 82.0)
        [20.0, 40.0, 60.0, 80.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
