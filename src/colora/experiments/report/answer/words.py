"""The answer in words, computed from the records."""

from statistics import fmean

from colora.experiments.report.answer.standings import REGIME_WORDS, Standings
from colora.experiments.report.methods import method_order
from colora.experiments.report.regret import Comparison, mean_regret
from colora.experiments.report.statistics import Difference
from colora.experiments.report.tables import listed, plural, signed_text
from colora.experiments.trial import TrialRecord

__all__ = ["caveat", "sentence", "sentences", "winners"]

MOST_NAMED = 4  # methods or groups in a sentence
POOLED = "pooled"


def sentence(found: Standings) -> str:
    """The answer in one sentence: where, who, and by how much against the best rivals."""
    recipe = " with one recipe" if len(found.pairs) > 1 and _has_one_recipe(found) else ""
    lead = mean_regret(found.leads)
    if len(found.scored) == 1:
        ((comparison, one),) = found.scored
        where = f"On {comparison.title} ({REGIME_WORDS[comparison.place.regime]})"
        best = f"the best of {plural(one.rivals, 'rival')}, {one.rival.method}," if one.rivals > 1 else one.rival.method
        against = f"{best} in {comparison.measure.title}"
    else:
        where, against = f"On {_groups(found)}", "the best rival of each"
    interval = _interval(lead, found.digits)
    if lead.is_significant:
        way = "ahead of" if lead.mean > 0 else "behind"
        value = f"{abs(lead.mean):.{found.digits}f} {found.unit}"
        return f"{where}, {found.title}{recipe} is {value} {way} {against} ({interval})."
    value = f"{signed_text(lead.mean, found.digits)} {found.unit}"
    return f"{where}, {found.title}{recipe} is level with {against}: {value} ({interval})."


def winners(found: Standings) -> str:
    """Which methods have the highest mean, and on how many groups."""
    best: dict[str, list[Comparison]] = {}
    for comparison, levels in zip(found.comparisons, found.levels, strict=True):
        for one in levels:
            if one.is_best:
                best.setdefault(one.row.method, []).append(comparison)
    ranked = sorted(best.items(), key=lambda one: (-len(one[1]), method_order(one[0])))
    shown = ranked if len(ranked) <= MOST_NAMED else ranked[: MOST_NAMED - 1]
    told = [f"{name} on {_on(found, where)}" for name, where in shown]
    if others := ranked[len(shown) :]:
        told.append(f"one of {len(others)} other methods on {sum(len(where) for _, where in others)}")
    return f"The highest mean is that of {listed(told)}."


def sentences(found: Standings) -> list[str]:
    """What else there is to say: group by group, and by likelihood."""
    told = [_by_group(found)] if len(found.scored) > 1 else []
    for metric, leads in found.in_nats.items():
        lead = mean_regret(leads)
        way = "better" if lead.mean > 0 else "worse"
        chance = "" if lead.is_significant else ", which chance may explain"
        where = "" if len(leads) == len(found.pairs) else f" ({plural(len(leads), 'comparison')})"
        rival = "its best rival" if len(leads) == 1 else "the best rival of each"
        value = f"{abs(lead.mean):.{metric.digits}f} {way} in {metric.title} than {rival}"
        told.append(f"By likelihood{where} it is {value} ({_interval(lead, metric.digits)}{chance}).")
    return told


def caveat(found: Standings) -> str:
    """Whom the choice of the best rival favours, and what the intervals hold for."""
    parts = []
    if max(one.rivals for one in found.leads) > 1:
        favour = fmean(one.favour for one in found.leads)
        parts.append(
            "The best rival is picked by its result, group by group, and the highest of several noisy means is too "
            f"high: that favours the rivals, by about {favour:.{found.digits}f} {found.unit} (what the maximum adds in "
            "the bootstrap)."
        )
    parts.append(f"Variants of {found.reference} are not its rivals.")
    seeds = sorted({one.difference.seeds for one in found.leads})
    span = plural(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    parts.append(
        f"Intervals are 95 %, of a paired bootstrap over {span}, the tasks of a group, and their examples; they hold "
        f"for {'this group' if len(found.pairs) == 1 else 'these groups'}."
    )
    if seeds[0] == 1:
        parts.append("Where there is one seed only, they hold for that seed.")
    tried = {row.method for one in found.comparisons for row in one.rows if _is_tried(one, row.method)}
    if tried:
        names = listed(sorted(tried, key=method_order))
        parts.append(f"Several settings of {names} were run here; the best one of a group is shown, which favours it.")
    if ranks := [record.trial.rank for one in found.comparisons for record in _pooled(one)]:
        parts.append(f"One LoRA for all tasks ({POOLED}) was run at rank {max(ranks)}, and at none higher.")
    if any(record.trial.split == "val" for one in found.comparisons for record in one.reference.records):
        parts.append("Measured on validation examples, on which settings may have been chosen.")
    return " ".join(parts)


def _pooled(comparison: Comparison) -> list[TrialRecord]:
    """Those of the one method that could have any rank, since nothing of it grows with the tasks."""
    return [record for row in comparison.rows if row.method == POOLED for record in row.records]


def _groups(found: Standings) -> str:
    groups = plural(len({comparison.title for comparison, _ in found.scored}), "group")
    if len(found.regimes) == 1:
        return f"{groups} of tasks"
    return f"{groups} of tasks, with the task named in the prompt or not ({plural(len(found.scored), 'comparison')})"


def _on(found: Standings, where: list[Comparison]) -> str:
    """So many comparisons, or the one."""
    if len(found.pairs) == 1 or len(where) == 1:
        return _name(found, where[0])
    return str(len(where))


def _by_group(found: Standings) -> str:
    kinds: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for comparison, lead in found.scored:
        one = lead.difference
        kinds["level" if not one.is_significant else "ahead" if one.mean > 0 else "behind"].append(
            _name(found, comparison)
        )
    told = [
        f"{kind} on {len(names)}" + ("" if kind == "level" or len(names) > MOST_NAMED else f": {', '.join(names)}")
        for kind, names in kinds.items()
        if names
    ]
    comparison, lead = min(found.scored, key=lambda pair: pair[1].difference.mean)
    lowest = f"{signed_text(lead.difference.mean, found.digits)} against {lead.rival.method}"
    return (
        f"Group by group, as far as the intervals tell, it is {'; '.join(told)}. At worst it is {lowest} on "
        f"{_name(found, comparison)}."
    )


def _name(found: Standings, comparison: Comparison) -> str:
    return comparison.title if len(found.regimes) == 1 else f"{comparison.title} ({comparison.place.regime})"


def _is_tried(comparison: Comparison, method: str) -> bool:
    """Whether a method was run with several settings there."""
    return sum(row.method == method for row in comparison.rows) > 1


def _has_one_recipe(found: Standings) -> bool:
    """Whether the reference was run with the same settings everywhere."""
    recipes = {
        (one.rank, one.alpha, one.lr, one.core_lr, one.steps, one.rows, tuple(sorted(one.options.items())))
        for comparison in found.comparisons
        for one in (record.trial for record in comparison.reference.records)
    }
    return len(recipes) == 1 and not any(_is_tried(one, found.reference) for one in found.comparisons)


def _interval(found: Difference, digits: int) -> str:
    return f"95 % interval {signed_text(found.low, digits)} to {signed_text(found.high, digits)}"
