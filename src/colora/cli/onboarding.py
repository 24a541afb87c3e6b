"""Commands for tasks of a bank that is trained: onboard new ones, update those that are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colora.cli.console import app, columns, errors, out, say
from colora.cli.runs import Prompt, bank_is_there

if TYPE_CHECKING:  # their imports take seconds
    from colora.tasks.schema import TaskSource
    from colora.transfer.onboarding.many import Onboardings
    from colora.transfer.onboarding.onboard import Onboarding

OwnBank = Annotated[
    Path,
    typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.", callback=bank_is_there),
]
Field = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="KEY=COLUMN",
        help="Column of the file that holds the input, the output or the instruction, such as input='tweet text'. "
        "Repeat for several.",
    ),
]

ONBOARD_HELP = """Add a new task to a trained bank. Only its core is trained; all other tasks stay the same to the bit.

The core has r × r parameters per layer. If that is not enough, `--extend 16` also adds sixteen directions to A and
B that no other task uses. The cores of the other tasks keep their size. `--rank 24` lets a later task use such
directions too.

The new task uses the prompt of the bank, unless `--prompt` names another prompt.

A file: all examples are used for training. A folder with a val file: the token NLL on the val file is printed too.

Several files (new/*.jsonl): the tasks are trained in the same passes, but independently of each other. The bank is
saved every few minutes. After a crash, run the same command again: it trains the tasks that the bank does not have
yet. A task that cannot be trained is left out, and the exit code is 1.
"""


@app.command(help=ONBOARD_HELP)
def onboard(
    bank: OwnBank,
    examples: Annotated[
        list[Path],
        typer.Argument(metavar="NEW.jsonl...", help="File or folder of the new task. Several files add several tasks."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the new task. Default: the file name.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write the changed bank to. Default: change BANK.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples in a step.")] = 8,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the core. Default: 0.12; from rank 24 on 0.06.")
    ] = None,
    extend: Annotated[int, typer.Option(min=0, help="Add this many directions of A and B for this task.")] = 0,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of the core, at most that of A and B. Default: the rank in training."),
    ] = None,
    proximal: Annotated[
        float | None,
        typer.Option(
            "--proximal",
            "--pull",
            help="Proximal regularisation (L2-SP): after each step, move the core this share of the way back to its "
            "start. Default: 0; from rank 24 on 0.1.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Another path or hub id of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of examples.")] = 0,
    prompt: Prompt = None,
    field: Field = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Several tasks: number format of the frozen weights, float32 or bfloat16. Default: bfloat16 on a CPU "
            "that multiplies it. Cores are always float32."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the outcome of each task to this JSON file.")] = None,
) -> None:
    """Add one new task to a trained bank, or several; see `ONBOARD_HELP`."""
    with errors():
        from colora.errors import ConfigError
        from colora.transfer.onboarding.fit import Settings

        settings = Settings(steps, rows, lr, extend, proximal=proximal, seed=seed, rank=rank)
        common: dict[str, Any] = {"output": output, "base": base, "settings": settings, "log": say}
        common |= {"prompt": prompt}
        sources = _sources(examples, field)
        if len(examples) > 1 and name is not None:
            raise ConfigError("--name works with a single task; several tasks get the names of their files")
        if len(examples) == 1 and dtype is not None:
            raise ConfigError("--dtype works with several tasks; a single task is trained in float32")
        if len(examples) == 1:
            return _onboard_one(bank, sources[0], name, report, common)
        _onboard_several(bank, sources, dtype, report, common)


def _columns_named(options: list[str] | None) -> dict[str, str]:
    """What `--field` says, as in `fields` of a run file. Raises ConfigError."""
    from colora.common.yaml import near
    from colora.errors import ConfigError

    found: dict[str, str] = {}
    for option in options or []:
        key, sign, column = option.partition("=")
        key, known = key.strip(), ("input", "output", "instruction")
        if not sign or not column.strip():
            raise ConfigError(f"--field {option!r}: expected KEY=COLUMN, such as --field input='tweet text'")
        if key not in known:
            raise ConfigError(
                f"--field {option!r}: expected input, output or instruction, found {key!r}{near(key, known)}"
            )
        if key in found:
            raise ConfigError(f"--field {option!r}: {key} is {found[key]!r} already; remove one of them")
        found[key] = column.strip()
    return found


def _sources(files: list[Path], options: list[str] | None) -> "list[TaskSource]":
    from colora.tasks.schema import TaskSource

    fields = _columns_named(options)
    return [TaskSource(path=str(file), fields=fields) for file in files]


def _onboard_one(
    bank: Path, examples: "TaskSource", name: str | None, report: Path | None, common: dict[str, Any]
) -> None:
    from colora.common.files import write_json
    from colora.transfer.onboarding.onboard import onboard as add_to_bank

    result = add_to_bank(bank, examples, name=name, **common)
    if report is not None:
        write_json(report, [result.as_json()])
    _print_onboarded(result)
    say(result.advice)
    say(f"bank: {result.bank}")


def _onboard_several(
    bank: Path, examples: "list[TaskSource]", dtype: str | None, report: Path | None, common: dict[str, Any]
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

    table = Table(show_header=False)  # one task is read more easily from top to bottom, on any screen
    columns(table, "", "")
    for name, value in (
        ("task", result.task),
        ("examples", str(result.examples)),
        ("start", result.start.name),
        ("nats per token without adapter", f"{result.before:.3f}"),
        ("nats per token at the start", f"{result.at_start:.3f}"),
        ("nats per token trained", f"{result.after:.3f}"),
        ("nats per token on its validation examples", _optional(result.validation)),
        ("coverage", f"{result.coverage.relative:.2%}"),
        ("seconds", f"{result.seconds:.0f}"),
    ):
        table.add_row(name, Text(value))
    out.print(table)


def _print_onboardings(found: "Onboardings") -> None:
    """A row for each task, also for those that were there or were left out, and how many there are of each kind."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="nats per token")
    numbers = ("examples", "start", "coverage", "before", "at the start", "after", "on val")
    columns(table, "task", *numbers)
    table.add_column("outcome", min_width=9, overflow="fold")
    for result in found.done:
        nll = (f"{result.before:.3f}", f"{result.at_start:.3f}", f"{result.after:.3f}", _optional(result.validation))
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
    bank: OwnBank,
    examples: Annotated[
        Path, typer.Argument(metavar="TASK.jsonl", help="File or folder with new examples of the task.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the task. Default: the file name.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write the changed bank to. Default: change BANK.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples in a step.")] = 8,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the core. Default: 0.03.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep the new core even if it is not better.")] = False,
    base: Annotated[str | None, typer.Option("--base", help="Another path or hub id of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of examples and of the validation part.")] = 0,
    field: Field = None,
) -> None:
    """Train a task of a bank further on new examples. Every other task stays the same to the bit.

    The command sets a quarter of the examples, or the val file of a folder, aside for validation. If the new core is
    not better on them, the bank does not change and the exit code is 1. `--force` keeps the new core anyway.
    """
    with errors():
        from colora.transfer.onboarding.fit import Settings
        from colora.transfer.onboarding.update import update as update_task

        settings = Settings(steps, rows, lr, seed=seed)
        common: dict[str, Any] = {"output": output, "base": base, "settings": settings, "log": say}
        found = update_task(bank, _sources([examples], field)[0], name=name, force=force, **common)
        say(
            f"{found.task}: {found.before:.3f} nats per token, {found.after:.3f} after {found.trained} examples, "
            f"on {found.validation} others, in {found.seconds:.0f} s"
        )
        if not found.kept:
            say(
                "no better on the validation examples: the bank is unchanged. Try --lr 0.01 for shorter steps, or "
                "--force to keep the new core"
            )
            raise typer.Exit(1)
        say(f"bank: {found.bank}")
