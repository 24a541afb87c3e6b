"""The programs in recipes/: run as a user runs them, and what their docstrings show of their output."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

from tests.helpers.docs import ROOT

__all__ = ["RECIPES", "pattern", "printed", "shown"]

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|nan)"


def printed(recipe: Path, *arguments: object) -> list[str]:
    """The lines that a recipe printed, run in this process."""
    before, output = sys.argv, io.StringIO()
    sys.argv = [str(recipe), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(recipe), run_name="__main__")
    finally:
        sys.argv = before
    return output.getvalue().splitlines()


def shown(recipe: Path) -> list[str]:
    """The output that a recipe's docstring shows: the last lines there that are indented."""
    docstring = re.match(r'"""(.*?)"""', recipe.read_text(encoding="utf-8"), re.DOTALL)
    assert docstring is not None
    blocks = re.findall(r"(?:^    .*\n)+", docstring[1], re.MULTILINE)
    return [line[4:] for line in blocks[-1].splitlines()]


def pattern(line: str) -> str:
    """What a shown line holds a printed one to: all but numbers, folders, and what stands behind an arrow."""
    stable, arrow, _ = line.partition(" -> ")
    found = "".join(
        r"\S+" if part.startswith("runs/") else NUMBER if re.fullmatch(NUMBER, part) else re.escape(part)
        for part in re.split(rf"(\bruns/\S+|{NUMBER})", stable.replace("**", ""))
    )
    return found + (" -> .*" if arrow else "")
