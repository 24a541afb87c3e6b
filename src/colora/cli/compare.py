"""The command that compares methods: on one's own tasks, or as an experiment on known groups."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, errors, say

if TYPE_CHECKING:
    from colora.experiments.config import Experiment
    from colora.experiments.own.request import OwnOptions
    from colora.experiments.run import ExperimentOptions

EXPERIMENT_OUTPUT = Path("runs/compare")


File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.yaml",
        help="A run file with `tasks:`, as `colora train` takes it; or an experiment, see `colora schema "
        "--experiment`.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, such as seeds=[0].")
]
Minutes = Annotated[
    float | None, typer.Option(help="Your tasks: the time that the comparison may take; 30 by default.")
]
Examples = Annotated[
    str | None,
    typer.Option(
        metavar="N,N", help="Your tasks: also with so many training examples each, such as 8,16: would more help?"
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder of trials; the run's own with '-compare' after it, runs/compare of an experiment."),
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Experiments: only the I-th of N equal parts, for N machines.")
]
Only = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Experiments: only trials whose name fits, such as 'colora-similar-8-*'."),
]
Data = Annotated[Path | None, typer.Option(help="Experiments: folder of task files, for groups that need some.")]
ListTrials = Annotated[bool, typer.Option("--list", help="Experiments: print each trial and its state; run nothing.")]
Collect = Annotated[bool, typer.Option("--collect", help="Experiments: collect the finished trials; run nothing.")]
Mixed = Annotated[bool, typer.Option("--mixed", help="Keep trials that other sources of CoLoRA made.")]
RerunOld = Annotated[bool, typer.Option("--rerun-old", help="Run these again.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; the physical cores by default.")]

HELP = """Does it pay for my tasks? Compare methods on your own tasks, or on the groups of an experiment.

**Your own tasks** (FILE.yaml has `tasks:`). It runs the base model as it is, examples in the prompt, one LoRA for
all tasks, CoLoRA, a LoRA for each task, and one for all with one more for each. Each that is trained has equally
many settings to choose from, and chooses on your validation examples: the val split, or by cross-validation where
that is small. Then each is trained on all that is not tested on, and measured on the test split. It ends in plain
words: what to use, what that gains over the next best and whether the difference is more than noise, which tasks
are better off alone, and what a task costs in bytes.

It first times a few steps and says how long the whole will take. What does not fit into `--minutes` is given up,
in this order: seeds, settings, folds, points of the curve, steps; what was cut is said.

OUTPUT/verdict.json holds the verdict, OUTPUT/report.html the page, and OUTPUT/adapters those of the method to use,
ready to serve.

**An experiment** (FILE.yaml has `methods:` and `groups:`). A trial is one method on one group with one seed;
OUTPUT/NAME.jsonl holds the records of what is finished. The exit code is 1 if a trial failed.

A finished trial is never run again: the same command goes on after a crash, kill or Ctrl-C, and retries trials that
failed. Start it several times to share the work: each process takes trials that no other has; an experiment on
several machines without a common folder takes a `--shard` each.

KEY=VALUE changes a field of the file: `training.steps=100`, `seeds=[0]`, `methods.colora.lr=1e-3`.
"""


@app.command(help=HELP)
def compare(
    file: File,
    overrides: Overrides = None,
    minutes: Minutes = None,
    examples: Examples = None,
    output: Output = None,
    shard: Shard = None,
    only: Only = None,
    data: Data = None,
    list_trials: ListTrials = False,
    collect: Collect = False,
    mixed: Mixed = False,
    rerun_old: RerunOld = False,
    threads: Threads = None,
) -> None:
    """Compare methods on one's own tasks, or on the groups of an experiment; see `HELP`."""
    with errors():
        from colora.errors import ConfigError

        changes, own = overrides or [], _has_tasks(file, overrides or [])
        of_experiments = {
            "--shard": shard,
            "--only": only,
            "--data": data,
            "--list": list_trials,
            "--collect": collect,
        }
        wrong = of_experiments if own else {"--minutes": minutes, "--examples": examples}
        if given := [name for name, one in wrong.items() if one]:
            kind = "a run file with tasks" if own else "an experiment"
            raise ConfigError(f"{file} is {kind}, and takes no {' and no '.join(given)}")
        if own:
            from colora.experiments.own.request import DEFAULT_MINUTES, OwnOptions

            numbers = _numbers(examples)
            time = DEFAULT_MINUTES if minutes is None else minutes
            _compare_own(file, changes, output, OwnOptions(Path(), time, numbers, mixed, rerun_old), threads)
            return
        from colora.experiments.load import load_experiment
        from colora.experiments.run import ExperimentOptions, chosen_trials, parse_shard
        from colora.experiments.store import Store

        plan, part, folder = load_experiment(file, changes), parse_shard(shard or "1/1"), output or EXPERIMENT_OUTPUT
        if list_trials:
            for trial in chosen_trials(plan, only):
                print(f"{Store(folder).state(trial):8} {trial.key}")
            return
        options = ExperimentOptions(shard=part, only=only, data=data, mixed=mixed, rerun_old=rerun_old)
        _compare_known(plan, folder, options, collect, threads)


def _has_tasks(file: Path, overrides: list[str]) -> bool:
    """Whether it is a run file: tasks of one's own, and no methods."""
    from colora.common.yaml import read_yaml

    value = read_yaml(file, overrides, needs="'tasks' (a run file), or 'name', 'groups' and 'methods' (an experiment)")
    return "tasks" in value and "methods" not in value


def _numbers(text: str | None) -> list[int] | None:
    """[8, 16] from "8,16". Raises ConfigError."""
    from colora.errors import ConfigError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--examples: expected numbers with commas between, such as 8,16,32, found {text!r}")
    return [int(part) for part in parts]


def _compare_own(
    file: Path, overrides: list[str], output: Path | None, options: "OwnOptions", threads: int | None
) -> None:
    from dataclasses import replace

    from colora.common.threads import configure_threads
    from colora.experiments.own.run import compare_own
    from colora.training.config_file import load_config

    config = load_config(file, overrides)
    configure_threads(config.training.threads if threads is None else threads)
    folder = Path(f"{Path(config.output)}-compare") if output is None else output  # without a slash at its end
    verdict = compare_own(config, replace(options, output=folder), log=say, progress=True)
    print((folder / "verdict.txt").read_text(encoding="utf-8"), end="")
    if verdict.failed:
        raise typer.Exit(1)


def _compare_known(
    plan: "Experiment", folder: Path, options: "ExperimentOptions", collect: bool, threads: int | None
) -> None:
    from colora.common.threads import configure_threads
    from colora.experiments.report.gather import read_experiments
    from colora.experiments.report.markdown import quality_markdown
    from colora.experiments.run import collect_experiment, run_experiment

    configure_threads(threads)
    if collect:
        summary = collect_experiment(plan, folder, mixed=options.mixed)
    else:
        summary = run_experiment(plan, folder, options, log=say, progress=True)
    for one in read_experiments(summary.records, options.mixed):
        print(quality_markdown(one), end="")
    say(str(summary))
    if summary.failed:
        raise typer.Exit(1)
