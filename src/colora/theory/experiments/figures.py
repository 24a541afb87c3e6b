"""Figures of recovery experiments: each a file of its own, SVG on white, readable in grey.

A method has the same colour, marker and dashes in all of them.
"""

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from colora.common.files import write_text
from colora.common.palette import COLOURS, DASHES, MARKERS
from colora.errors import ColoraError
from colora.theory.experiments.config import FIGURES, FigureName
from colora.theory.experiments.records import RecoveryRecord
from colora.theory.experiments.summary import Row, paired, rows

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ImportError as error:
    raise ColoraError(
        f'expected matplotlib for the figures, found: {error}. Install it with: pip install "colora[report]"'
    ) from error

__all__ = ["draw_recovery"]

# Methods that stand in one figure have different numbers, and so another colour, marker and dashes.
LOOKS = {
    "second-order": 0,
    "colora": 0,
    "alternating": 1,
    "local-least-squares": 2,
    "local": 2,
    "gradient": 2,
    "local-low-rank": 3,
    "second-order-annealed": 3,
    "pooled": 4,
    "oracle": 5,
    "scaled-gradient": 6,
}
INK = "#111111"
# Fields of the problem that an experiment has to vary for its figure.
_VARIES: dict[FigureName, tuple[str, ...]] = {
    "phase": ("samples",),
    "noise": ("noise",),
    "similarity": ("angle",),
    "newcomer": ("newcomer",),
    "digits": ("samples",),
    "convergence": (),
}
MOST_RATIO = 2.0  # of mean squared errors to the bound


