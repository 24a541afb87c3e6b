"""Commands for the similarity of tasks and for new tasks: similarity, onboard."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, columns, errors, out, say
from colora.cli.runs import Prompt

if TYPE_CHECKING:  # its import takes seconds
    from colora.transfer.similarity import Similarity

SHOWN = 12  # tasks whose cosines fit a terminal


@app.command()
def similarity(
    path: Annotated[
        Path, typer.Argument(metavar="BANK|RUN.yaml", help="A trained bank or its run's folder; or a run file.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="With a run file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers, layer by layer, here.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw dendrogram and heat map: a .svg, .png or .pdf.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Examples of each task, with a run file.")] = 16,
    groups: Annotated[int | None, typer.Option(min=1, help="Into how many groups; by the widest gap else.")] = None,
    centred: Annotated[
        bool, typer.Option("--centred", help="Of what each has beyond the mean of all; sets trained tasks apart.")
    ] = False,
) -> None:
    """Similarity of tasks: after training by their cores, before it by their gradients.

    With a BANK: exact cosines of the full updates B Λ_k A, from the cores alone; takes a second.

    With a RUN.yaml: nothing is trained. One forward and backward pass over a few examples of each task on the base
    model says what the task would change first; takes about a minute for ten tasks on two cores.
    """
    with errors():
        from rich.text import Text

        from colora.common.files import write_json
        from colora.errors import ConfigError
        from colora.transfer.clusters import cluster_tree
        from colora.transfer.similarity import bank_similarity

        if figure is not None:  # before what takes a minute
            from colora.transfer.figure import check_figure, draw_similarity

            check_figure(figure)
        if path.suffix in (".yaml", ".yml"):
            from colora.training.config_file import load_config
            from colora.transfer.before_training import run_similarity

            measured = run_similarity(load_config(path, overrides or []), rows, say)
        elif overrides:
            raise ConfigError(f"{path} is no run file (.yaml), so that it has no fields to change: {overrides[0]}")
        else:
            measured = bank_similarity(path, angles=json_file is not None)
        if centred:
            measured = measured.centred()
        tree = cluster_tree(measured)
        together = tree.groups(count=groups)
        _print_cosines(measured, tree.leaves)
        for number, names in enumerate(together, start=1):
            # Text: in a plain string a name such as a:de:b would show a flag, and [b] nothing.
            out.print(Text(f"group {number}: {', '.join(names)}"))
        if json_file is not None:
            write_json(json_file, measured.as_json() | {"groups": together})
            say(f"written: {json_file}")
        if figure is not None:
            draw_similarity(measured, tree, figure)
            say(f"written: {figure}")


@app.command()
def onboard(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.")],
    examples: Annotated[Path, typer.Argument(metavar="NEW.jsonl", help="The new task's file, or its folder.")],
    name: Annotated[str | None, typer.Option(help="Its name; the file's by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the new bank; by default it replaces BANK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 8,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the core; by default 0.12, from rank 24 on 0.06.")
    ] = None,
    extend: Annotated[int, typer.Option(min=0, help="Further directions of A and B, its own: say 16.")] = 0,
    proximal: Annotated[
        float | None,
        typer.Option(
            "--proximal",
            "--pull",
            help="Proximal regularisation (L2-SP): share of the way back to the start after a step; by default 0, "
            "from rank 24 on 0.1.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of examples.")] = 0,
    prompt: Prompt = None,
) -> None:
    """Add a task to a trained bank: r × r parameters per layer are trained, every other task stays as it is to the bit.

    `--extend 16` also gives A and B sixteen directions that no other task uses, where r × r parameters are not enough.

    Its prompt is that of the bank's tasks, unless `--prompt` says another.

    Of a single file every example is trained on; of a folder with a val file the token NLL on that is printed as well.
    """
    with errors():
        from rich.table import Table
        from rich.text import Text

        from colora.transfer.onboarding.fit import Settings
        from colora.transfer.onboarding.onboard import onboard as add_to_bank

        settings = Settings(steps, rows, lr, extend, proximal=proximal, seed=seed)
        result = add_to_bank(
            bank, examples, name=name, output=output, base=base, settings=settings, log=say, prompt=prompt
        )
        table = Table(title="nats per token")
        columns(table, "task", "without adapter", "at the start", "trained", "on its val", "seconds")
        validation = "-" if result.validation is None else f"{result.validation:.3f}"
        start = result.start.nll[result.start.name]
        numbers = (f"{result.before:.3f}", f"{start:.3f}", f"{result.after:.3f}", validation, f"{result.seconds:.0f}")
        table.add_row(Text(result.task), *numbers)
        out.print(table)
        say(result.advice)
        say(f"bank: {result.bank}")


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


def _print_cosines(measured: "Similarity", order: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    what = "updates" if measured.kind == "cores" else "gradients"
    rows = [measured.names.index(name) for name in order]
    cosines = measured.overall().tolist()
    table = Table(title=f"cosines of the tasks' {what}, all layers together")
    if len(order) <= SHOWN:
        columns(table, "task", *[str(number) for number in range(1, len(order) + 1)])
        for number, row in enumerate(rows, start=1):
            table.add_row(Text(f"{number} {measured.names[row]}"), *[f"{cosines[row][column]:.2f}" for column in rows])
    else:
        columns(table, "task", "nearest", "cosine", "next", "cosine")
        for name in order:
            (nearest, first), (second_nearest, second) = measured.nearest(name)[:2]
            table.add_row(Text(name), Text(nearest), f"{first:.2f}", Text(second_nearest), f"{second:.2f}")
    out.print(table)
