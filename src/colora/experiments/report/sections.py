"""What a report says, in order: sections of texts, tables and figures, the same for HTML and Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from colora.experiments.report.costs import federated_table, is_federated, storage_tables
from colora.experiments.report.efficiency import MULTIPLIER_EXPLANATION, multiplier_tables
from colora.experiments.report.gather import Experiment
from colora.experiments.report.overview import experiments_table, facts, failed_table, methods_table
from colora.experiments.report.panels import (
    Styles,
    collaborator_panels,
    efficiency_panels,
    federated_panels,
    similarity_maps,
    styles,
    sweep_panels,
)
from colora.experiments.report.plots import HeatMap, Panel
from colora.experiments.report.quality import EXPLANATION, main_table, settings_table
from colora.experiments.report.setbacks import setbacks
from colora.experiments.report.tables import Table

__all__ = ["Facts", "Section", "Warn", "report_sections"]


@dataclass(frozen=True)
class Facts:
    """Names and their texts."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Warn:
    """A text that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Section:
    """A heading of a level (2 or 3), and what stands below it; a plain text is a paragraph."""

    title: str
    blocks: tuple[str | Warn | Facts | Table | Panel | HeatMap, ...]
    level: int = 2


REGIMES = (
    "Regimes: in the implicit one the prompt does not say whose task it is, in the explicit one it does. The two are "
    "never put into one table or curve."
)
BAND = "Lines are means over seeds, bands reach from the least to the greatest seed."


def report_sections(experiments: Sequence[Experiment]) -> list[Section]:
    """All sections of the report on these experiments."""
    looks = styles(experiments)
    mixed = [Warn(_mixed_text(one)) for one in experiments if len(one.codes) > 1]
    found = [Section("What was compared", (*mixed, Facts(tuple(facts(experiments))), REGIMES))]
    if len(experiments) > 1 or mixed:
        found.append(Section("Experiments", (experiments_table(experiments),)))
    if any(one.failed for one in experiments):
        found.append(Section("Failed trials", (failed_table(experiments),)))
    for one in experiments:
        found += _experiment(one, looks)
    found.append(_setbacks(experiments))
    found.append(Section("Methods", (methods_table(experiments),)))
    return found


def _experiment(one: Experiment, looks: Styles) -> list[Section]:
    tables = [main_table(one, place) for place, rows in one.places.items() if len(rows) > 1]
    alone = [place.title for place, rows in one.places.items() if len(rows) == 1]
    left_out = [f"A single row and so no table: {'; '.join(alone)}."] if alone else []
    efficiency = efficiency_panels(one, looks)
    multipliers = multiplier_tables(one)
    federated = [federated_table(one, place) for place in one.places if is_federated(one, place)]
    maps = similarity_maps(one)
    parts = [
        Section("Quality", (EXPLANATION, *tables, *left_out), 3) if tables or left_out else None,
        Section("Quality against examples", (BAND, *efficiency), 3) if efficiency else None,
        Section("How many times the examples", (MULTIPLIER_EXPLANATION, *multipliers), 3) if multipliers else None,
        _figures("Quality against the number of tasks", BAND, collaborator_panels(one, looks)),
        _figures("Quality against rank and learning rates", BAND, sweep_panels(one, looks)),
        Section(
            "Quality against bytes",
            ("Bars reach from the least to the greatest seed.", *federated_panels(one, looks), *federated),
            3,
        )
        if federated
        else None,
        _figures("Similarity of tasks", "Cosine of the tasks' full updates, the mean over seeds.", maps),
        Section("Parameters and storage", tuple(storage_tables(one)), 3) if one.places else None,
        Section("Settings", (settings_table(one),), 3) if one.places else None,
    ]
    warning = (Warn(_mixed_text(one)),) if len(one.codes) > 1 else ()
    nothing = () if one.places else ("Every trial of this experiment failed.",)
    return [Section(f"Experiment {one.name}", (*warning, *nothing)), *(part for part in parts if part is not None)]


def _figures(title: str, text: str, figures: Sequence[Panel | HeatMap]) -> Section | None:
    return Section(title, (text, *figures), 3) if figures else None


def _setbacks(experiments: Sequence[Experiment]) -> Section:
    found, compared = setbacks(experiments)
    judged = (
        "Listed is every place at which the reference (colora, or fed-colora) has a lower mean ROUGE-L than the better "
        "of the local and pooled methods; where no answers were generated, a higher token NLL. The difference is the "
        "reference minus the better method; an interval that holds zero says that chance may explain it."
    )
    count = len(found.rows)
    if not compared:
        summary = "At no place were both sides measured."
    elif not count:
        summary = f"At none of the {compared} places compared."
    else:
        summary = f"At {count} of the {compared} places compared."
    return Section("Where collaboration does not help", (judged, summary, *([found] if count else [])))


def _mixed_text(one: Experiment) -> str:
    codes = ", ".join(f"{code} ({number} trial{'' if number == 1 else 's'})" for code, number in one.codes.items())
    return f"Mixed code: the records of {one.name} come from several digests of the sources: {codes}. Do not cite them."