def draw_recovery(records: Sequence[RecoveryRecord], figure: FigureName, path: Path) -> None:
    """Write one figure from the records of one experiment, atomically.

    Args:
        records: of an experiment that varies what the figure shows.
        figure: a name of `FIGURES`.
        path: the SVG file.

    Raises:
        ColoraError: an unknown figure, or records that do not vary what it shows.
        CheckpointError: if the file cannot be written.
    """
    if figure not in FIGURES:
        raise ColoraError(f"figure: expected one of {', '.join(FIGURES)}, found {figure!r}")
    found = rows(records)
    missing = [name for name in _VARIES[figure] if name not in found[0].values]
    if missing:
        raise ColoraError(f"figure {figure}: expected several values of {', '.join(missing)}, found one")
    settings: Any = {"svg.hashsalt": "colora", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
    with matplotlib.rc_context(settings):
        drawn = _DRAW[figure](found)
        FigureCanvasSVG(drawn)
        written = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(written, format="svg", metadata=nothing)
    # Lines of a path end in a space, which editors and git do not like.
    write_text(path, "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n")


def _phase(found: list[Row]) -> Figure:
    methods = _methods(found)
    users = sorted({_users(row) for row in found})
    samples = sorted({row.values["samples"] for row in found})
    figure = Figure(figsize=(9.5, 1.1 + 2.1 * -(-len(methods) // 2)), layout="constrained")
    axes = [figure.add_subplot(-(-len(methods) // 2), 2, number + 1) for number in range(len(methods))]
    at = {(row.method, _users(row), row.values["samples"]): row.recovered for row in found}
    free = [next(row for row in found if _users(row) == K).freedom for K in users]
    image = None
    for axis, method in zip(axes, methods, strict=False):
        shares = [[at.get((method, K, n), np.nan) for n in samples] for K in users]
        image = axis.imshow(shares, cmap="Greys_r", vmin=0, vmax=1, aspect="auto", origin="lower")
        axis.set_title(method)
        axis.set_xticks(range(len(samples)), [str(n) for n in samples], rotation=90, fontsize=7)
        axis.set_yticks(range(len(users)), [str(K) for K in users])
        crossings = np.interp(free, samples, range(len(samples)), left=-0.5)
        axis.plot(crossings, range(len(users)), color=COLOURS[1], marker="o", markersize=3, linewidth=1.5)
        axis.set_xlabel("samples of each user")
        axis.set_ylabel("users K")
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.6, label="share recovered exactly")
    return figure


def _users(row: Row) -> int:
    return row.record.trial.problem.users


def _convergence(found: list[Row]) -> Figure:
    problems = list({tuple(row.values.items()): row.values for row in found}.values())
    figure = Figure(figsize=(9.5, 2.7 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), 2, squeeze=False)
    for line, values in zip(axes, problems, strict=True):
        for row in (one for one in found if one.values == values):
            for number, history in enumerate(row.record.history):
                entries = [entry for entry in history if entry[0] == history[0][0]]
                errors = [entry[6] for entry in entries]
                look = _look(row.method) | {"alpha": 1.0 if number == 0 else 0.3, "markevery": 0.12}
                label = row.method if number == 0 else None
                line[0].plot(range(1, len(errors) + 1), errors, label=label, **look)
                line[1].plot([entry[3] for entry in entries], errors, **look)
        for axis, name in zip(line, ("iterations", "seconds"), strict=True):
            axis.set_yscale("log")  # so that a linear rate is a straight line over iterations
            axis.set_xscale("linear" if name == "iterations" else "log")
            axis.set_xlabel(name)
            axis.set_ylabel("relative error")
            axis.set_title(", ".join(f"{key} {value:g}" for key, value in values.items()))
        _plain(*line)
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def _noise(found: list[Row]) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, found, "noise", "relative error")
    bound = [row for row in found if row.method == found[0].method]
    x = [row.values["noise"] for row in bound]
    for name, dashes in (("bounds", ":"), ("bounds_alone", "--")):
        values = [getattr(row.record, name) for row in bound]
        if all(values):
            title = "Cramér–Rao" if name == "bounds" else "Cramér–Rao, alone"
            left.plot(x, [float(np.median(one)) for one in values], color=INK, linestyle=dashes, label=title)
    left.loglog()
    left.set_xlabel("noise σ")
    left.legend(frameon=False, fontsize=7)
    for method in ("second-order", "alternating"):
        of_method = [row for row in found if row.method == method]
        ratio = [np.mean(np.square(row.record.errors)) / np.mean(np.square(row.record.bounds)) for row in of_method]
        # A seed in a wrong minimum sends the mean out of sight; a line to there would say nothing.
        shown = [one if one < MOST_RATIO else np.nan for one in ratio]
        right.plot([row.values["noise"] for row in of_method], shown, label=method, **_look(method))
    right.axhline(1.0, color=INK, linestyle=":")
    right.axhspan(0.9, 1.1, color=INK, alpha=0.08, linewidth=0)
    right.set_xscale("log")
    right.set_ylim(0.5, MOST_RATIO)
    right.set_xlabel("noise σ")
    right.set_ylabel("mean squared error / bound")
    right.legend(frameon=False, fontsize=8)
    _plain(left, right)
    return figure


def _similarity(found: list[Row]) -> Figure:
    sizes = sorted({row.record.trial.problem.samples or 0 for row in found})
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = list(figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0])
    for axis, size in zip(axes, sizes, strict=True):
        _curves(axis, [row for row in found if row.record.trial.problem.samples == size], "angle", "relative error")
        axis.set_yscale("log")
        axis.set_xlabel("angle to the shared subspaces, °")
        axis.set_title(f"{size} samples a user")
    axes[0].legend(frameon=False, fontsize=7)
    _plain(*axes)
    return figure


def _new_users(found: list[Row]) -> Figure:
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    _curves(axis, found, "newcomer", "relative error")
    axis.loglog()
    axis.set_xlabel("samples of the new user")
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return figure


def _digits(found: list[Row]) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    in_per_cent = [_scaled(row, 100.0) for row in found]
    _curves(left, in_per_cent, "samples", "test error, %", mean=True)
    ours = {row.values["samples"]: row for row in in_per_cent if row.method == "colora"}
    for method in [one for one in _methods(found) if one.startswith("local")]:
        theirs = [row for row in in_per_cent if row.method == method and row.values["samples"] in ours]
        apart = [paired(ours[row.values["samples"]], row) for row in theirs]
        x = [row.values["samples"] for row in theirs]
        middle = [one[0] for one in apart]
        reach = [[one[0] - one[1] for one in apart], [one[2] - one[0] for one in apart]]
        right.errorbar(x, middle, yerr=reach, capsize=3, label=f"colora − {method}", **_look(method))
    right.axhline(0.0, color=INK, linestyle=":")
    right.set_ylabel("difference, points (below 0: colora is better)")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        ticks = sorted({row.values["samples"] for row in found})
        axis.set_xticks(ticks, [str(one) for one in ticks])
        axis.set_xlabel("labelled images of each user")
        axis.legend(frameon=False, fontsize=8)
    _plain(left, right)
    return figure


_DRAW: dict[FigureName, Callable[[list[Row]], Figure]] = {
    "phase": _phase,
    "convergence": _convergence,
    "noise": _noise,
    "similarity": _similarity,
    "newcomer": _new_users,
    "digits": _digits,
}


def _curves(axis: Axes, found: Sequence[Row], name: str, title: str, mean: bool = False) -> None:
    """For each method its median (or mean) over seeds, and the quartiles as a band."""
    for method in _methods(found):
        of_method = [row for row in found if row.method == method]
        x = [row.values[name] for row in of_method]
        axis.plot(x, [row.mean if mean else row.error for row in of_method], label=method, **_look(method))
        low, high = zip(*(row.spread for row in of_method), strict=True)
        axis.fill_between(x, low, high, color=_look(method)["color"], alpha=0.12, linewidth=0)
    axis.set_ylabel(title)


def _scaled(row: Row, factor: float) -> Row:
    record = row.record.model_copy(update={"errors": [factor * one for one in row.record.errors]})
    return Row(row.values, row.method, record)


def _methods(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in found))


def _look(method: str) -> dict[str, Any]:
    number = LOOKS.get(method, len(LOOKS) + sum(method.encode()) % 7)
    return {
        "color": (*COLOURS, INK)[number % (len(COLOURS) + 1)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linestyle": DASHES[number % len(DASHES)],
    }


def _plain(*axes: Axes) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
