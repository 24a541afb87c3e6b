"""The command line: each command parses, calls one function, and prints what it gives."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="CoLoRA: many tasks, one model. Tasks share low-rank factors and keep a small core each, so that similar "
    "tasks help each other.\n\n`colora demo` shows it; `colora schema` lists what a run file may say.",
)
out = Console()
err = Console(stderr=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file; `colora schema` lists its fields.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, such as training.lr=1e-3.")
]
Bank = Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.")]
Base = Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")]


@app.command()
def train(run: RunFile, overrides: Overrides = None) -> None:
    """Train the bank of a run, evaluate it, and print the table.

    KEY=VALUE changes a field of the file for this run: `training.lr=1e-3`, `tasks.0.train=16`.

    The same command again goes on after a crash or Ctrl-C, and does nothing once the run has ended.
    With `torchrun --nproc_per_node 2 -m colora train RUN.yaml` the rows are spread over processes.
    """
    with _errors():
        from colora.config import load_config
        from colora.run import train_and_evaluate

        config = load_config(run, overrides or [])
        result, evaluation = train_and_evaluate(config, log=_say)
        if evaluation is not None:
            _print_evaluation(evaluation)
        _say(f"bank: {result.bank}")


@app.command()
def check(run: RunFile, overrides: Overrides = None) -> None:
    """Validate a run's files and config, and print what would be trained. Trains nothing.

    KEY=VALUE changes a field of the file: `training.lr=1e-3`, `tasks.0.train=16`.
    """
    with _errors():
        from colora.check import check_run
        from colora.config import load_config

        plan = check_run(load_config(run, overrides or []))
        table = Table(title="training examples")
        _columns(table, "task", "train", "val", "test", "tokens", "longest", "cut", "drawn by seed")
        for report in plan.reports:
            entry = plan.manifest[report.name]
            sizes = [str(entry["splits"][split]["examples"]) for split in ("train", "val", "test")]
            seed = entry["split_seed"]
            table.add_row(
                report.name, *sizes, f"{report.tokens:,}", str(report.max_tokens), str(report.truncated),
                "-" if seed is None else str(seed),
            )  # fmt: skip
        out.print(table)
        out.print(
            f"base: {plan.base_parameters:,} parameters, frozen\n"
            f"shared A and B: {plan.shared.parameters:,} parameters ({_bytes(plan.shared.bytes)})\n"
            f"each task: {plan.per_task.parameters:,} parameters ({_bytes(plan.per_task.bytes)})\n"
            f"tokens per step: about {plan.tokens_per_step:,.0f}\n"
            f"memory: about {_bytes(plan.memory_bytes)} (estimated)"
        )


@app.command()
def evaluate(
    bank: Bank,
    split: Annotated[str | None, typer.Option(help="train, val or test; as in the run file by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many examples of each task.")] = None,
    base: Base = None,
    predictions: Annotated[Path | None, typer.Option(help="Write every prediction to this JSONL file.")] = None,
) -> None:
    """Measure a bank on the tasks of its run: ROUGE-L, exact match, token likelihood. Appends to records.jsonl."""
    with _errors():
        from colora.files import write_text
        from colora.run import evaluate_bank

        chosen = {key: value for key, value in {"split": split, "limit": limit}.items() if value is not None}
        result = evaluate_bank(bank, base=base, overrides=chosen)
        _print_evaluation(result)
        if predictions is not None:
            lines = [json.dumps(vars(one), ensure_ascii=False) for one in result.predictions]
            write_text(predictions, "\n".join(lines) + "\n")


@app.command()
def generate(
    bank: Bank,
    prompt: Annotated[str | None, typer.Argument(help="The input; with --file, none.")] = None,
    task: Annotated[str | None, typer.Option(help="Whose task it is.")] = None,
    file: Annotated[
        Path | None, typer.Option(help='JSONL of {"task": ..., "input": ...}: many tasks in one batch.')
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="An instruction before the input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest output.")] = 64,
    base: Base = None,
) -> None:
    """Write outputs for one prompt of one task, or for a file of prompts of many tasks, in mixed batches."""
    with _errors():
        from colora.generate import Request, generate_texts, read_requests

        if (prompt is None) == (file is None):
            raise typer.BadParameter("give a prompt, or --file FILE")
        if file is not None and (task is not None or instruction is not None):
            raise typer.BadParameter("with --file, each line names its own task and instruction")
        requests = read_requests(file) if file is not None else [Request(task, prompt or "", instruction)]
        for request, text in zip(requests, generate_texts(bank, requests, max_new_tokens, base), strict=True):
            if file is None:
                print(text)
            else:
                print(json.dumps({"task": request.task, "input": request.input, "output": text}, ensure_ascii=False))


@app.command()
def export(
    bank: Bank,
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    task: Annotated[str | None, typer.Option(help="The task; without it, every task to OUT/TASK.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model with the update merged in.")] = False,
    base: Base = None,
) -> None:
    """Write plain LoRA folders that run anywhere (PEFT, vLLM, TGI), or one merged model."""
    with _errors():
        from colora.bank import load_bank
        from colora.errors import ConfigError
        from colora.export import export_lora, export_loras, export_merged

        model, tokenizer, _ = load_bank(bank, base)
        if merged and task is None:
            raise ConfigError("--merged writes the model of one task: name it with --task")
        if merged and task is not None:
            export_merged(model, task, out_folder, tokenizer)
        elif task is not None:
            export_lora(model, task, out_folder)
        else:
            export_loras(model, out_folder)
        _say(f"written: {out_folder}")


@app.command()
def tasks(bank: Bank) -> None:
    """List a bank's tasks: examples, rows seen in training, parameters and bytes of each."""
    with _errors():
        from colora.bank import bank_overview

        overview = bank_overview(bank)
        table = Table(title=escape(f"{len(overview.tasks)} tasks on {overview.info.base}, r = {overview.r}"))
        _columns(table, "task", "examples", "seen", "parameters", "bytes")
        own = overview.per_task
        for name in overview.tasks:
            seen = [str(counts.get(name, "?")) for counts in (overview.info.examples, overview.info.seen)]
            table.add_row(name, *seen, f"{own.parameters:,}", f"{own.bytes:,}")
        table.add_section()
        table.add_row("shared A and B", "", "", f"{overview.shared.parameters:,}", f"{overview.shared.bytes:,}")
        out.print(table)


