"""The answer as two figures: by how much the reference leads, and where all methods stand."""

from colora.experiments.report.answer.standings import REGIME_WORDS, Standings
from colora.experiments.report.answer.tables import ALL
from colora.experiments.report.plots import Forest, Interval, Kind, Mark, Strip, Strips
from colora.experiments.report.regret import Regret, is_variant, mean_regret

__all__ = ["forest", "strips"]

BASE = "base"  # the method that trains nothing


def forest(found: Standings) -> Forest:
    """The lead of the reference over the best rival with its interval: a row for each group, and one for their mean."""
    rows = [
        Interval(comparison.title, f"vs {lead.rival.method}", lead.difference, REGIME_WORDS[comparison.place.regime])
        for comparison, lead in found.scored
    ]
    if len(rows) > 1:
        rows.append(Interval(ALL, "", mean_regret(found.leads), ""))
    title = f"{found.title} minus the best rival of each group, {found.unit}"
    return Forest(title, tuple(rows), "rival better", f"{found.reference} better", found.digits)


def strips(found: Standings) -> Strips:
    """Where all methods stand: a row for each group, in which the reference, the best rival and the base are named."""
    rows = []
    for comparison, lead in found.scored:
        metric = comparison.measure
        means = [(row.method, row.sample.mean(metric.name)) for row in comparison.entrants(metric)]
        marks = tuple(Mark(name, mean, _kind(name, found.reference, lead)) for name, mean in means if mean is not None)
        heading = REGIME_WORDS[comparison.place.regime]
        rows.append(Strip(comparison.title, metric.title, marks, heading, metric.digits))
    return Strips("What each method reached", tuple(rows), found.reference)


def _kind(method: str, reference: str, lead: Regret) -> Kind:
    if method == reference:
        return "reference"
    if method == lead.rival.method:
        return "rival"
    return "base" if method == BASE else "variant" if is_variant(method, reference) else "other"
