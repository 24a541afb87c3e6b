"""The appendix: every experiment in full, how the numbers are made, which trials failed, and what made the records."""

from collections.abc import Sequence

from colora.experiments.report.blocks import Block, Facts, Folded, Section, Warn
from colora.experiments.report.choices import choices_table
from colora.experiments.report.costs import storage_tables
from colora.experiments.report.gather import Experiment
from colora.experiments.report.measures import measures
from colora.experiments.report.overview import experiments_table, facts, failed_table
from colora.experiments.report.panels import (
    Styles,
    collaborator_panels,
    efficiency_panels,
    federated_panels,
    similarity_maps,
    sweep_panels,
)
from colora.experiments.report.plots import Figure
from colora.experiments.report.quality import EXPLANATION, main_table, settings_table
from colora.experiments.report.regret import chooses_settings
from colora.experiments.report.tables import Table, code_notes, plural

__all__ = ["appendix"]

REGIMES = (
    "Regimes: in the implicit one the prompt does not say whose task it is, in the explicit one it does. Methods are "
    "compared within a regime only."
)
MOST_GROUPS = 4  # by name in a heading
_ELSEWHERE = ("trained parameters", "parameters per task", "bytes up", "bytes down")  # columns of other tables


def appendix(experiments: Sequence[Experiment], looks: Styles, quality: bool = True) -> Section:
    """All that stands behind the answer, folded: experiments that measured, then those that chose settings.

    Without `quality` no method is compared with another: a page that has done so says how, and has one statistic.
    """
    blocks: list[Block] = [Folded("How the numbers are made", (EXPLANATION, REGIMES))] if quality else []
    shown: set[str] = set()  # titles of maps: experiments share trials
    blocks += [_measured(one, looks, shown, quality) for one in experiments if not chooses_settings(one)]
    blocks += [_chosen(one) for one in experiments if chooses_settings(one)]
    if any(one.failed for one in experiments):
        blocks.append(Folded("Failed trials", (failed_table(experiments),)))
    blocks.append(
        Folded("Records, code and machines", (Facts(tuple(facts(experiments))), experiments_table(experiments)))
    )
    return Section("Appendix", tuple(blocks))


def _measured(one: Experiment, looks: Styles, shown: set[str], quality: bool) -> Folded:
    tables = [_short(main_table(one, place)) for place, rows in one.places.items() if len(rows) > 1]
    alone = [place.title for place, rows in one.places.items() if len(rows) == 1]
    left_out = [f"A single row and so no table: {'; '.join(alone)}."] if alone else []
    further = [
        *efficiency_panels(one, looks, "rest"),
        *collaborator_panels(one, looks, "rest"),
        *federated_panels(one, looks, "rest"),
    ]
    maps = [heat for heat in similarity_maps(one) if heat.title not in shown]
    shown.update(heat.title for heat in maps)
    sections = [
        _section("Quality", [*tables, *left_out] if quality else []),
        _section("Curves by other measures", further),
        _section("Quality against rank and learning rates", sweep_panels(one, looks)),
        _section("Similarity of tasks: cosine of their updates, the mean over seeds", maps),
        _section("Parameters and storage", storage_tables(one)),
        _section("Settings", [settings_table(one)] if one.places else []),
    ]
    warning = [Warn(note) for note in code_notes(one)]
    nothing = [] if one.places else ["Every trial of this experiment failed."]
    return Folded(
        f"Experiment {one.name}: {_about(one)}",
        (*warning, *nothing),
        tuple(part for part in sections if part is not None),
    )


def _chosen(one: Experiment) -> Folded:
    text = "Measured on validation examples, to choose the settings of other experiments."
    return Folded(f"Choice of settings {one.name}: {_about(one)}", (text, choices_table(one)))


def _about(one: Experiment) -> str:
    groups = list(dict.fromkeys(record.trial.group for record in (*one.records, *one.failed)))
    shown = groups if len(groups) <= MOST_GROUPS else [f"{len(groups)} groups"]
    return f"{', '.join(shown)}; {plural(len(one.records), 'trial')}"


def _short(table: Table) -> Table:
    """The table without what the tables of storage have; of scores that rank the differences, of losses if alone."""
    told = {f"{one.title} − ": one.ranks and one.higher_is_better for one in measures()}
    differences = {
        header: ranks for header in table.headers for start, ranks in told.items() if header.startswith(start)
    }
    dropped = {header for header, ranks in differences.items() if not ranks and any(differences.values())}
    return table.keep([header for header in table.headers if header not in {*_ELSEWHERE, *dropped}])


def _section(title: str, blocks: Sequence[Table | Figure | str]) -> Section | None:
    return Section(title, tuple(blocks), 4) if blocks else None
