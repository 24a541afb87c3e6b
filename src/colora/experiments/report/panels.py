"""What the figures show, as data: from an experiment's rows to panels of lines and heat maps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

import numpy as np

from colora.errors import ColoraError
from colora.evaluation.metrics import Metric
from colora.experiments.report.costs import bytes_moved, is_federated
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.measures import measures
from colora.experiments.report.methods import REFERENCES, method_order
from colora.experiments.report.plots import HeatMap, Lines, Panel, Scale
from colora.experiments.report.regret import main_measure

__all__ = ["collaborator_panels", "efficiency_panels", "federated_panels", "similarity_maps", "styles", "sweep_panels"]

Styles = dict[str, int]
Which = Literal["all", "ranking", "main", "rest"]  # of the metrics; "rest": those that rank but for the main one
Points = dict[str, list[tuple[float, Row]]]  # of each line
FEWEST = 3  # points of a line of a sweep: two are in the table
FEWEST_TASKS = 3  # of a heat map
MOST_STRONG = 7  # lines of a panel that all stand out
_SWEPT = {"rank": "rank r", "lr": "learning rate of A and B", "core_lr": "learning rate of the cores"}


def styles(experiments: Sequence[Experiment]) -> Styles:
    """A number for the look of each row's label, the same in all figures of the page: references, methods, variants."""
    rows = [row for experiment in experiments for rows in experiment.places.values() for row in rows]
    methods = sorted({row.method for row in rows}, key=lambda name: (name not in REFERENCES, method_order(name)))
    labels = [*methods, *dict.fromkeys(row.label for row in rows if row.label != row.method)]
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}


def efficiency_panels(experiment: Experiment, looks: Styles, which: Which = "all") -> list[Panel]:
    """Quality against examples, for every group, regime and number of tasks with at least two numbers of examples."""
    return _along(experiment, looks, "examples", "examples a task", which)


def collaborator_panels(experiment: Experiment, looks: Styles, which: Which = "all") -> list[Panel]:
    """Quality against the number of tasks, for every group, regime and number of examples with at least two."""
    return _along(experiment, looks, "tasks", "tasks that collaborate", which)


def sweep_panels(experiment: Experiment, looks: Styles) -> list[Panel]:
    """Quality against the rank and the learning rates, at every place where a method was run with three or more."""
    panels = []
    for place, rows in experiment.places.items():
        for name, title in _SWEPT.items():
            lines: Points = {}
            for row in rows:
                value = row.settings.get(name)
                if isinstance(value, (int, float)):
                    others = _others(row, name, [one for one in rows if one.method == row.method])
                    lines.setdefault(", ".join([row.method, *others]), []).append((float(value), row))
            lines = {label: points for label, points in lines.items() if len(points) >= FEWEST}
            if lines:
                panels += _panels(place.title, title, lines, looks, "log2" if name == "rank" else "log10", "ranking")
    return panels


def federated_panels(experiment: Experiment, looks: Styles, which: Which = "all") -> list[Panel]:
    """Quality against bytes up and down, a point for each method that counts them, wherever one does."""
    panels = []
    for place, rows in experiment.places.items():
        if is_federated(experiment, place):
            lines: Points = {}
            for row in rows:
                moved = [total for one in row.records if (total := bytes_moved(one))]
                if moved:
                    lines[row.label] = [(fmean(moved), row)]
            panels += _panels(place.title, "bytes up and down", lines, looks, "log10", which)
    return panels


def similarity_maps(experiment: Experiment) -> list[HeatMap]:
    """The mean over seeds of the similarity of tasks, for each group and regime, at the most examples and tasks.

    Of the reference method alone where there is one, at its best setting: a map for every row would bury the page. Of
    two tasks there is no map.

    Raises:
        ColoraError: for a record whose similarity is not one number for each pair of its tasks.
    """
    latest: dict[tuple[Place, str], tuple[Place, Row]] = {}
    for place, rows in experiment.places.items():  # in ascending order of tasks, then of examples
        reference = reference_row(rows)
        for row in rows if reference is None else [reference]:
            if place.tasks > 1 and any(one.similarity for one in row.records):
                _check_similarity(experiment.name, row)
                if place.tasks >= FEWEST_TASKS:
                    latest[replace(place, examples=0, tasks=0), row.label] = (place, row)
    maps = []
    for (_, label), (place, row) in latest.items():
        names = next(one.trial.tasks for one in row.records if one.similarity)
        found = [np.asarray(one.similarity) for one in row.records if one.similarity and one.trial.tasks == names]
        values = tuple(tuple(float(value) for value in line) for line in np.mean(found, axis=0))
        maps.append(HeatMap(f"{label} · {place.title}", names, values))
    return maps


