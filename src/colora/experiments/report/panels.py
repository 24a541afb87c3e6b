"""What the figures show, as data: from an experiment's rows to panels of lines and heat maps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

import numpy as np

from colora.errors import ColoraError
from colora.evaluation.metrics import METRICS, Metric
from colora.experiments.report.costs import bytes_moved, is_federated
from colora.experiments.report.gather import Experiment, Place, Row, reference_row
from colora.experiments.report.methods import method_order
from colora.experiments.report.plots import HeatMap, Lines, Panel, Scale

__all__ = ["collaborator_panels", "efficiency_panels", "federated_panels", "similarity_maps", "styles", "sweep_panels"]

Styles = dict[str, int]
Points = dict[str, list[tuple[float, Row]]]  # of each line
_SWEPT = {"rank": "rank r", "lr": "learning rate of A and B", "core_lr": "learning rate of the cores"}


def styles(experiments: Sequence[Experiment]) -> Styles:
    """A number for the look of each row's label, the same in all figures of the page: methods first, then variants."""
    rows = [row for experiment in experiments for rows in experiment.places.values() for row in rows]
    methods = sorted({row.method for row in rows}, key=method_order)
    labels = [*methods, *dict.fromkeys(row.label for row in rows if row.label != row.method)]
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}


def efficiency_panels(experiment: Experiment, looks: Styles) -> list[Panel]:
    """Quality against examples, for every group, regime and number of tasks with at least two numbers of examples."""
    return _along(experiment, looks, "examples", "examples a task", "log2")


def collaborator_panels(experiment: Experiment, looks: Styles) -> list[Panel]:
    """Quality against the number of tasks, for every group, regime and number of examples with at least two."""
    return _along(experiment, looks, "tasks", "tasks that collaborate", "log2")


def sweep_panels(experiment: Experiment, looks: Styles) -> list[Panel]:
    """Quality against the rank and the learning rates, at every place where a method was run with several."""
    panels = []
    for place, rows in experiment.places.items():
        for name, title in _SWEPT.items():
            lines: Points = {}
            for row in rows:
                value = row.settings.get(name)
                if isinstance(value, (int, float)):
                    others = _others(row, name, [one for one in rows if one.method == row.method])
                    lines.setdefault(", ".join([row.method, *others]), []).append((float(value), row))
            if any(len(points) > 1 for points in lines.values()):
                panels += _panels(place.title, title, lines, looks, "log2" if name == "rank" else "log10")
    return panels


def federated_panels(experiment: Experiment, looks: Styles) -> list[Panel]:
    """Quality against bytes up and down, a point for each method that counts them, wherever one does."""
    panels = []
    for place, rows in experiment.places.items():
        if is_federated(experiment, place):
            lines: Points = {}
            for row in rows:
                moved = [total for one in row.records if (total := bytes_moved(one))]
                if moved:
                    lines[row.label] = [(fmean(moved), row)]
            panels += _panels(place.title, "bytes up and down", lines, looks, "log10", joined=False)
    return panels


def similarity_maps(experiment: Experiment) -> list[HeatMap]:
    """The mean over seeds of the similarity of tasks, for each group, regime and number of tasks, at the most examples.

    Of the reference method alone where there is one, at its best setting: a map for every row would bury the page.

    Raises:
        ColoraError: for a record whose similarity is not one number for each pair of its tasks.
    """
    latest: dict[tuple[Place, str], tuple[int, Row]] = {}
    for place, rows in experiment.places.items():  # in ascending order of examples
        reference = reference_row(rows)
        for row in rows if reference is None else [reference]:
            if place.tasks > 1 and any(one.similarity for one in row.records):
                latest[replace(place, examples=0), row.label] = (place.examples, row)
    maps = []
    for (place, label), (examples, row) in latest.items():
        names = next(one.trial.tasks for one in row.records if one.similarity)
        found = []
        for one in row.records:
            if one.similarity and one.trial.tasks == names:
                size = (len(names), len(names))
                if [len(line) for line in one.similarity] != [size[1]] * size[0]:
                    raise ColoraError(
                        f"{experiment.name}: {one.trial.key}: expected a similarity of {size[0]} × {size[1]}, found "
                        f"lines of {', '.join(str(len(line)) for line in one.similarity)}"
                    )
                found.append(np.asarray(one.similarity))
        mean = np.mean(found, axis=0)
        title = f"{label} · {replace(place, examples=examples).title}"
        maps.append(HeatMap(title, names, tuple(tuple(float(value) for value in line) for line in mean)))
    return maps


def _along(
    experiment: Experiment, looks: Styles, field: Literal["examples", "tasks"], x_label: str, scale: Scale
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
            panels += _panels(places[0].describe(without=field), x_label, lines, looks, scale)
    return panels


def _panels(title: str, x_label: str, lines: Points, looks: Styles, scale: Scale, joined: bool = True) -> list[Panel]:
    """A panel for each metric that was measured."""
    panels = []
    for metric in METRICS.values():
        drawn = [one for label, points in lines.items() if (one := _line(label, points, looks, metric)) is not None]
        if drawn:
            head = f"{metric.title} · {title}"
            panels.append(Panel(head, x_label, metric.title, tuple(drawn), scale, joined))
    return panels


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
