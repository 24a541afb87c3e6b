"""The command that says which tasks suffer negative transfer, that is, are worse off in a bank than alone: transfer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, columns, errors, out, say

if TYPE_CHECKING:  # their imports take time that the list of commands need not
    from rich.table import Table

    from colora.transfer.negative_transfer import TaskTransfer


@app.command()
def transfer(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|RUN.yaml", help="Folder of a run with several tasks, or its run file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="With a run file: fields to change.")
    ] = None,
    rouge: Annotated[bool, typer.Option("--rouge", help="Also generate outputs and compare ROUGE-L.")] = False,
) -> None:
    """Find tasks with negative transfer: tasks that would do better with a bank of their own.

    The command trains every task once more, alone, with the same steps and as many rows of the task, in RUN/alone. It
    compares both results on the validation examples of the task. A difference counts if it is at least two standard
    errors over the examples. With a RUN.yaml, it trains the bank first if needed. Results are in RUN/transfer.json.

    After a crash or Ctrl-C, run the same command again; finished parts are kept.

    Test examples are never used, because they must not decide which tasks to train alone.
    """
    with errors():
        from colora.errors import ConfigError
        from colora.training.config_file import load_config
        from colora.training.run_folder import run_config
        from colora.transfer.negative_transfer import FILE, measure_transfer

        if run.suffix in (".yaml", ".yml"):
            config = load_config(run, overrides or [])
        elif overrides:
            raise ConfigError(f"{run} is not a run file (.yaml), so it has no fields to change; remove {overrides[0]}")
        else:
            config = run_config(run)
            config.output = str(run)
        comparisons = measure_transfer(config, rouge, log=say)
        out.print(_table(comparisons, rouge))
        for comparison in comparisons:
            if comparison.verdict != "even":
                out.print(comparison.sentence(), highlight=False, markup=False, soft_wrap=True)
        if not any(comparison.verdict == "loses" for comparison in comparisons):
            out.print("no task clearly loses in the common bank", highlight=False)
        say(f"written: {Path(config.output) / FILE}")


@app.command(
    "company",
    hidden=True,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def renamed_company() -> None:
    """The former name of `colora transfer`."""
    say("error: colora company is colora transfer now")
    raise typer.Exit(2)


def _table(comparisons: Sequence["TaskTransfer"], rouge: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="nats per token on validation examples" + (", and ROUGE-L" if rouge else ""))
    shown = ("together", "alone", "difference", "± error")
    columns(table, "task", "examples", *shown, *(shown if rouge else ()))
    for comparison in comparisons:
        numbers = []
        for measure, digits in ((comparison.nll, 3), (comparison.rouge, 1)):
            if measure is not None:
                error = "-" if measure.error is None else f"{measure.error:.{digits}f}"
                numbers += [f"{measure.together:.{digits}f}", f"{measure.alone:.{digits}f}"]
                numbers += [f"{measure.difference:+.{digits}f}", error]
        table.add_row(Text(comparison.task), str(comparison.examples), *numbers)
    return table
