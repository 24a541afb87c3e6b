"""A square of numbers as shades of one colour, with the numbers in it where there is room."""

from html import escape

from colora.experiments.report.drawing.svg import WIDTH, figure, label, number, width_of
from colora.experiments.report.plots import HeatMap

__all__ = ["draw_heat_map"]

SHADES = 10
MOST_NUMBERED = 10  # names
MOST_NAME = 16  # letters
MOST_SIDE = 44.0
MOST_NAMED = 20  # names that stand over their columns
TOP = 14.0


def draw_heat_map(heat: HeatMap) -> str:
    """The lower triangle and the diagonal: the square is symmetric. Shades from the least value to one."""
    names = [_short(name) for name in heat.names]
    count = len(names)
    left = min(110.0, 10 + max(width_of(name, 0.9) for name in names))
    side = min(MOST_SIDE, (WIDTH - left - 12) / count)
    # the first row and the last column of a triangle are empty but for their names
    below = [heat.values[i][j] for i in range(count) for j in range(i)]
    least, most = (min(below), max(below)) if below else (0.0, 1.0)
    shades: dict[int, list[str]] = {}
    texts = []
    for i, row in enumerate(heat.values):
        for j, value in enumerate(row[:i]):
            part = (value - least) / ((most - least) or 1.0)
            shade = min(SHADES - 1, int(SHADES * part))
            x, y = left + j * side, TOP + i * side
            shades.setdefault(shade, []).append(
                f"M{number(x)} {number(y)}h{number(side)}v{number(side)}h-{number(side)}z"
            )
            if count <= MOST_NUMBERED:
                css = "on-heat" if shade > SHADES // 2 else ""
                texts.append(label(x + side / 2, y + side / 2 + 3.5, f"{value:.2f}", css, "m"))
    cells = [f'<path class="heat q{shade}" d="{"".join(paths)}"/>' for shade, paths in sorted(shades.items())]
    small = "" if side >= 12 else "small"
    rows = [label(left - 5, TOP + (i + 0.5) * side + 3.5, name, small, "e") for i, name in enumerate(names)]
    columns = []
    for j, name in enumerate(names[:-1] if count <= MOST_NAMED else []):
        place = f"translate({number(left + (j + 0.5) * side + 3)} {number(TOP + (j + 1) * side - 3)}) rotate(-60)"
        columns.append(f'<text class="{small}" transform="{place}">{escape(name)}</text>')
    return figure(TOP + count * side + 4, heat.title, heat.text, [*cells, *texts, *rows, *columns])


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MOST_NAME else name[: MOST_NAME - 1] + "…"
