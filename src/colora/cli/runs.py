"""Commands for a run and its bank: train, check, evaluate, generate, export, demo."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colora.cli.console import app, columns, errors, out, readable_bytes, say

if TYPE_CHECKING:  # their imports take long
    from rich.text import Text

    from colora.tasks.prompting.marked import MarkedRow

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file; `colora schema` lists its fields.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the run file to change, such as training.lr=1e-3."),
]


def bank_is_there(context: typer.Context, bank: Path) -> Path:
    """Say at once that there is no such bank, before the imports that take seconds; one on the hub is fetched later."""
    if not context.resilient_parsing:  # of shell completion
        with errors():
            from colora.bank.hub import is_hub_name
            from colora.bank.layout import find_bank

            if not is_hub_name(bank):
                find_bank(bank)
    return bank


Bank = Annotated[
    Path,
    typer.Argument(
        metavar="BANK",
        help="Folder of a bank or of its run, or hf://ORG/BANK for a bank on the hub.",
        callback=bank_is_there,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="The prompt: a template with {input} and {output} (\\n is a line break), a named template, or chat.",
        callback=lambda text: None if text is None else text.replace("\\n", "\n"),
    ),
]
Base = Annotated[str | None, typer.Option("--base", help="Another path or hub id of the same base model.")]


@app.command()
def train(
    run: RunFile,
    overrides: Overrides = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="BANK", help="Start from this bank. Replaces `start_from` of the run file."),
    ] = None,
) -> None:
    """Train the bank of a run, evaluate it, and print a table of the results.

    KEY=VALUE changes a field of the run file for this run: `training.lr=1e-3`, `tasks.0.train=16`.

    The same command goes on after a crash or Ctrl-C, from the last checkpoint. Once the run has ended, it does nothing.

    `--from BANK` starts from a bank. Tasks of that bank start from their cores, new tasks from the mean core.

    `grouping: auto` in the run file trains one bank for each group of tasks with similar gradients. OUTPUT/groups has a
    run for each group, and OUTPUT/grouping.json lists the groups.

    `torchrun --nproc_per_node 2 -m colora train RUN.yaml` spreads the rows over several processes.
    `training.shard=true` also spreads the base model.
    """
    with errors():
        from colora.bank.hub import is_hub_name
        from colora.training.config_file import load_config

        config = load_config(run, overrides or [])  # before the imports that take seconds
        if start is not None:
            config.start_from = str(start if is_hub_name(start) else start.resolve())
        if config.grouping != "none":
            from colora.transfer.grouping import train_groups

            done = train_groups(config, log=say)
            _print_evaluation(done.evaluation)
            for bank in done.banks.values():
                say(f"bank: {bank}")
            return
        from colora.training.run import train_and_evaluate

        result, evaluation = train_and_evaluate(config, log=say)
        if evaluation is not None:
            _print_evaluation(evaluation)
        say(f"bank: {result.bank}")


@app.command()
def check(run: RunFile, overrides: Overrides = None) -> None:
    """Check a run file and its task files, and print what would be trained. Trains nothing.

    The output shows sizes, the estimated memory, and the first example of each task, token by token, as the model sees
    it. "cut" counts the training examples that were shortened to `max_length`; "drawn by seed" is the seed by which
    splits were drawn from one file. All faults of all files are listed at once.

    KEY=VALUE changes a field of the run file: `training.lr=1e-3`, `tasks.0.train=16`.
    """
    with errors():
        from colora.training.config_file import load_config

        config = load_config(run, overrides or [])  # before the imports that take seconds
        from rich.table import Table

        from colora.training.check import check_run

        plan = check_run(config)
        table = Table(title="training examples")
        columns(table, "task", "train", "val", "test", "tokens", "longest", "cut", "drawn by seed")
        for report in plan.reports:
            entry = plan.manifest[report.name]
            sizes = [str(entry["splits"][split]["examples"]) for split in ("train", "val", "test")]
            seed = entry["split_seed"]
            table.add_row(
                report.name,
                *sizes,
                f"{report.tokens:,}",
                str(report.max_tokens),
                str(report.truncated),
                "-" if seed is None else str(seed),
            )
        out.print(table)
        out.print(
            f"base: {plan.base_parameters:,} parameters, frozen\n"
            f"shared A and B: {plan.shared.parameters:,} parameters ({readable_bytes(plan.shared.bytes)})\n"
            f"each task: {plan.per_task.parameters:,} parameters ({readable_bytes(plan.per_task.bytes)})\n"
            f"tokens per step: about {plan.tokens_per_step:,.0f}\n"
            f"memory: about {readable_bytes(plan.memory_bytes)} (estimated)"
        )
        for note in plan.notes:
            out.print(note, highlight=False)
        out.print("\nthe first training example of each task as the model sees it, its prompt in [], its answer in {}:")
        for name, row in plan.examples.items():
            out.print(_marked(name, row), soft_wrap=True)
        told = f"\nno faults; to train it: colora train {run}; to find out first whether it pays: colora compare {run}"
        out.print(told, highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    bank: Bank,
    split: Annotated[str | None, typer.Option(help="train, val or test. Default: as in the run file.")] = None,
    limit: Annotated[int | None, typer.Option(help="Measure at most this many examples of each task.")] = None,
    base: Base = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write every prediction to this JSONL file.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Measure only this task. Repeat for several tasks.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Measure only this many tasks, drawn by the seed.")] = None,
) -> None:
    """Measure a bank on the tasks of its run: ROUGE-L, exact match and token likelihood.

    Prints a table and appends the results to records.jsonl in the run folder.

    `--task` and `--sample` restrict the measurement to some tasks. From a bank in rows, only their cores are read.
    """
    with errors():
        from colora.common.files import write_text
        from colora.training.measure import evaluate_bank

        chosen = {key: value for key, value in {"split": split, "limit": limit}.items() if value is not None}
        result = evaluate_bank(bank, base=base, overrides=chosen, only=task or None, sample=sample)
        _print_evaluation(result)
        if predictions is not None:
            lines = [json.dumps(vars(one), ensure_ascii=False) for one in result.predictions]
            write_text(predictions, "\n".join(lines) + "\n")


@app.command()
def generate(
    bank: Bank,
    prompt: Annotated[str | None, typer.Argument(help="The input. Leave it out with --file.")] = None,
    task: Annotated[
        str | None, typer.Option(help="The task that answers. Not needed if the bank has one task.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help='JSONL file with {"task": ..., "input": ...} on each line; tasks share batches.')
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction to put before the input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an output.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Sampling temperature; 0: always the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw only from the likeliest tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling, the same for each prompt.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the output. Repeat for several.")] = None,
    base: Base = None,
) -> None:
    """Generate the output for one prompt of one task, or the outputs for a file of prompts of many tasks.

    `--file` runs the prompts in batches that mix tasks, and prints one JSON object per line.

    `colora serve` gives the same outputs for the same temperature, top_p, seed and stop.
    """
    with errors():
        from colora.bank.generate import Request, generate_texts, read_requests
        from colora.models.decoding.sampling import Sampling

        if (prompt is None) == (file is None):
            raise typer.BadParameter("give a prompt, or --file FILE")
        if file is not None and (task is not None or instruction is not None):
            raise typer.BadParameter("with --file, each line names its own task and instruction")
        requests = read_requests(file) if file is not None else [Request(task, prompt or "", instruction)]
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()))
        drawn = None if sampling == Sampling(top_p=top_p, seed=seed) else sampling  # greedy on any model
        for request, text in zip(requests, generate_texts(bank, requests, max_new_tokens, base, drawn), strict=True):
            if file is None:
                print(text)
            else:
                print(json.dumps({"task": request.task, "input": request.input, "output": text}, ensure_ascii=False))


@app.command()
def export(
    bank: Bank,
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Export this task to OUT. Repeat for several tasks, each to OUT/TASK. Default: every task."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole model, with the update of one task merged into it.")
    ] = False,
    base: Base = None,
) -> None:
    """Export tasks as plain LoRAs that run without CoLoRA (PEFT, vLLM, TGI), or one task as a merged model.

    Each folder has a README with the prompt of the task, including an example as text and as tokens.
    """
    with errors():
        from colora.bank.export import export_lora, export_loras, export_merged
        from colora.bank.how_to_prompt import HowToPrompt
        from colora.bank.load import load_bank
        from colora.errors import ConfigError

        names = None if not task else list(dict.fromkeys(task))
        if merged and (names is None or len(names) > 1):
            raise ConfigError("--merged writes the model of one task: name it with --task")
        model, tokenizer, info = load_bank(bank, base, tasks=names)
        use = HowToPrompt(info, tokenizer, bool(model.config.is_encoder_decoder))
        if names is None or len(names) > 1:
            export_loras(model, out_folder, names, use=use)
        elif merged:
            export_merged(model, names[0], out_folder, tokenizer, use)
        else:
            export_lora(model, names[0], out_folder, use)
        say(f"written: {out_folder}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write tasks, runs and records to.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="90, or 20 with --quick", help="Optimiser steps of each method.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only test the installation: two tasks and few steps, in OUTPUT/quick.")
    ] = False,
) -> None:
    """Six small tasks on a real language model: untrained, alone and together. Ten minutes on two CPU cores.

    Each task writes an ISO date out in full in one of six related languages, and has 16 examples. A second call reuses
    the finished parts. `--quick` takes a minute or two on two idle cores; its scores say little about quality.
    """
    with errors():
        from colora.experiments.demo import FULL, QUICK, quick_verdict, run_demo

        place, size = (output / "quick", QUICK) if quick else (output, FULL)
        out.print(run_demo(place, seed, steps, log=say, size=size))
        if quick:
            say(quick_verdict(steps))


def _marked(name: str, row: "MarkedRow") -> "Text":
    """One example, each token in brackets: what rich colours is told apart in a log as well."""
    from rich.text import Text

    text = Text.assemble((f"{name}: {row.prompt_tokens} + {row.answer_tokens} tokens", "bold"), "\n  ")
    for pieces, (left, right), count, style in (
        (row.prompt, "[]", row.prompt_tokens, "cyan"),
        (row.answer, "{}", row.answer_tokens, "bold green"),
    ):
        for piece in pieces:
            if piece is None:
                text.append(f" ... {count - sum(map(bool, pieces))} tokens more ... ", "dim")
            else:
                text.append(f"{left}{json.dumps(piece, ensure_ascii=False)[1:-1]}{right}", style)
    return text


def _print_evaluation(evaluation: Any) -> None:
    from colora.evaluation.table import records_table

    if evaluation.records:
        out.print(records_table(evaluation.records))
    for task, reason in evaluation.skipped.items():
        say(f"not measured: {task}: {reason}")
