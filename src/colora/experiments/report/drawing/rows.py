"""Figures of rows below each other: intervals about zero, and marks on one axis."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TypeVar

from colora.experiments.report.drawing.svg import WIDTH, figure, label, line, mark, number, ticks
from colora.experiments.report.plots import Forest, Interval, Kind, Strip, Strips
from colora.experiments.report.tables import interval_text, signed_text

__all__ = ["draw_forest", "draw_strips"]

ROW, MIDDLE, HEADING, GAP, TOP, AXIS = 32.0, 23.0, 20.0, 8.0, 2.0, 34.0
LEFT, RIGHT = 6.0, WIDTH - 8.0
_LOOKS: dict[Kind, tuple[str, str]] = {"base": ("D", "hollow"), "rival": ("s", "rival"), "reference": ("o", "ours")}
SIGNS: dict[Kind, str] = {"reference": "●", "rival": "■", "base": "◇"}
LETTERS = 60  # of a line of text
SHORTEST = 8  # letters of a label
Scale = Callable[[float], float]
T = TypeVar("T", Interval, Strip)


def draw_forest(forest: Forest) -> str:
    """Below each label its interval about a line at zero, filled where it leaves zero out, and in numbers."""
    ends = [end for row in forest.rows for end in (row.difference.low, row.difference.high)]
    at, low, high = _scale([*ends, 0.0])
    rows, bottom = _placed(forest.rows, lambda row, y: _interval(row, y, at, forest))
    decimals = max(len(f"{tick:g}".partition(".")[2]) for tick in ticks(low, high))
    axis = _axis(bottom, [(at(tick), signed_text(tick, decimals)) for tick in ticks(low, high)])
    axis.append(label(0, bottom + 28, f"← {forest.left}", "faint"))
    axis.append(label(WIDTH, bottom + 28, f"{forest.right} →", "faint", "e"))
    return figure(bottom + AXIS, forest.title, forest.text, [*rows, *axis])


def draw_strips(strips: Strips) -> str:
    """For each row all marks on one axis; the reference, the best rival and the base are named in numbers."""
    at, low, high = _scale([mark.value for row in strips.rows for mark in row.marks])
    rows, bottom = _placed(strips.rows, lambda row, y: _strip(row, y, at))
    axis = _axis(bottom, [(at(tick), f"{tick:g}") for tick in ticks(low, high)])
    key = f"● {strips.reference[: SHORTEST * 2]}   ■ best rival   ◇ nothing trained   | any other"
    axis.append(label(0, bottom + 28, key, "faint wide-spaces"))
    return figure(bottom + AXIS, strips.title, strips.text, [*rows, *axis])


def _axis(bottom: float, at: Sequence[tuple[float, str]]) -> list[str]:
    parts = [line(LEFT, bottom, RIGHT, bottom, "axis")]
    for x, text in at:
        parts += [line(x, bottom, x, bottom + 3, "axis"), label(x, bottom + 13, text, "faint", "m")]
    return parts


def _placed(rows: Sequence[T], draw: Callable[[T, float], str]) -> tuple[list[str], float]:
    """All rows drawn below each other, with their headings where these differ, and where the last one ends."""
    several = len({row.heading for row in rows if row.heading}) > 1
    parts, y, last = [], TOP, rows[0].heading if not several else None
    for row in rows:
        if row.heading != last:
            parts += [label(0, y + 13, row.heading, "faint")] if row.heading else []
            y += HEADING if row.heading else GAP
            last = row.heading
        parts.append(draw(row, y))
        y += ROW
    return parts, y


def _interval(row: Interval, y: float, at: Scale, forest: Forest) -> str:
    one, middle = row.difference, y + MIDDLE
    numbers = interval_text(one, forest.digits)
    label_length = min(len(row.label), LETTERS - len(numbers))
    name = f"{_span(row.label, 'b', label_length)} {_span(row.note, 'faint', LETTERS - len(numbers) - label_length)}"
    parts = [
        f'<text x="0" y="{number(y + 12)}">{name}</text>',
        label(WIDTH, y + 12, numbers, "", "e"),
    ]
    parts += [
        line(at(0), middle - 7, at(0), middle + 7, "zero"),
        line(at(one.low), middle, at(one.high), middle, "bar"),
    ]
    parts.append(
        mark(at(one.mean), middle, "o" if row.heading else "D", "ours" if one.is_significant else "hollow ours")
    )
    return "".join(parts)


def _strip(row: Strip, y: float, at: Scale) -> str:
    middle = y + MIDDLE
    named = sorted((one for one in row.marks if one.kind in SIGNS), key=lambda one: -one.value)
    texts = {one.kind: f"{one.label} {one.value:.{row.digits}f}" for one in named}
    if sum(map(len, texts.values())) + 4 * len(texts) + len(row.label) > LETTERS:  # the key says what is named
        texts = {one.kind: texts[one.kind] if one.kind != "base" else f"{one.value:.{row.digits}f}" for one in named}
    shown = "   ".join(
        f"{_span(SIGNS[kind], 'ours' if kind == 'reference' else '')} {_span(text, 'b' if kind == 'reference' else '')}"
        for kind, text in texts.items()
    )
    room = max(SHORTEST, LETTERS - sum(map(len, texts.values())) - 4 * len(texts))
    others = "".join(f"M{number(at(one.value))} {number(middle - 4)}v8" for one in row.marks if one.kind not in SIGNS)
    parts = [
        f'<text x="0" y="{number(y + 12)}">{_span(row.label, "b", room)}</text>',
        f'<text x="{number(WIDTH)}" y="{number(y + 12)}" class="e wide-spaces">{shown}</text>',
        line(LEFT, middle, RIGHT, middle, "grid"),
        *([f'<path class="others" d="{others}"/>'] if others else []),
    ]
    for kind, (marker, css) in _LOOKS.items():
        parts += [mark(at(one.value), middle, marker, css) for one in row.marks if one.kind == kind]
    return "".join(parts)


def _scale(values: Sequence[float]) -> tuple[Scale, float, float]:
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    low, high = low - 0.02 * span, high + 0.02 * span
    return lambda value: LEFT + (value - low) / (high - low) * (RIGHT - LEFT), low, high


def _span(text: str, css: str, most: int = LETTERS) -> str:
    """A text of at most so many letters in a class; without a class it stands for itself."""
    short = " ".join(text.split())
    short = escape(short if len(short) <= most else short[: max(0, most - 1)] + "…")
    return f'<tspan class="{css}">{short}</tspan>' if css and short else short
