"""Tables and whole reports as Markdown, for a README: the texts and tables of the page, without its figures."""

import re
from collections.abc import Sequence

from colora.errors import ColoraError
from colora.experiments.report.gather import Experiment
from colora.experiments.report.quality import main_table
from colora.experiments.report.sections import Block, Command, Facts, Folded, Lead, Section, Warn
from colora.experiments.report.tables import LEVEL, Entry, Table
from colora.experiments.trial import TrialRecord

__all__ = ["main_table_markdown", "quality_markdown", "sections_markdown", "table_markdown"]


def main_table_markdown(
    records: Sequence[TrialRecord],
    group: str,
    regime: str,
    *,
    examples: int | None = None,
    tasks: int | None = None,
    methods: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    notes: bool = False,
) -> str:
    """The main table of one place, with a newline at the end.

    Args:
        records: of one experiment.
        group, regime: the place.
        examples, tasks: which numbers of examples and of tasks; needed where the records have several.
        methods: only these methods, by default all.
        columns: only these columns, in this order, by default all.
        notes: whether the table's notes follow it.

    Raises:
        ColoraError: if no place or several fit, or for an unknown column.
    """
    experiment = Experiment.of("records", [one for one in records if methods is None or one.trial.method in methods])
    fitting = [
        place
        for place in experiment.places
        if (place.group, place.regime) == (group, regime)
        and examples in (None, place.examples)
        and tasks in (None, place.tasks)
    ]
    if len(fitting) != 1:
        wanted = f"group={group!r}, regime={regime!r}, examples={examples}, tasks={tasks}"
        found = "; ".join(place.title for place in fitting or experiment.places) or "none"
        raise ColoraError(f"expected one place with {wanted}, found {len(fitting)}; there are: {found}")
    shown = main_table(experiment, fitting[0])
    if columns is not None:
        unknown = [name for name in columns if name not in shown.headers]
        if unknown:
            raise ColoraError(f"expected columns of {', '.join(shown.headers)}; found {', '.join(unknown)}")
        shown = shown.keep(columns)
    return table_markdown(shown, title=False, notes=notes)


def quality_markdown(experiment: Experiment) -> str:
    """The main tables of all places of an experiment, without their notes: what a terminal shows."""
    return "\n".join(table_markdown(main_table(experiment, place), notes=False) for place in experiment.places)


def table_markdown(table: Table, title: bool = True, notes: bool = True) -> str:
    """A table with its title above and its notes below."""
    over = [span.text for span in table.spans for _ in range(span.columns)]
    if len({text for text in over if text}) < 2:  # what stands over all columns tells none from another
        over = [""] * len(table.headers)
    headers = [_plain(f"{one} ({text})" if text else one) for one, text in zip(table.headers, over, strict=True)]
    lines = [headers, ["---"] * len(table.headers)]
    lines += [[_entry(one) for one in row] for row in table.rows]
    above = f"**{_plain(table.title)}**\n\n" if title else ""
    below = "".join(f"\n{_plain(note)}\n" for note in table.notes) if notes else ""
    return above + "".join(f"| {' | '.join(line)} |\n" for line in lines) + below


def sections_markdown(sections: Sequence[Section]) -> str:
    """The whole report but its figures."""
    return "\n".join(["# Report\n", *(part for section in sections for part in _section(section))])


def _section(section: Section) -> list[str]:
    blocks = [part for block in section.blocks for part in _block(block, section.title)]
    return [f"{'#' * section.level} {_plain(section.title)}\n", *blocks]


def _entry(one: Entry) -> str:
    text = f"**{_plain(one.text)}**" if one.bold else _plain(one.text)
    return f"{text} {LEVEL}" if one.level else text


def _block(block: Block, heading: str) -> list[str]:
    """The parts that a block becomes; a figure becomes none."""
    if isinstance(block, Table):
        return [table_markdown(block, title=block.title != heading)]
    if isinstance(block, Command):
        return [f"```bash\n{block.text}\n```\n"]
    if isinstance(block, Facts):
        return ["".join(f"- {_plain(name)}: {_plain(text)}\n" for name, text in block.pairs)]
    if isinstance(block, Warn):
        return [f"> **{_plain(block.text)}**\n"]
    if isinstance(block, Lead):
        return [f"**{_plain(block.text)}**\n"]
    if isinstance(block, Folded):
        inside = [part for one in block.blocks for part in _block(one, block.title)]
        return [f"### {_plain(block.title)}\n", *inside, *(part for one in block.sections for part in _section(one))]
    return [f"{_plain(block)}\n"] if isinstance(block, str) else []


def _plain(text: str) -> str:
    """The text with nothing in it that Markdown or HTML would read as markup, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|])", r"\\\1", re.sub(r"[\r\n\t]+", " ", text))
    return text.replace("](", "]\\(")
