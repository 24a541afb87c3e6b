"""The report from end to end: records in, a page and perhaps a Markdown file out."""

from collections.abc import Sequence
from pathlib import Path

from colora.common.files import write_text
from colora.errors import ColoraError
from colora.experiments.report.gather import read_experiments
from colora.experiments.report.markdown import sections_markdown
from colora.experiments.report.page import page
from colora.experiments.report.sections import report_sections

__all__ = ["write_report"]

MOST_NAMED = 3  # experiments in the title


def write_report(
    records: Path,
    out: Path,
    markdown: Path | None = None,
    mixed: bool = False,
    main: Sequence[str] = (),
    reference: str | None = None,
) -> None:
    """Write the report on a JSONL file of trial records, or on a folder of such files, as one HTML page.

    The same records give the same bytes, on any machine.

    Args:
        records: the file or folder.
        out: the page to write.
        markdown: also write the texts and tables to this file.
        mixed: whether an experiment may hold records of several digests of the sources; the page then says so.
        main: names of the experiments that the first screen is about; by default the one that compares the most.
        reference: name of the method that is compared with its rivals there; by default "colora".

    Raises:
        ColoraError: if the records cannot be read, are mixed, or lack an experiment or method that is named; if `out`
            is a folder.
        CheckpointError: if a file cannot be written.
    """
    for file in (out, markdown):
        if file is not None and file.is_dir():
            raise ColoraError(f"{file}: expected the name of a file to write, found a folder")
    experiments = read_experiments(records, mixed)
    names = [one.name for one in experiments]
    methods = {record.trial.method for one in experiments for record in one.records}
    for kind, asked, known in (("experiment", main, names), ("method", [reference] if reference else [], methods)):
        if missing := [name for name in asked if name not in known]:
            raise ColoraError(f"{records}: expected records of {kind} {missing[0]}, found {', '.join(sorted(known))}")
    sections = report_sections(experiments, main, reference)
    about = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} experiments"
    html = page(sections, f"CoLoRA report: {about}")
    if markdown is not None:
        write_text(markdown, sections_markdown(sections))
    write_text(out, html)
