"""What all commands share: the application, where it prints, and how errors look."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["app", "columns", "errors", "out", "readable_bytes", "say"]

FILE_COLUMNS = 160

# PEFT imports it wherever it is installed; it then misses an optional kernel that it would fetch from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class _QuickGroup(TyperGroup):
    """The list of commands, and what is said of a wrong option, without the parts of rich that take long to import.

    The help of one command is still drawn by rich.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.rich_markup_mode = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # the list of commands is a result: on standard output
            click.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.commands[name] for name in self.list_commands(ctx)}
        rows = [(name, one.get_short_help_str(limit=300)) for name, one in commands.items() if not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=_QuickGroup,
    context_settings={"max_content_width": 120},
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="CoLoRA: many tasks, one model. All tasks share two low-rank factors, and each task has a small core. Similar "
    "tasks help each other.\n\nStart with 'colora demo'. 'colora schema' lists the fields of a run file. "
    "'colora COMMAND --help' explains a command.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from colora import __version__

        print(f"colora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


class _Output:
    """Standard output, for results: a console of rich, made when there is something to print.

    A file or a pipe has no width, and rich would cut tables at 80 columns there.
    """

    def print(self, *objects: object, **options: Any) -> None:
        from rich.console import Console

        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=FILE_COLUMNS)
        console.print(*objects, **options)


out = _Output()


def columns(table: "Table", first: str, *numbers: str) -> None:
    """Add a column for names and further ones for numbers."""
    table.add_column(first, overflow="fold")  # a name cut short is no name
    for name in numbers:
        table.add_column(name, justify="right")


def say(line: str) -> None:
    """Tell the user something on standard error; standard output is for results."""
    from rich.console import Console

    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def readable_bytes(number: float) -> str:
    """A size in decimal units."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _hide_progress() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # "Loading weights" for half a second


@contextmanager
def errors() -> Iterator[None]:
    """Errors and warnings as a message, not with places in the code: exit code 2, and 130 after Ctrl-C."""
    import warnings

    from colora.common.after_import import after_import
    from colora.errors import ColoraError, InterruptedRunError

    # Once it is there: it takes seconds to import, and what is wrong with a file is told without it.
    after_import("transformers.utils.logging", _hide_progress)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries to each other
            warnings.showwarning = lambda message, *where: say(f"warning: {message}")
            yield
    except InterruptedRunError as error:
        say(str(error))
        sys.exit(130)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except (ColoraError, OSError) as error:  # a full disk, a folder that may not be written
        say(f"error: {error}")
        sys.exit(2)
