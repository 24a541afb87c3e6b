"""The command for who is like whom: similarity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colora.cli.console import app, columns, errors, out, say

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
