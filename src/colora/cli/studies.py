"""Commands for studies: report, recover; and the fields of the files that commands read."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from colora.cli.console import app, errors, out, say


@app.command()
def report(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="JSONL of trial records, or a folder of such files.")
    ],
    page: Annotated[Path, typer.Argument(metavar="OUT.html", help="The page to write.")],
    markdown: Annotated[Path | None, typer.Option(help="Also write the texts and tables to this file.")] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Take records of several versions of the code; the page says so.")
    ] = False,
    main: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="The experiment that the first screen is about (repeatable); else the widest."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="METHOD", help="The method compared with its rivals; colora by default.")
    ] = None,
) -> None:
    """Write the report on a comparison: one HTML page that begins with the answer and needs nothing else.

    Each file of records is an experiment.
    """
    with errors():
        from colora.experiments.report.build import write_report

        write_report(records, page, markdown, mixed, main or [], reference)
        for file in (page, markdown):
            if file is not None:
                say(f"written: {file}")


@app.command()
def recover(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to recover; see `colora schema --recovery`.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, such as seeds=3.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs/recover"),
    figure: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="Where the figure goes; OUTPUT/NAME.svg by default.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; the physical cores by default.")] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Keep trials that other sources of CoLoRA made.")] = False,
    rerun_old: Annotated[bool, typer.Option("--rerun-old", help="Run these again.")] = False,
) -> None:
    """Recover what is known: the theory's experiments, in heterogeneous linear regression with shared subspaces.

    A trial is one method on one problem with all its seeds; a finished trial is never run again. The same command goes
    on after a crash or Ctrl-C, and retries trials that failed. OUTPUT/NAME.jsonl holds the records; the median over
    seeds is printed, and the figure drawn that the file asks for (it needs `pip install "colora[report]"`; the digits
    need `"colora[regression]"`).

    KEY=VALUE changes a field of the file: `seeds=3`, `problem.samples=[8,16]`, `methods.alternating.tol=0`.

    docs/theory.md tells what the experiments in benchmarks/recover show.
    """
    with errors():
        import psutil

        from colora.errors import ColoraError
        from colora.theory.experiments.config import load_recovery
        from colora.theory.experiments.run import run_recovery
        from colora.theory.experiments.summary import table_markdown

        plan = load_recovery(experiment, overrides or [])
        at_work = workers or psutil.cpu_count(logical=False) or 1
        summary = run_recovery(plan, output, workers=at_work, mixed=mixed, rerun_old=rerun_old, log=say, progress=True)
        if len(summary.records) > len(summary.failed):
            print(table_markdown(summary.records), end="")
            if plan.figure is not None:
                from colora.theory.experiments.figures import draw_recovery

                place = figure or output / f"{plan.name}.svg"
                try:
                    draw_recovery(summary.records, plan.figure, place)
                    say(f"written: {place}")
                except ColoraError as error:  # fields changed on the command line may leave nothing to draw
                    if figure is not None:
                        raise
                    say(f"no figure: {error}")
        say(str(summary))
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON Schema, for editors.")] = False,
    experiment: Annotated[bool, typer.Option("--experiment", help="Of an experiment of `colora compare`.")] = False,
    recovery: Annotated[bool, typer.Option("--recovery", help="Of an experiment of `colora recover`.")] = False,
) -> None:
    """List every field of a run file, or of an experiment, with its type, default and meaning."""
    from rich.table import Column, Table

    from colora.training.config import RunConfig
    from colora.training.config_file import field_rows

    spec: Any = RunConfig
    rows = [*field_rows()]
    if experiment:
        from colora.experiments.config import Experiment, MethodSettings

        spec, rows = Experiment, [*field_rows(Experiment), *field_rows(MethodSettings, "methods.NAME.")]
    if recovery:
        from colora.theory.experiments.config import RecoveryExperiment
        from colora.theory.experiments.records import MethodSettings as RecoveryMethod
        from colora.theory.experiments.records import ProblemSettings

        spec, rows = RecoveryExperiment, [*field_rows(RecoveryExperiment)]
        rows += [*field_rows(ProblemSettings, "problem."), *field_rows(RecoveryMethod, "methods.NAME.")]
    if as_json:
        print(json.dumps(spec.model_json_schema(), indent=2, ensure_ascii=False))
        return
    table = Table(
        Column("field", no_wrap=True), *(Column(name, overflow="fold") for name in ("type", "default", "meaning"))
    )
    for row in rows:
        table.add_row(*(value.replace("[", "\\[") for value in row))
    out.print(table)
