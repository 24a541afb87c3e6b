"""The report from end to end: records in, a page and perhaps a Markdown file out."""

from pathlib import Path

from colora.common.files import write_text
from colora.errors import ColoraError
from colora.experiments.report.gather import read_experiments
from colora.experiments.report.markdown import sections_markdown
from colora.experiments.report.page import page
from colora.experiments.report.sections import report_sections

__all__ = ["write_report"]

MOST_NAMED = 3  # experiments in the title


def write_report(records: Path, out: Path, markdown: Path | None = None, mixed: bool = False) -> None:
    """Write the report on a JSONL file of trial records, or on a folder of such files, as one HTML page.

    The same records give the same bytes, on any machine.

    Args:
        records: the file or folder.
        out: the page to write.
        markdown: also write the texts and tables to this file.
        mixed: whether an experiment may hold records of several digests of the sources; the page then says so.

    Raises:
        ColoraError: if the records cannot be read, are mixed, or matplotlib is missing; if `out` is a folder.
        CheckpointError: if a file cannot be written.
    """
    for file in (out, markdown):
        if file is not None and file.is_dir():
            raise ColoraError(f"{file}: expected the name of a file to write, found a folder")
    experiments = read_experiments(records, mixed)
    sections = report_sections(experiments)
    names = [one.name for one in experiments]
    about = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} experiments"
    html = page(sections, f"CoLoRA report: {about}")
    if markdown is not None:
        write_text(markdown, sections_markdown(sections))
    write_text(out, html)
