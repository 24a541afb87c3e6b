"""The command that lists a bank's tasks, page by page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colora.cli.console import app, columns, errors, out, say
from colora.cli.runs import Bank

if TYPE_CHECKING:  # their imports take long
    from colora.bank.overview import BankOverview, TaskPage
    from colora.bank.tensors import SavedBank


@app.command()
def tasks(
    bank: Bank,
    page: Annotated[int, typer.Option(min=1, help="Number of the page; a page has a hundred tasks.")] = 1,
    matching: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="List only tasks with matching names, such as 'user-12*'.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the page to this JSON file.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole bank and check that it is undamaged.")
    ] = False,
) -> None:
    """List the tasks of a bank, a hundred per page: examples, rows seen in training, parameters and bytes of each task.

    If cores are damaged, `--verify` names their tasks and ends with exit code 2.
    """
    with errors():
        from colora.bank.overview import bank_overview, task_page
        from colora.bank.tensors import SavedBank
        from colora.common.files import write_json

        saved = SavedBank(bank)
        if verify:
            _verify(saved)
        overview = bank_overview(saved)
        shown = task_page(overview.tasks, page, matching)
        _print(overview, shown)
        if json_file is not None:
            write_json(json_file, _as_json(overview, shown))
            say(f"written: {json_file}")


def _print(overview: "BankOverview", shown: "TaskPage") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{len(overview.tasks)} tasks on {overview.info.base}, r = {overview.r}"))
    columns(table, "task", "examples", "seen", "parameters", "bytes")
    for name in shown.names:
        seen = [str(counts.get(name, "?")) for counts in (overview.info.examples, overview.info.seen)]
        own = overview.size_of(name)
        table.add_row(name, *seen, f"{own.parameters:,}", f"{own.bytes:,}")
    table.add_section()
    table.add_row("shared A and B", "", "", f"{overview.shared.parameters:,}", f"{overview.shared.bytes:,}")
    out.print(table)
    if shown.pages > 1:
        out.print(
            f"page {shown.number} of {shown.pages}, of {shown.found} tasks: --page N shows another", highlight=False
        )
    if overview.info.prompt is not None:
        out.print(escape(f"prompt: {overview.info.prompt!r}"), highlight=False, soft_wrap=True)
    for name in shown.names:
        if name in overview.info.prompts:
            text = overview.info.prompts[name]
            told = "chat" if text is None else repr(text)
            out.print(escape(f"prompt of {name}: {told}"), highlight=False, soft_wrap=True)


def _as_json(overview: "BankOverview", shown: "TaskPage") -> dict[str, Any]:
    info = overview.info
    listed = [
        {
            "task": name,
            "examples": info.examples.get(name),
            "seen": info.seen.get(name),
            "parameters": overview.size_of(name).parameters,
            "prompt": info.prompt_of(name),
        }
        for name in shown.names
    ]
    return {
        "base": info.base,
        "r": overview.r,
        "tasks": len(overview.tasks),
        "found": shown.found,
        "page": shown.number,
        "pages": shown.pages,
        "listed": listed,
    }


def _verify(saved: "SavedBank") -> None:
    from itertools import islice

    from colora.errors import BankFileError

    if saved.rows is None:
        saved.check()
        return
    faults = list(islice(saved.rows.faults(), 20))
    if faults:
        raise BankFileError(
            "\n  - ".join(
                [
                    f"{saved.folder}: these cores differ from the saved ones; restore the bank from a copy:",
                    *(told for _, told in faults),
                ]
            )
        )
    saved.check()
