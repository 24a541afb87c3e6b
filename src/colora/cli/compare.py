"""The command that compares methods: on one's own tasks, or as an experiment on known groups."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, errors, say

if TYPE_CHECKING:
    from colora.experiments.config import Experiment
    from colora.experiments.own.request import OwnOptions
    from colora.experiments.run import ExperimentOptions
    from colora.training.config import RunConfig

EXPERIMENT_OUTPUT = Path("runs/compare")


File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.yaml",
        help="A run file with `tasks:`, as for `colora train`, or an experiment (see `colora schema --experiment`).",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the file to change, such as seeds=[0].")
]
Minutes = Annotated[float | None, typer.Option(help="Your tasks: minutes that the comparison may take. Default: 15.")]
Examples = Annotated[
    str | None,
    typer.Option(
        metavar="N,N",
        help="Your tasks: also compare with fewer training examples, such as 8,16. Shows if more would help.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the trials. Default: the run's output with '-compare'; runs/compare for experiments."
    ),
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Experiments: run only part I of N equal parts, one for each machine.")
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Experiments: run only trials with matching names, such as 'colora-similar-8-*'."
    ),
]
Data = Annotated[Path | None, typer.Option(help="Experiments: folder of task files, for groups that need them.")]
ListTrials = Annotated[
    bool, typer.Option("--list", help="Experiments: list the trials with their state. Runs nothing.")
]
Collect = Annotated[bool, typer.Option("--collect", help="Experiments: collect the finished trials. Runs nothing.")]
Mixed = Annotated[bool, typer.Option("--mixed", help="Keep finished trials of other versions of the CoLoRA code.")]
RerunOld = Annotated[bool, typer.Option("--rerun-old", help="Run finished trials of other versions of the code again.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: the number of physical cores.")]

HELP = """Find out which method suits your tasks: CoLoRA, LoRAs, or examples in the prompt.

**Your own tasks** (FILE.yaml has `tasks:`). The command compares the untrained base model, examples in the prompt, one
LoRA for all tasks, CoLoRA, one LoRA for each task, and one LoRA for all tasks with one more for each. Every trained
method has equally many settings to choose from. It chooses them on your validation examples: on the val split, or by
cross-validation if that split is small. Then each method is trained on everything but the test split, and measured on
the test split. The verdict is in plain words: which method to use, how much it gains over the next best and whether the
difference is more than noise, which tasks do better with their own LoRA, and how many bytes a task costs.

The command first times a few steps and prints how long the comparison will take. If that is longer than `--minutes`, it
reduces the comparison, in this order: seeds, settings, folds, points of the curve, steps. It prints what it reduced.

It writes the verdict to OUTPUT/verdict.json, a page to OUTPUT/report.html, and the adapters of the recommended method,
ready to serve, to OUTPUT/adapters.

**An experiment** (FILE.yaml has `methods:` and `groups:`). A trial is one method on one group with one seed. Records of
finished trials are in OUTPUT/NAME.jsonl. The exit code is 1 if a trial failed.

After a crash or Ctrl-C, run the same command again. It keeps finished trials and retries failed ones. To share the
work, start the command several times: each process takes trials that no other process has. For several machines
without a common folder, give each machine one `--shard` of an experiment.

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
            from colora.training.config_file import load_config

            config = load_config(file, changes)  # before the imports that take seconds
            from colora.experiments.own.request import DEFAULT_MINUTES, OwnOptions

            numbers = _numbers(examples)
            time = DEFAULT_MINUTES if minutes is None else minutes
            options = OwnOptions(Path(), time, numbers, mixed, rerun_old, command=(str(file), *changes))
            _compare_own(config, output, options, threads)
            return
        from colora.experiments.load import load_experiment
        from colora.experiments.run import ExperimentOptions, chosen_trials, parse_shard
        from colora.experiments.store import Store

        plan, part, folder = load_experiment(file, changes), parse_shard(shard or "1/1"), output or EXPERIMENT_OUTPUT
        if list_trials:
            for trial in chosen_trials(plan, only):
                print(f"{Store(folder).state(trial):8} {trial.key}")
            return
        of_experiment = ExperimentOptions(shard=part, only=only, data=data, mixed=mixed, rerun_old=rerun_old)
        _compare_known(plan, folder, of_experiment, collect, threads)


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


def _compare_own(config: "RunConfig", output: Path | None, options: "OwnOptions", threads: int | None) -> None:
    from dataclasses import replace

    from colora.common.threads import configure_threads
    from colora.experiments.own.run import compare_own

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
