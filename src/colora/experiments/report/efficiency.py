"""The table of multipliers: how many times the examples a method alone needs to equal colora."""

from dataclasses import replace

from colora.evaluation.metrics import Metric
from colora.experiments.report.gather import Experiment, Place, reference_row
from colora.experiments.report.measures import measures
from colora.experiments.report.multiplier import Multiplier, Needed, multiplier
from colora.experiments.report.statistics import Sample
from colora.experiments.report.tables import NOTHING, Table, code_notes, table

__all__ = ["MULTIPLIER_EXPLANATION", "by_examples", "multiplier_tables"]

MULTIPLIER_EXPLANATION = (
    "Multiplier: how many times as many examples a task the local method needs to be as good as the reference at n. "
    "Between the numbers of examples that were tried, the local method's running best is taken as linear in log n. "
    "≥ and ≤ are bounds: the reference was never reached within what was tried, or is passed with the fewest already. "
    "In brackets the 95 % bootstrap interval, over seeds and test examples as in the tables of quality."
)


def by_examples(experiment: Experiment) -> dict[Place, list[Place]]:
    """The places that differ in their number of examples only, where there are at least two; by the first of them."""
    found: dict[Place, list[Place]] = {}
    for place in experiment.places:
        found.setdefault(replace(place, examples=0), []).append(place)
    return {places[0]: places for places in found.values() if len(places) > 1}


def multiplier_tables(experiment: Experiment) -> list[Table]:
    """A table for each group, regime and number of tasks with a curve over examples: a row for each n and local method.

    Only methods with one setting an n have a curve; with several, as in a tuning experiment, there is no table.
    """
    tables = []
    metrics = [metric for metric in measures() if metric.ranks]
    for places in by_examples(experiment).values():
        rows = [row for place in places for row in experiment.places[place]]
        reference = reference_row(rows)
        if reference is None:
            continue
        target = _curve(experiment, places, reference.method)
        rivals = dict.fromkeys(row.method for row in rows if row.method.split("-")[0] == "local")
        lines = []
        for rival in rivals:
            curve = _curve(experiment, places, rival)
            for examples in target if target and curve else ():
                found = [multiplier(curve, target, examples, metric) for metric in metrics]
                lines.append([rival, str(examples), *map(_text, found, metrics)])
        if lines:
            where = places[0].describe(without="examples")
            headers = ["local method", f"{reference.method} at n", *(metric.title for metric in metrics)]
            tables.append(table(f"{where}: multiplier", headers, lines, code_notes(experiment)))
    return tables


def _curve(experiment: Experiment, places: list[Place], method: str) -> dict[int, Sample]:
    """The one sample of a method at each number of examples; nothing if it has several somewhere."""
    found: dict[int, Sample] = {}
    for place in places:
        rows = [row for row in experiment.places[place] if row.method == method]
        if len(rows) > 1:
            return {}
        if rows:
            found[place.examples] = rows[0].sample
    return found


def _text(found: Multiplier | None, metric: Metric) -> str:
    if found is None:
        return NOTHING
    return f"{_times(found.ratio)} [{_times(found.low)}, {_times(found.high)}]"


def _times(needed: Needed) -> str:
    return f"{needed.bound} {needed.examples:.2f}×".strip()
