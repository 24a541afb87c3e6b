"""What all commands share: the application, where it prints, and how errors look."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["app", "columns", "errors", "out", "readable_bytes", "say"]

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


def columns(table: Table, first: str, *numbers: str) -> None:
    """Add a column for names and further ones for numbers."""
    table.add_column(first, overflow="fold")  # a name cut short is no name
    for name in numbers:
        table.add_column(name, justify="right")


def say(line: str) -> None:
    """Tell the user something on standard error; standard output is for results."""
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def readable_bytes(number: float) -> str:
    """A size in decimal units."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


@contextmanager
def errors() -> Iterator[None]:
    """Errors and warnings as a message, not with places in the code: exit code 2, and 130 after Ctrl-C."""
    import warnings

    from transformers.utils import logging

    from colora.errors import ColoraError, InterruptedRunError

    logging.disable_progress_bar()  # "Loading weights" for half a second
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
