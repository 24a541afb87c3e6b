"""Figures of lines or points against examples, tasks, settings or bytes, their names beside them."""

import math
from collections.abc import Callable, Sequence

from colora.experiments.report.drawing.svg import (
    WIDTH,
    figure,
    label,
    line,
    look,
    polyline,
    shape,
    ticks,
    width_of,
)
from colora.experiments.report.plots import Lines, Panel
from colora.experiments.report.tables import bytes_text

__all__ = ["draw_panel"]

LEFT, TOP, HEIGHT = 38.0, 22.0, 190.0
MOST_NAME = 22  # letters
BETWEEN = 12.0  # from a name to the next
FEW = 6  # lines of which each may have a band
Scale = Callable[[float], float]


def draw_panel(panel: Panel) -> str:
    """Lines with bands from the least to the greatest seed, or points with bars, each with its name at the right."""
    names = {one.label: _short(one.label) for one in panel.lines}
    right = WIDTH - min(150.0, 14.0 + max(map(width_of, names.values())))
    x = _x_scale(panel, right)
    low, high = min(min(one.low) for one in panel.lines), max(max(one.high) for one in panel.lines)
    span = (high - low) or 1.0
    low, high = low - 0.04 * span, high + 0.04 * span
    bottom = TOP + HEIGHT

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * HEIGHT

    parts = [label(0, 11, panel.y_label, "faint")]
    for tick in ticks(low, high):
        parts += [
            line(LEFT, y(tick), right, y(tick), "grid"),
            label(LEFT - 5, y(tick) + 3.5, f"{tick:g}", "faint", "e"),
        ]
    for tick, text in _x_ticks(panel, x):
        parts += [line(x(tick), bottom, x(tick), bottom + 4, "axis"), label(x(tick), bottom + 15, text, "faint", "m")]
    parts += [
        line(LEFT, bottom, right, bottom, "axis"),
        label((LEFT + right) / 2, bottom + 30, panel.x_label, "faint", "m"),
    ]
    weak_first = sorted(panel.lines, key=lambda one: one.strong)
    parts += [_drawn(one, panel, x, y) for one in weak_first]
    parts += _names(panel, names, x, y, right)
    return figure(bottom + 36, panel.title, panel.text, parts)


def _drawn(one: Lines, panel: Panel, x: Scale, y: Scale) -> str:
    colour, dash, marker = look(one.style)
    middle = [(x(a), y(b)) for a, b in zip(one.x, one.mean, strict=True)]
    spread = list(zip(one.x, one.low, one.high, strict=True))
    parts = []
    apart = any(low != high for _, low, high in spread)
    if panel.joined and len(middle) > 1:
        if apart and (len(panel.lines) <= FEW or one.strong):
            around = [(x(a), y(low)) for a, low, _ in spread] + [(x(a), y(high)) for a, _, high in reversed(spread)]
            parts.append(f'<path class="band" d="{polyline(around)}z"/>')
        parts.append(f'<path class="curve {dash}" d="{polyline(middle)}"/>')
    elif apart:
        bars = "".join(polyline([(x(a), y(low)), (x(a), y(high))]) for a, low, high in spread)
        parts.append(f'<path class="curve" d="{bars}"/>')
    parts.append(f'<path d="{shape(middle, marker)}"/>')
    return f'<g class="{colour}{"" if one.strong else " weak"}">{"".join(parts)}</g>'


def _names(panel: Panel, names: dict[str, str], x: Scale, y: Scale, right: float) -> list[str]:
    """The names from top to bottom in the order of the lines' ends, moved apart; a thin line leads to each end."""
    ends = sorted(((y(one.mean[-1]), x(one.x[-1]), one) for one in panel.lines), key=lambda end: end[0])
    parts = []
    for (y_end, x_end, one), y_name in zip(ends, _apart([end[0] for end in ends]), strict=True):
        colour, _, marker = look(one.style)
        weak = "" if one.strong else " weak"
        parts.append(
            f'<path class="lead" d="{polyline([(x_end + 4, y_end), (right + 2, y_name), (right + 5, y_name)])}"/>'
        )
        parts.append(f'<path class="{colour}{weak}" d="{shape([(right + 8, y_name)], marker)}"/>')
        parts.append(label(right + 14, y_name + 3.5, names[one.label], "" if one.strong else "faint"))
    return parts


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights of names near those wanted (rising), at least `BETWEEN` from each other, inside the axes if they fit."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + BETWEEN) if placed else height)
    lowest = TOP + HEIGHT
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - BETWEEN
    return placed


def _x_scale(panel: Panel, right: float) -> Scale:
    if panel.scale == "linear":
        return _linear(panel, right, lambda value: value)
    return _linear(panel, right, math.log)


def _linear(panel: Panel, right: float, of: Scale) -> Scale:
    values = [of(value) for one in panel.lines for value in one.x]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    inset = 8.0
    return lambda value: LEFT + inset + (of(value) - low) / span * (right - LEFT - 2 * inset)


def _x_ticks(panel: Panel, x: Scale) -> list[tuple[float, str]]:
    """The values that occur, or round ones of bytes, with their texts: those that do not run into the one before."""
    found = sorted({value for one in panel.lines for value in one.x})
    if not panel.joined:
        powers = [10.0**k * factor for k in range(16) for factor in (1, 3)]
        found = [value for value in powers if found[0] <= value <= found[-1]] or found[:1]
    kept: list[tuple[float, str]] = []
    end = float("-inf")
    for value in found:
        text = f"{value:g}" if panel.joined else bytes_text(value)
        if x(value) - width_of(text) / 2 > end:
            kept.append((value, text))
            end = x(value) + width_of(text) / 2 + 5
    return kept


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MOST_NAME else name[: MOST_NAME - 1] + "…"
