"""Figures as SVG, to stand inside a page.

Letters and axes take the colour of the page's text, so that a figure is readable on light and dark ground. A method has
the same colour, marker and line in all figures of a page: a reader who cannot tell the colours has the other two.
"""

import re
from html import escape
from io import StringIO
from typing import Any

from colora.common.palette import COLOURS, DASHES, MARKERS
from colora.errors import ColoraError
from colora.experiments.report.plots import HeatMap, Panel
from colora.experiments.report.tables import bytes_text

try:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
except ImportError as error:
    raise ColoraError(
        f'expected matplotlib for the figures, found: {error}. Install it with: pip install "colora[report]"'
    ) from error

__all__ = ["draw"]

INK = "#010203"  # stands for the colour of the page's text, and is replaced by it
MOST_ANNOTATED = 10  # tasks of a heat map
SHORT = 24  # letters of a label of which two fit beside each other


def draw(figure: Panel | HeatMap, number: int) -> str:
    """An <svg> element with a title and a description; `number` keeps its ids apart from those of other figures."""
    settings: Any = {
        "svg.hashsalt": "colora",  # the same figure from the same records, byte for byte
        "svg.fonttype": "none",
        "font.family": ["sans-serif"],
        "font.size": 10,
        "text.parse_math": False,  # a name may hold dollar signs
        "axes.unicode_minus": True,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        drawn = _panel(figure) if isinstance(figure, Panel) else _heat_map(figure)
        written = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        box = "tight" if isinstance(figure, HeatMap) else None  # names of tasks may need more room than is planned
        drawn.savefig(written, format="svg", transparent=True, metadata=nothing, bbox_inches=box)
    return _inline(written.getvalue(), figure.title, figure.text, number)


def _panel(panel: Panel) -> Figure:
    labels = [_shown(line.label) for line in panel.lines]
    columns = 2 if len(labels) > 4 and max(map(len, labels)) <= SHORT else 1
    legend = 0.1 + 0.18 * -(-len(labels) // columns)  # inches
    height = 2.85 + legend
    figure = Figure(figsize=(4.2, height))
    FigureCanvasSVG(figure)
    axis = figure.add_axes((0.2, (0.5 + legend) / height, 0.76, 2.25 / height))
    handles = []
    faint = 0.15 if len(labels) <= 6 else 0.06
    for line in panel.lines:
        look: dict[str, Any] = {
            "color": (*COLOURS, INK)[line.style % (len(COLOURS) + 1)],
            "marker": MARKERS[line.style % len(MARKERS)],
            "linestyle": DASHES[line.style % len(DASHES)] if panel.joined else "none",
            "markersize": 6,
        }
        if panel.joined and len(line.x) > 1:
            axis.fill_between(line.x, line.low, line.high, color=look["color"], alpha=faint, linewidth=0)
        else:
            apart = [
                [m - a for m, a in zip(line.mean, line.low, strict=True)],
                [b - m for m, b in zip(line.mean, line.high, strict=True)],
            ]
            axis.errorbar(line.x, line.mean, yerr=apart, color=look["color"], linestyle="none", capsize=2)
        axis.plot(line.x, line.mean, **look)
        handles.append(Line2D([], [], **look))
    if panel.scale != "linear":
        axis.set_xscale("log", base=2 if panel.scale == "log2" else 10)
    if panel.joined:
        axis.xaxis.set_major_locator(FixedLocator(_ticks(panel)))
        axis.xaxis.set_major_formatter(_plain)
    elif panel.scale == "log10":
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(_bytes)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=INK, alpha=0.12, linewidth=0.6)
    figure.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        frameon=False,
        handlelength=3,
        fontsize=9,
        labelspacing=0.3,
        borderpad=0.1,
        ncols=columns,
    )
    return figure


def _ticks(panel: Panel) -> list[float]:
    """The values of x that occur; every other one as long as they are many."""
    found = sorted({x for line in panel.lines for x in line.x})
    while len(found) > 7:
        found = found[::2]
    return found


def _plain(value: float, place: float) -> str:
    return f"{value:g}"


def _bytes(value: float, place: float) -> str:
    return bytes_text(value)


def _heat_map(heat: HeatMap) -> Figure:
    size = len(heat.names)
    figure = Figure(figsize=(4.2, 3.6))
    FigureCanvasSVG(figure)
    axis = figure.add_axes((0.25, 0.22, 0.6, 0.7))
    least = min(0.0, *(value for row in heat.values for value in row))
    # An image of a pixel a pair, shown unblurred: a path a pair would take two hundred times the bytes.
    extent = (0, size, size, 0)
    mesh = axis.imshow(heat.values, cmap="cividis", vmin=least, vmax=1.0, interpolation="none", extent=extent)
    places = [i + 0.5 for i in range(size)]
    axis.set_xticks(places, [_shown(name) for name in heat.names], rotation=45, ha="right")
    axis.set_yticks(places, [_shown(name) for name in heat.names])
    axis.tick_params(length=0, labelsize=min(10, 160 / size))  # points: the square is 180 wide
    for i, row in enumerate(heat.values if size <= MOST_ANNOTATED else ()):
        for j, value in enumerate(row):
            bright = (value - least) / (1 - least) > 0.55
            ink = "black" if bright else "white"
            axis.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    bar = figure.colorbar(mesh, ax=axis, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # likewise
    return figure


def _shown(name: str) -> str:
    name = " ".join(name.split())
    name = name if len(name) <= 44 else name[:43] + "…"
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves names with _ out of a legend


def _inline(svg: str, title: str, text: str, number: int) -> str:
    """The <svg> element alone, its ids made unique in the page, its ink that of the page, with texts for readers."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would hold for the whole page
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="f{number}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>f{number}-", body)
    body = body.replace(INK, "currentColor")
    head, rest = body.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    about = f"<title>{escape(title)}</title><desc>{escape(text)}</desc>"
    return f'{head} role="img" aria-label="{escape(title)}">{about}{rest}\n'
