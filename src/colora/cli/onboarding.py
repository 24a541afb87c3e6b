"""Commands for tasks of a bank that is trained: onboard new ones, update those that are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colora.cli.console import app, columns, errors, out, say
from colora.cli.runs import Prompt

if TYPE_CHECKING:  # its import takes seconds
    from colora.transfer.onboarding.many import Onboardings
    from colora.transfer.onboarding.onboard import Onboarding


@app.command()
def onboard(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.")],
    examples: Annotated[
        list[Path], typer.Argument(metavar="NEW.jsonl...", help="The new task's file, or its folder; or several.")
    ],
    name: Annotated[str | None, typer.Option(help="Its name; the file's by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the new bank; by default it replaces BANK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 8,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the core; by default 0.12, from rank 24 on 0.06.")
    ] = None,
    extend: Annotated[int, typer.Option(min=0, help="Further directions of A and B, its own: say 16.")] = 0,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of its core, up to that of A and B; by default as trained.")
    ] = None,
    proximal: Annotated[
        float | None,
        typer.Option(
            "--proximal",
            "--pull",
            help="Share of the way back to the start after a step (L2-SP); 0, or 0.1 from rank 24.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of examples.")] = 0,
    prompt: Prompt = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of what rests while several tasks are trained, float32 or bfloat16; by default bfloat16 on a CPU "
            "that multiplies it. Cores are float32."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A JSON file for what became of each of several tasks.")] = None,
) -> None:
    """Add a task to a trained bank: r × r parameters per layer are trained, every other task stays as it is to the bit.

    `--extend 16` also gives A and B sixteen directions that no other task uses, where r × r parameters are not enough;
    the cores of all others keep their size. `--rank 24` lets a later task use such directions too.

    Its prompt is that of the bank's tasks, unless `--prompt` says another. Every example of a file is trained on; the
    val file of a folder is only measured on.

    Several tasks (new/*.jsonl) are trained in the same passes, each as it would be alone. The bank is written every few
    minutes; after a crash the same command goes on. A task that cannot be trained is left out.
    """
    with errors():
        from colora.errors import ConfigError
        from colora.transfer.onboarding.fit import Settings

        settings = Settings(steps, rows, lr, extend, proximal=proximal, seed=seed, rank=rank)
        common = {"output": output, "base": base, "settings": settings, "log": say, "prompt": prompt}
        if len(examples) > 1 and name is not None:
            raise ConfigError("--name: names one task; of several, each has the name of its file")
        if len(examples) == 1 and (dtype is not None or report is not None):
            raise ConfigError("--dtype, --report: for several tasks at once; one alone is trained in float32")
        if len(examples) == 1:
            return _onboard_one(bank, examples[0], name, common)
        _onboard_several(bank, examples, dtype, report, common)


def _onboard_one(bank: Path, examples: Path, name: str | None, common: dict[str, Any]) -> None:
    from colora.transfer.onboarding.onboard import onboard as add_to_bank

    result = add_to_bank(bank, examples, name=name, **common)
    _print_onboarded(result)
    say(result.advice)
    say(f"bank: {result.bank}")


def _onboard_several(
    bank: Path, examples: list[Path], dtype: str | None, report: Path | None, common: dict[str, Any]
) -> None:
    from colora.common.files import write_json
    from colora.transfer.onboarding.many import onboard_many

    found = onboard_many(bank, examples, dtype=dtype, **common)
    if report is not None:
        write_json(report, found.as_json())
    _print_onboardings(found)


def _print_onboarded(result: "Onboarding") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="nats per token")
    columns(table, "task", "start", "without adapter", "at the start", "trained", "on its val", "coverage", "seconds")
    start = f"{result.start.nll[result.start.name]:.3f}"
    numbers = (f"{result.before:.3f}", start, f"{result.after:.3f}", _optional(result.validation))
    share = f"{result.coverage.relative:.2%}"
    table.add_row(Text(result.task), Text(result.start.name), *numbers, share, f"{result.seconds:.0f}")
    out.print(table)


def _print_onboardings(found: "Onboardings") -> None:
    """A row for each task, also for those that were there or were left out, and how many there are of each kind."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="nats per token")
    numbers = ("examples", "start", "coverage", "before", "after", "on val")
    columns(table, "task", *numbers)
    table.add_column("outcome", min_width=9, overflow="fold")
    for result in found.done:
        nll = (f"{result.before:.3f}", f"{result.after:.3f}", _optional(result.validation))
        named = (Text(result.task), str(result.examples), Text(result.start.name))
        table.add_row(*named, f"{result.coverage.relative:.2%}", *nll, "added")
    told = [(task, "was there") for task in found.skipped]
    for task, outcome in [*told, *((task, f"left out: {why}") for task, why in found.failed.items())]:
        table.add_row(Text(task), *[""] * len(numbers), Text(outcome))
    out.print(table)
    counts = f"{len(found.done)} new tasks, {len(found.skipped)} that it had, {len(found.failed)} left out"
    say(f"bank: {found.bank}, {counts}")
    if found.failed:
        raise typer.Exit(1)


def _optional(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


@app.command()
def update(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.")],
    examples: Annotated[Path, typer.Argument(metavar="TASK.jsonl", help="Further examples of a task, or a folder.")],
    name: Annotated[str | None, typer.Option(help="The task's name; the file's by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the new bank; by default it replaces BANK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 8,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the core; by default 0.03.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep the new core even if it is no better.")] = False,
    base: Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of examples, and of what is set aside.")] = 0,
) -> None:
    """Train a task of a bank further on more examples; every other task stays as it is to the bit.

    A quarter of the examples, or the val file of a folder, is not trained on. Where the new core is no better on these,
    the bank stays as it was (exit code 1), unless `--force` keeps it.
    """
    with errors():
        from colora.transfer.onboarding.fit import Settings
        from colora.transfer.onboarding.update import update as update_task

        settings = Settings(steps, rows, lr, seed=seed)
        found = update_task(
            bank, examples, name=name, output=output, base=base, settings=settings, force=force, log=say
        )
        say(
            f"{found.task}: {found.before:.3f} nats per token, {found.after:.3f} after {found.trained} examples, "
            f"on {found.validation} others, in {found.seconds:.0f} s"
        )
        if not found.kept:
            say("no better: the bank stays as it was. --force keeps the new core; --lr 0.01 takes shorter steps")
            raise typer.Exit(1)
        say(f"bank: {found.bank}")
