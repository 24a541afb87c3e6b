"""The command that says which tasks are worse off in a bank than alone: company."""

from pathlib import Path
from typing import Annotated

import typer

from colora.cli.console import app, columns, errors, out, say


@app.command()
def company(
    run: Annotated[Path, typer.Argument(metavar="RUN|RUN.yaml", help="Folder of a run of several tasks, or its file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, with a run file.")
    ] = None,
    rouge: Annotated[bool, typer.Option("--rouge", help="Also generate outputs and compare ROUGE-L.")] = False,
) -> None:
    """Say by name which tasks lose in company: would they do better with a bank of their own?

    Trains every task once more, alone, with equal steps and as many rows of its own, in RUN/alone, and compares both on
    the task's validation examples. A difference counts from two standard errors over examples on. With a RUN.yaml the
    bank itself is trained first, if it is not there. The same command again goes on where it stopped, and does nothing
    twice. Writes RUN/company.json.

    Test examples are never used: they must not choose who trains alone.
    """
    with errors():
        from rich.table import Table

        from colora.errors import ConfigError
        from colora.training.config_file import load_config
        from colora.training.run_folder import run_config
        from colora.transfer.negative_transfer import company as measure

        if run.suffix in (".yaml", ".yml"):
            config = load_config(run, overrides or [])
        elif overrides:
            raise ConfigError(f"{run} is no run file (.yaml), so that it has no fields to change: {overrides[0]}")
        else:
            config = run_config(run)
            config.output = str(run)
        found = measure(config, rouge, log=say)
        table = Table(title="nats per token on validation examples" + (", and ROUGE-L" if rouge else ""))
        shown = ("together", "alone", "difference", "± error")
        columns(table, "task", "examples", *shown, *(shown if rouge else ()))
        for one in found:
            cells = []
            for pair, digits in ((one.nll, 3), (one.rouge, 1)):
                if pair is not None:
                    error = "-" if pair.error is None else f"{pair.error:.{digits}f}"
                    cells += [f"{pair.together:.{digits}f}", f"{pair.alone:.{digits}f}"]
                    cells += [f"{pair.difference:+.{digits}f}", error]
            table.add_row(one.task, str(one.examples), *cells)
        out.print(table)
        for one in found:
            if one.verdict != "even":
                out.print(one.sentence(), highlight=False, markup=False, soft_wrap=True)
        if not any(one.verdict == "loses" for one in found):
            out.print("no task clearly loses in company", highlight=False)
        say(f"written: {Path(config.output) / 'company.json'}")