@app.command()
def compare(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to compare; see `colora schema --experiment`.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, such as seeds=[0].")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of cells; experiments share it.")] = Path("runs/compare"),
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N equal parts, for N machines.")] = "1/1",
    data: Annotated[Path | None, typer.Option(help="Folder of task files, for groups that need some.")] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="Print each cell and its state; run nothing.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Collect the finished cells; run nothing.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Keep cells that other sources of CoLoRA made.")] = False,
    rerun_old: Annotated[bool, typer.Option("--rerun-old", help="Run these again.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; the physical cores by default.")] = None,
) -> None:
    """Compare methods on groups of tasks: every cell of an experiment is trained, measured and kept.

    A cell is one method on one group with one seed; a finished cell is never run again. The same command goes on after
    a crash or Ctrl-C, and retries cells that failed. Start it several times to share the work: each process takes
    cells that no other has; on several machines without a common folder, give each a `--shard`.

    OUTPUT/NAME.jsonl holds the records of what is finished. The exit code is 1 if a cell failed.

    KEY=VALUE changes a field of the file: `seeds=[0]`, `methods.colora.lr=1e-3`.
    """
    with _errors():
        from colora.base import configure_threads
        from colora.compare.experiment import load_experiment
        from colora.compare.run import collect_experiment, parse_shard, run_experiment
        from colora.compare.store import Store

        plan, part = load_experiment(experiment, overrides or []), parse_shard(shard)
        if list_cells:
            for cell in plan.cells():
                print(f"{Store(output).state(cell):8} {cell.key}")
            return
        configure_threads(threads)
        if collect:
            summary = collect_experiment(plan, output, mixed=mixed)
        else:
            summary = run_experiment(
                plan, output, shard=part, data=data, mixed=mixed, rerun_old=rerun_old, log=_say, progress=True
            )
        _say(str(summary))
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def report(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="JSONL of cell records, or a folder of such files.")
    ],
    page: Annotated[Path, typer.Argument(metavar="OUT.html", help="The page to write.")],
    markdown: Annotated[Path | None, typer.Option(help="Also write the texts and tables to this file.")] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Take records of several versions of the code; the page says so.")
    ] = False,
) -> None:
    """Write the report on a comparison: one HTML page with tables and figures that needs nothing else.

    Each file of records is an experiment. Needs `pip install "colora[report]"`.
    """
    with _errors():
        from colora.report.build import write_report

        write_report(records, page, markdown, mixed)
        for file in (page, markdown):
            if file is not None:
                _say(f"written: {file}")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON Schema, for editors.")] = False,
    experiment: Annotated[bool, typer.Option("--experiment", help="Of an experiment of `colora compare`.")] = False,
) -> None:
    """List every field of a run file, or of an experiment, with its type, default and meaning."""
    from colora.config import RunConfig, field_rows

    spec: Any = RunConfig
    rows = [*field_rows()]
    if experiment:
        from colora.compare.experiment import Experiment, MethodSettings

        spec, rows = Experiment, [*field_rows(Experiment), *field_rows(MethodSettings, "methods.NAME.")]
    if as_json:
        print(json.dumps(spec.model_json_schema(), indent=2, ensure_ascii=False))
        return
    table = Table(
        Column("field", no_wrap=True), *(Column(name, overflow="fold") for name in ("type", "default", "meaning"))
    )
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the tasks, runs and records.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each method.")] = 90,
) -> None:
    """Six small tasks, before, alone and together, on a real language model; about ten minutes on two cores.

    Each task writes an ISO date out in full in one of six related languages and has 16 examples. A second call reuses
    whatever is there.
    """
    with _errors():
        from colora.demo import run_demo

        out.print(run_demo(output, seed=seed, steps=steps, log=_say))


def _print_evaluation(evaluation: Any) -> None:
    from colora.evaluation.table import records_table

    if evaluation.records:
        out.print(records_table(evaluation.records))
    for task, reason in evaluation.skipped.items():
        _say(f"not measured: {task}: {reason}")


def _columns(table: Table, first: str, *numbers: str) -> None:
    table.add_column(first, overflow="fold")  # a name cut short is no name
    for name in numbers:
        table.add_column(name, justify="right")


def _say(line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


@contextmanager
def _errors() -> Iterator[None]:
    """Errors and warnings as a message, not with places in the code: exit code 2, and 130 after Ctrl-C."""
    import warnings

    from transformers.utils import logging

    from colora.errors import ColoraError, InterruptedRunError

    logging.disable_progress_bar()  # "Loading weights" for half a second
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries to each other
            warnings.showwarning = lambda message, *where: _say(f"warning: {message}")
            yield
    except InterruptedRunError as error:
        _say(str(error))
        sys.exit(130)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except (ColoraError, OSError) as error:  # a full disk, a folder that may not be written
        _say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    app()
