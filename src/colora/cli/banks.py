"""Commands for banks as files: import plain LoRAs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from colora.cli.console import app, columns, errors, out, readable_bytes, say

OutputBank = Annotated[Path, typer.Option("--output", metavar="BANK", help="Folder of the bank to write.")]


@app.command("import")
def import_(
    folders: Annotated[list[Path], typer.Argument(metavar="LORA...", help="Folders of LoRAs, as PEFT saves them.")],
    output: OutputBank,
    rank: Annotated[
        int | None, typer.Option(min=1, help="r of the bank; by default twice the largest rank of the LoRAs, at most.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if not the one that the LoRAs name.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of a task; once for each LoRA. By default the folders' names.")
    ] = None,
) -> None:
    """Turn plain LoRAs on one base model into one bank: shared factors, and a small core for each.

    Their ranks, scales and layers may differ. The table says how far each task's weights are from those of its LoRA,
    relative to the LoRA's own update; a larger --rank brings them closer, down to rounding.
    """
    with errors():
        from colora.loras.bank import import_loras

        report = import_loras(folders, output, rank, base, name or None, log=say, progress=True)
        table = Table(title=f"{len(report.tasks)} LoRAs as one bank, r = {report.rank}")
        columns(table, "task", "rank", "relative error")
        table.add_column("worst layer", overflow="fold")
        columns(table, "its error")
        for task in report.tasks:
            table.add_row(task.name, str(task.rank), f"{task.error:.2g}", task.worst_layer, f"{task.worst_error:.2g}")
        out.print(table)
        out.print(
            f"before: {readable_bytes(report.bytes_before)}, after: {readable_bytes(report.bytes_after)}, "
            f"{report.ratio:.3g} times less",
            highlight=False,
        )
        say(f"bank: {report.bank}")
