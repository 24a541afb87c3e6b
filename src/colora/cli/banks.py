"""Commands for banks as files: import plain LoRAs, merge tasks, forget tasks."""

from pathlib import Path
from typing import Annotated

import typer

from colora.cli.console import app, columns, errors, out, readable_bytes, say
from colora.cli.runs import Bank, Prompt

OutputBank = Annotated[Path, typer.Option("--output", metavar="BANK", help="Folder to write the new bank to.")]


@app.command("import")
def import_(
    folders: Annotated[list[Path], typer.Argument(metavar="LORA...", help="Folders of the LoRAs, as PEFT saves them.")],
    output: OutputBank,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the bank. Default: at most twice the largest rank of the LoRAs.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if the LoRAs name another one or none.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of a task. Repeat, once for each LoRA. Default: the folder names.")
    ] = None,
    prompt: Prompt = None,
) -> None:
    """Turn plain LoRAs on one base model into one bank: shared factors, and a small core for each LoRA.

    The LoRAs may differ in rank, scale and layers. The table shows the error of each task: the distance between its
    weights and those of its LoRA, relative to the LoRA's update. A larger `--rank` reduces the error, down to rounding.
    """
    with errors():
        from rich.table import Table

        from colora.bank.importing.bank import import_loras

        report = import_loras(folders, output, rank, base, name or None, prompt or "chat", log=say, progress=True)
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


@app.command()
def merge(
    bank: Bank,
    name: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new task.")],
    parts: Annotated[
        list[str], typer.Argument(metavar="TASK=WEIGHT...", help="Tasks with their weights, such as legal=0.5.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="BANK", help="Folder to write the changed bank to. Default: change BANK.")
    ] = None,
    prompt: Prompt = None,
) -> None:
    """Add a new task to a bank: a weighted sum of the updates of other tasks. The base model is not needed.

    Weights may be negative and need not add up to one: `half legal=0.5 billing=0.5`, `accent british=1 plain=-1`.
    """
    with errors():
        from colora.bank.edit import merge_tasks
        from colora.errors import ConfigError

        weights: dict[str, float] = {}
        for part in parts:
            task, found, text = part.rpartition("=")
            try:
                weight = float(text)
            except ValueError:
                found = ""
            if not found or not task:
                raise ConfigError(f"expected TASK=WEIGHT, such as legal=0.5, found {part!r}")
            if task in weights:
                raise ConfigError(f"{task!r} stands twice; give it one weight")
            weights[task] = weight
        folder = merge_tasks(bank, name, weights, output, prompt)
        say(f"written: {folder}")


@app.command()
def forget(
    bank: Bank,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks to remove.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove the checkpoints of the run, which contain the cores too.")
    ] = False,
) -> None:
    """Remove tasks from a bank. Its files then contain only the other tasks.

    The shared A and B stay as they are, although these tasks helped to train them. Only directions that
    `colora onboard --extend` added for the removed tasks are removed too. Copies of the bank elsewhere are not changed.
    """
    with errors():
        from colora.bank.edit import forget_tasks

        done = forget_tasks(bank, tasks, purge)
        say(f"forgotten: {', '.join(tasks)}; {len(done.tasks)} tasks are left in {done.bank}")
        for folder in done.purged:
            say(f"removed: {folder}")
        for folder in done.cores_left:
            say(f"warning: {folder} still holds the cores; remove it with --purge, if no run is to go on from it")
        for file in done.names_left:
            say(f"warning: {file} still names them")


@app.command()
def shrink(
    bank: Bank,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write the changed bank to. Default: change BANK.")
    ] = None,
) -> None:
    """Reduce cores that were padded with zeros to the size that they need. No task's outputs change.

    Use it for banks that `colora onboard --extend` of an earlier version extended: that version enlarged all cores.
    """
    with errors():
        from colora.bank.rows.shrink import shrink_bank

        ranks = shrink_bank(bank, output)
        told = ", ".join(f"{count} of {rank} × {rank}" for rank, count in ranks.items())
        say(f"cores: {told}; written: {output or bank}")