def _check_similarity(name: str, row: Row) -> None:
    for one in row.records:
        size = len(one.trial.tasks)
        if one.similarity and [len(line) for line in one.similarity] != [size] * size:
            raise ColoraError(
                f"{name}: {one.trial.key}: expected a similarity of {size} × {size}, found "
                f"lines of {', '.join(str(len(line)) for line in one.similarity)}"
            )


def _along(
    experiment: Experiment, looks: Styles, field: Literal["examples", "tasks"], x_label: str, which: Which
) -> list[Panel]:
    """Panels over places that differ in one field only."""
    found: dict[Place, list[Place]] = {}
    for place in experiment.places:
        found.setdefault(replace(place, examples=0) if field == "examples" else replace(place, tasks=0), []).append(
            place
        )
    panels = []
    for places in found.values():
        if len(places) > 1:
            lines: Points = {}
            for place in sorted(places, key=lambda one: (one.examples, one.tasks)):
                for row in experiment.places[place]:
                    lines.setdefault(row.label, []).append((float(getattr(place, field)), row))
            panels += _panels(places[0].describe(without=field), x_label, lines, looks, "log2", which)
    return panels


def _panels(title: str, x_label: str, lines: Points, looks: Styles, scale: Scale, which: Which) -> list[Panel]:
    """A panel for each of the metrics that are asked for and were measured; bytes are points, all else is lines."""
    rows = [row for points in lines.values() for _, row in points]
    panels = []
    for metric in _metrics(rows, which):
        drawn = [one for label, points in lines.items() if (one := _line(label, points, looks, metric)) is not None]
        if drawn:
            head = f"{metric.title} · {title}"
            joined = not x_label.startswith("bytes")
            panels.append(Panel(head, x_label, metric.title, tuple(_strong(drawn, lines, metric)), scale, joined))
    return panels


def _metrics(rows: Sequence[Row], which: Which) -> list[Metric]:
    known = [one for one in measures() if any(row.sample.seed_means(one.name) for row in rows)]
    if which == "all" or not known:
        return known
    main = main_measure(known, reference_row(rows) or rows[0])
    if which == "main":
        return [main]
    return [one for one in known if one.ranks and (which == "ranking" or one is not main)]


def _strong(drawn: Sequence[Lines], lines: Points, metric: Metric) -> list[Lines]:
    """Of many lines only the references, the best other and the base stand out."""
    if len(drawn) <= MOST_STRONG:
        return list(drawn)
    method = {label: points[0][1].method for label, points in lines.items()}
    others = [one for one in drawn if method[one.label] not in REFERENCES]
    best = (max if metric.higher_is_better else min)(others, key=lambda one: one.mean[-1], default=None)
    return [replace(one, strong=one is best or method[one.label] in (*REFERENCES, "base")) for one in drawn]


def _line(label: str, points: list[tuple[float, Row]], looks: Styles, metric: Metric) -> Lines | None:
    known = [(x, values) for x, row in points if (values := list(row.sample.seed_means(metric.name).values()))]
    if not known:
        return None
    known.sort(key=lambda one: one[0])

    def column(summary: Callable[[list[float]], float]) -> tuple[float, ...]:
        return tuple(summary(values) for _, values in known)

    look = looks.get(label, looks.get(points[0][1].label, 0))
    return Lines(label, look, tuple(x for x, _ in known), column(fmean), column(min), column(max))


def _others(row: Row, swept: str, rows: Sequence[Row]) -> list[str]:
    """The settings that tell a line of a sweep from others: not what the swept one decides, as rank may alpha."""
    found = []
    for name, value in row.settings.items():
        pairs = {(one.settings[swept], one.settings[name]) for one in rows}
        decided = len(pairs) == len({first for first, _ in pairs})
        if name != swept and not decided:
            found.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return found
