"""What a report says, in order: the answer, curves, methods, where collaboration does not help, and an appendix."""

from collections.abc import Sequence

from colora.experiments.report.answer.figures import forest, strips
from colora.experiments.report.answer.standings import Standings, standings
from colora.experiments.report.answer.tables import method_table, nats_table, regret_table
from colora.experiments.report.answer.words import caveat, sentence, sentences, winners
from colora.experiments.report.appendix import appendix
from colora.experiments.report.blocks import Block, Command, Facts, Folded, Lead, Section, Warn
from colora.experiments.report.costs import federated_table, is_federated
from colora.experiments.report.efficiency import MULTIPLIER_EXPLANATION, multiplier_tables
from colora.experiments.report.gather import Experiment, Place
from colora.experiments.report.overview import methods_table
from colora.experiments.report.panels import Styles, collaborator_panels, efficiency_panels, federated_panels, styles
from colora.experiments.report.regret import chooses_settings
from colora.experiments.report.setbacks import setbacks
from colora.experiments.report.tables import bytes_text, plural

__all__ = [
    "Block",
    "Command",
    "Facts",
    "Folded",
    "Lead",
    "Section",
    "Warn",
    "curves",
    "mixed_warnings",
    "report_sections",
]

BAND = "Lines are means over seeds, bands and bars reach from the least to the greatest seed."


def report_sections(
    experiments: Sequence[Experiment], main: Sequence[str] = (), reference: str | None = None
) -> list[Section]:
    """All sections of the report on these experiments; `main` and `reference` choose the answer's, see `headline`."""
    looks = styles(experiments)
    found = standings(experiments, main, reference)
    measured = [one for one in experiments if not chooses_settings(one)] or list(experiments)
    sections = [_answer(experiments, found)]
    nats = None if found is None else nats_table(found)
    sections += [] if nats is None else [Section(nats.title, (nats,))]
    sections += curves(measured, looks)
    sections.append(Section("Methods", (methods_table(experiments, _costs(found)),)))
    sections.append(_setbacks(measured))
    sections.append(appendix(experiments, looks))
    return sections


def _answer(experiments: Sequence[Experiment], found: Standings | None) -> Section:
    mixed = mixed_warnings(experiments)
    failed = sum(len(one.failed) for one in experiments)
    are = "is" if failed == 1 else "are"
    lost = [Warn(f"{plural(failed, 'trial')} failed and {are} in no table; see the appendix.")] if failed else []
    if found is None:
        nothing = Lead("At no place were both colora and a rival measured, so there is no comparison to tell of.")
        return Section("What was found", (nothing, *mixed, *lost))
    blocks: list[Block] = [Lead(sentence(found)), *([winners(found)] if len(found.pairs) > 1 else []), *mixed, *lost]
    blocks += [forest(found), strips(found), method_table(found)]
    blocks += [" ".join(sentences(found))] if sentences(found) else []
    blocks += [caveat(found), Folded("The figures in numbers", (regret_table(found),))]
    return Section("What was found", tuple(blocks))


def curves(experiments: Sequence[Experiment], looks: Styles) -> list[Section]:
    """Quality against examples, tasks and bytes by the main measure, and what the other tasks' examples are worth."""
    by_examples = [panel for one in experiments for panel in efficiency_panels(one, looks, "main")]
    by_tasks = [panel for one in experiments for panel in collaborator_panels(one, looks, "main")]
    multipliers = [shown for one in experiments for shown in multiplier_tables(one)]
    bytes_counted = {id(one): max((_counting(one, place) for place in one.places), default=0) for one in experiments}
    most = max(experiments, key=lambda one: bytes_counted[id(one)], default=None)
    panels = [*by_examples, *by_tasks]
    tables = list(multipliers)
    if most is not None and bytes_counted[id(most)]:
        panels += federated_panels(most, looks, "main")
        tables += [federated_table(most, place) for place in most.places if is_federated(most, place)]
    about = [MULTIPLIER_EXPLANATION] if multipliers else []
    return [Section("Curves", (BAND, *panels, *tables, *about))] if panels or tables else []


def _counting(experiment: Experiment, place: Place) -> int:
    """How many methods at a place count bytes."""
    return sum(any(one.bytes_up is not None for one in row.records) for row in experiment.places[place])


def _costs(found: Standings | None) -> dict[str, str]:
    """What a further task costs with each method of the answer: bytes at fp32, the least and the most."""
    kept: dict[str, set[int]] = {}
    for comparison in () if found is None else found.comparisons:
        for row in comparison.rows:
            kept.setdefault(row.method, set()).update(4 * record.task_numbers for record in row.records)
    return {
        name: " to ".join(dict.fromkeys(bytes_text(number) for number in (min(of), max(of))))
        for name, of in kept.items()
    }


def _setbacks(experiments: Sequence[Experiment]) -> Section:
    found, compared = setbacks(experiments)
    judged = (
        "Listed is every place at which the reference (colora, or fed-colora) has a worse mean, by the place's main "
        "measure, than the best method without collaboration: one that trains nothing, each task alone, or one adapter "
        "for all. The difference is the reference minus that method, on the tasks measured; an interval that holds "
        "zero says that chance may explain it."
    )
    count = len(found.rows)
    if not compared:
        summary = "At no place were both sides measured."
    elif not count:
        summary = "Not at the one place compared." if compared == 1 else f"At none of the {compared} places compared."
    else:
        summary = f"At {count} of the {plural(compared, 'place')} compared."
    return Section("Where collaboration does not help", (judged, summary, *([found] if count else [])))


def mixed_warnings(experiments: Sequence[Experiment]) -> list[Warn]:
    """A warning for each experiment that mixes records of several codes."""
    return [Warn(_mixed_text(one)) for one in experiments if len(one.codes) > 1]


def _mixed_text(one: Experiment) -> str:
    codes = ", ".join(f"{code} ({plural(number, 'trial')})" for code, number in one.codes.items())
    return f"Mixed code: the records of {one.name} come from several digests of the sources: {codes}. Do not cite them."
