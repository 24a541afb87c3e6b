"""The command for who is like whom: similarity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, columns, errors, out, say

if TYPE_CHECKING:  # their imports take seconds
    from colora.bank.tensors import SavedBank
    from colora.transfer.similarity import Similarity

SHOWN = 12  # tasks whose cosines fit a terminal


HELP = """Show how similar tasks are: by their cores after training, or by their gradients before training.

With a BANK: prints the exact cosines of the full updates B Λ_k A, and groups of similar tasks. It needs the bank
alone, and takes a second.

With a BANK and `--task`, or with more than 2000 tasks: prints only the nearest neighbours of the tasks that you
name, or of twelve tasks that are drawn. It reads all cores, in parts.

With a RUN.yaml: nothing is trained. It compares the gradients of the tasks on the base model, from one forward and
backward pass over a few examples of each task. That takes about a minute for ten tasks on two CPU cores.
"""


@app.command(help=HELP)
def similarity(
    path: Annotated[
        Path, typer.Argument(metavar="BANK|RUN.yaml", help="Folder of a trained bank or of its run, or a run file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="With a run file: fields to change.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers, layer by layer, to this file.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw a dendrogram and a heat map to this .svg, .png or .pdf.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="With a run file: examples of each task to use.")] = 16,
    groups: Annotated[int | None, typer.Option(min=1, help="Number of groups. Default: cut at the widest gap.")] = None,
    centred: Annotated[
        bool,
        typer.Option(
            "--centred", help="Compare each task's difference from the mean of all tasks; separates tasks better."
        ),
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Show only the nearest neighbours of this task of a bank. Repeat for several."),
    ] = None,
) -> None:
    """Show how similar tasks are; see `HELP`."""
    with errors():
        from colora.bank.tensors import SavedBank
        from colora.errors import ConfigError
        from colora.transfer.similarity import MOST_TASKS, bank_similarity

        if figure is not None:  # before what takes a minute
            from colora.transfer.figure import check_figure

            check_figure(figure)
        if path.suffix in (".yaml", ".yml"):
            if task:
                raise ConfigError("--task needs a trained bank, found a run file: leave --task out, or name a bank")
            from colora.training.config_file import load_config
            from colora.transfer.before_training import run_similarity

            measured = run_similarity(load_config(path, overrides or []), rows, say)
        elif overrides:
            raise ConfigError(f"{path} is not a run file (.yaml), so it has no fields to change; remove {overrides[0]}")
        else:
            saved = SavedBank(path)
            if task or len(saved.tasks) > MOST_TASKS:
                _print_neighbours(saved, task, centred, json_file, figure or groups)
                return
            measured = bank_similarity(saved, angles=json_file is not None)
        if centred:
            measured = measured.centred()
        _tell_groups(measured, groups, json_file, figure)


def _tell_groups(measured: "Similarity", groups: int | None, json_file: Path | None, figure: Path | None) -> None:
    from rich.text import Text

    from colora.common.files import write_json
    from colora.transfer.clusters import cluster_tree

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
        from colora.transfer.figure import draw_similarity

        draw_similarity(measured, tree, figure)
        say(f"written: {figure}")


def _print_neighbours(
    saved: "SavedBank", tasks: list[str] | None, centred: bool, json_file: Path | None, whole: object
) -> None:
    from rich.table import Table
    from rich.text import Text

    from colora.common.files import write_json
    from colora.errors import ConfigError
    from colora.transfer.neighbours import nearest_tasks

    if whole is not None:
        raise ConfigError(
            "--figure and --groups need all pairs of tasks, but with --task or very many tasks "
            f"({len(saved.tasks)} here) only nearest neighbours are computed: leave these options out"
        )
    found = nearest_tasks(saved, tasks, centred=centred)
    drawn = "" if tasks else ", drawn"
    table = Table(title=f"nearest of {found.tasks} tasks, for {len(found.nearest)} of them{drawn}; all layers together")
    columns(table, "task", "nearest", "cosine", "next", "cosine")
    for name, others in found.nearest.items():
        shown = [cell for other, value in others[:2] for cell in (Text(other), f"{value:.2f}")]
        table.add_row(Text(name), *shown)
    out.print(table)
    if json_file is not None:
        write_json(json_file, found.as_json())
        say(f"written: {json_file}")


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
