"""Commands for studies: report, recover; and the fields of the files that commands read."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from colora.cli.console import app, errors, out, say


@app.command()
def report(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="JSONL file of trial records, or a folder of such files.")
    ],
    page: Annotated[Path, typer.Argument(metavar="OUT.html", help="The HTML page to write.")],
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the texts and tables as Markdown to this file.")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Accept records of several versions of the code. The page says so.")
    ] = False,
    main: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Experiment to show first. Repeat for several. Default: the one that compares most."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Method to compare with its rivals. Default: colora.")
    ] = None,
) -> None:
    """Write a report on a comparison: one HTML page that starts with the result and works offline.

    Each file of records is one experiment.
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
        Path,
        typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment; `colora schema --recovery` lists its fields."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the file to change, such as seeds=3."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write the records to.")] = Path("runs/recover"),
    figure: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="File of the figure. Default: OUTPUT/NAME.svg.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. Default: the number of physical cores.")
    ] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Keep finished trials of other versions of the code.")] = False,
    rerun_old: Annotated[
        bool, typer.Option("--rerun-old", help="Run finished trials of other versions of the code again.")
    ] = False,
) -> None:
    """Run experiments of the theory: recover known matrices in linear regression with shared subspaces.

    A trial is one method on one problem with all its seeds. After a crash or Ctrl-C, run the same command again: it
    keeps finished trials and retries failed ones. The command prints medians over seeds, writes the records to
    OUTPUT/NAME.jsonl, and draws the figure that the file asks for. Figures need `pip install "colora[report]"`; the
    digits need `"colora[regression]"`.

    KEY=VALUE changes a field of the file: `seeds=3`, `problem.samples=[8,16]`, `methods.alternating.tol=0`.

    docs/theory.md describes the results of the experiments in benchmarks/recover.
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
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON Schema, for editors.")] = False,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="List the fields of an experiment for `colora compare`.")
    ] = False,
    recovery: Annotated[
        bool, typer.Option("--recovery", help="List the fields of an experiment for `colora recover`.")
    ] = False,
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
