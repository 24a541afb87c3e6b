"""The answer as tables: method by group, and the reference against the best rival of each group."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from colora.evaluation.metrics import Metric
from colora.experiments.report.answer.standings import REGIME_WORDS, Standings
from colora.experiments.report.methods import method_order
from colora.experiments.report.regret import Comparison, Level, Regret, mean_regret, regret
from colora.experiments.report.tables import LEVEL, NOTHING, Entry, Span, Table, interval_text, table

__all__ = ["ALL", "method_table", "nats_table", "regret_table"]

ALL = "mean of all"


def method_table(found: Standings) -> Table:
    """Method by group: means, the best in bold, those not to be told from it marked; the reference first.

    The others follow by how far they are behind the best in the mean over groups, but for those run on fewer than half.
    """
    behind = _behind(found)
    rows: list[list[str | Entry]] = []
    columns = [(one, one.measure) for one in found.comparisons]
    for name in _ordered(behind, found):
        known = behind[name]
        of = f" (of {len(known)})" if len(known) < len(found.scored) else ""
        last = f"{fmean(known):.{found.digits}f}{of}" if known else NOTHING
        rows.append([Entry(name, strong=name == found.reference), *_cells(name, found.levels, columns), last])
    note = (
        f"Means over tasks, then seeds. Bold: the best of a group; {LEVEL} not to be told from it (the 95 % interval "
        "of the paired difference holds zero). Last column: what a method lacks to the best, in the mean over groups"
        + (
            "; in brackets over how many, where it was not run on all."
            if any("(of" in str(row[-1]) for row in rows)
            else "."
        )
    )
    shown = table("Methods by group", ["method", *_headers(columns), "behind the best\nmean"], rows, [note])
    return shown.with_spans((*_spans(columns), Span("", 1)))


def nats_table(found: Standings) -> Table | None:
    """Method by group by likelihood; None if there is no such measure beside the main ones."""
    columns = [(one, one.nats) for one in found.comparisons if one.nats is not None]
    if not columns:
        return None
    levels = [comparison.levels(metric) for comparison, metric in columns]
    known = {one.row.method for of in levels for one in of}
    behind: dict[str, list[float]] = {name: [] for name in sorted(known)} | _behind(found)
    names = [name for name in _ordered(behind, found) if name in known]
    rows: list[list[str | Entry]] = [
        [Entry(name, strong=name == found.reference), *_cells(name, levels, columns)] for name in names
    ]
    note = f"Lower is better. Bold: the best of a group; {LEVEL} not to be told from it."
    shown = table("By likelihood, in nats", ["method", *_headers(columns)], rows, [note])
    return shown.with_spans(_spans(columns))


def regret_table(found: Standings) -> Table:
    """A row for each group: the reference, its best rival, and the lead in the main measure and in nats."""
    several = len(found.regimes) > 1
    lines = []
    for comparison, lead in found.pairs:
        metric, nats = comparison.measure, comparison.nats
        own, best = (f"{row.sample.mean(metric.name):.{metric.digits}f}" for row in (comparison.reference, lead.rival))
        by_nats = None if nats is None else regret(comparison, nats)
        line = [comparison.title, *([comparison.place.regime] if several else []), metric.title, own]
        line += [f"{best} ({lead.rival.method})", _lead(lead, metric)]
        line += [NOTHING if by_nats is None or nats is None else f"{_lead(by_nats, nats)} ({by_nats.rival.method})"]
        lines.append(line)
    if len(found.scored) > 1:
        blank = [""] * (5 if several else 4)
        nats_mean = [interval_text(mean_regret(leads), metric.digits) for metric, leads in found.in_nats.items()]
        mean = interval_text(mean_regret(found.leads), found.digits)
        lines.append([ALL, *blank[1:], mean, "; ".join(nats_mean) or NOTHING])
    headers = ["group", *(["prompts"] if several else []), "measure", found.reference, "best rival"]
    note = "Above zero the reference is ahead, in points as in nats. After a lead in nats: the best rival by it."
    return table("Against the best rival of each group", [*headers, "lead", "lead in nats"], lines, [note])


def _behind(found: Standings) -> dict[str, list[float]]:
    """What each method lacks to the best one, in each comparison of `scored` where it was run."""
    scored = {id(comparison) for comparison, _ in found.scored}
    lacks: dict[str, list[float]] = {}
    for comparison, levels in zip(found.comparisons, found.levels, strict=True):
        best = next((one.mean for one in levels if one.is_best), 0.0)
        for one in levels:
            lacks.setdefault(one.row.method, []).extend([abs(best - one.mean)] if id(comparison) in scored else [])
    return lacks


def _ordered(behind: Mapping[str, list[float]], found: Standings) -> list[str]:
    def order(name: str) -> tuple[bool, bool, float, tuple[int, str]]:
        known = behind[name]
        return (
            name != found.reference,
            2 * len(known) < len(found.scored),
            fmean(known) if known else float("inf"),
            method_order(name),
        )

    return sorted(behind, key=order)


def _cells(
    name: str, levels: Sequence[Sequence[Level]], columns: Sequence[tuple[Comparison, Metric]]
) -> list[str | Entry]:
    cells: list[str | Entry] = []
    for of, (_, metric) in zip(levels, columns, strict=True):
        one = next((level for level in of if level.row.method == name), None)
        if one is None:
            cells.append(NOTHING)
        else:
            cells.append(Entry(f"{one.mean:.{metric.digits}f}", bold=one.is_best, level=one.is_level))
    return cells


def _headers(columns: Sequence[tuple[Comparison, Metric]]) -> list[str]:
    return [f"{comparison.title}\n{metric.title}" for comparison, metric in columns]


def _spans(columns: Sequence[tuple[Comparison, Metric]]) -> tuple[Span, ...]:
    regimes = [comparison.place.regime for comparison, _ in columns]
    return (Span("", 1), *(Span(REGIME_WORDS[name], regimes.count(name)) for name in dict.fromkeys(regimes)))


def _lead(lead: Regret, metric: Metric) -> str:
    return interval_text(lead.difference, metric.digits)
