"""Commands for who helps whom and for newcomers: similarity, onboard."""

from pathlib import Path
from typing import Annotated, Any

import typer

from colora.cli.console import app, columns, errors, out, say

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
    """Say which tasks belong together: after training by their cores, before it by their gradients.

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

            found = run_similarity(load_config(path, overrides or []), rows)
        elif overrides:
            raise ConfigError(f"{path} is no run file (.yaml), so that it has no fields to change: {overrides[0]}")
        else:
            found = bank_similarity(path, angles=json_file is not None)
        if centred:
            found = found.centred()
        tree = cluster_tree(found)
        together = tree.groups(count=groups)
        _print_cosines(found, tree.leaves)
        for number, names in enumerate(together, start=1):
            # Text: in a plain string a name such as a:de:b would show a flag, and [b] nothing.
            out.print(Text(f"group {number}: {', '.join(names)}"))
        if json_file is not None:
            write_json(json_file, found.as_json() | {"groups": together})
            say(f"written: {json_file}")
        if figure is not None:
            draw_similarity(found, tree, figure)
            say(f"written: {figure}")


@app.command()
def onboard(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="Folder of a bank, or of the run that trained it.")],
    examples: Annotated[Path, typer.Argument(metavar="NEW.jsonl", help="The newcomer's task file or folder.")],
    name: Annotated[str | None, typer.Option(help="Its name; the file's by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the new bank; by default it replaces BANK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 8,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the core; by default 0.12, from rank 16 on 0.06.")
    ] = None,
    extend: Annotated[int, typer.Option(min=0, help="Further directions of A and B, its own: say 16.")] = 0,
    pull: Annotated[
        float | None,
        typer.Option(help="Share of the way back to its start after a step; by default 0, from rank 16 on 0.1."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of examples.")] = 0,
) -> None:
    """Add a task to a trained bank: r × r numbers a layer are trained, every other task stays as it is to the bit.

    `--extend 16` also gives A and B sixteen directions that no other task uses, where r × r numbers are not enough.

    Of a single file every example is trained on; of a folder with a val file the likelihood on that is told as well.
    """
    with errors():
        from rich.table import Table
        from rich.text import Text

        from colora.transfer.onboarding.fit import Settings
        from colora.transfer.onboarding.onboard import onboard as add

        settings = Settings(steps, rows, lr, extend, pull=pull, seed=seed)
        found = add(bank, examples, name=name, output=output, base=base, settings=settings, log=say)
        table = Table(title="nats per token")
        columns(table, "task", "without adapter", "at the start", "trained", "on its val", "seconds")
        late = "-" if found.validation is None else f"{found.validation:.3f}"
        first = found.start.nll[found.start.name]
        numbers = (f"{found.before:.3f}", f"{first:.3f}", f"{found.after:.3f}", late, f"{found.seconds:.0f}")
        table.add_row(Text(found.task), *numbers)
        out.print(table)
        say(found.advice)
        say(f"bank: {found.bank}")


def _print_cosines(found: Any, order: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    what = "updates" if found.kind == "cores" else "gradients"
    places = [found.names.index(name) for name in order]
    cosines = found.overall().tolist()
    table = Table(title=f"cosines of the tasks' {what}, all layers together")
    if len(order) <= SHOWN:
        columns(table, "task", *[str(number) for number in range(1, len(order) + 1)])
        for number, row in enumerate(places, start=1):
            table.add_row(Text(f"{number} {found.names[row]}"), *[f"{cosines[row][column]:.2f}" for column in places])
    else:
        columns(table, "task", "nearest", "cosine", "next", "cosine")
        for name in order:
            (one, first), (two, second) = found.nearest(name)[:2]
            table.add_row(Text(name), Text(one), f"{first:.2f}", Text(two), f"{second:.2f}")
    out.print(table)
