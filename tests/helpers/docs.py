"""The project's texts, and what stands in them between marks."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

__all__ = ["README", "ROOT", "Block", "between", "blocks", "commands", "doc"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def doc(name: str) -> str:
    """A text of the folder docs."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block of code: its language, its title ("" if it has none), and the code."""

    language: str
    title: str
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `colora ...` that a page shows in a fenced or an indented block."""
    shown = "".join(block.code for block in blocks(text) if block.language == "bash")
    shown += "".join(re.findall(r"^ {4,}(colora (?:.*\\\n)*.*\n)", text, flags=re.MULTILINE))
    lines = [part.strip() for line in shown.replace("\\\n", " ").splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"colora \w", line)]
    return [one[1 : one.index("&")] if "&" in one else one[1:] for one in words]


def between(text: str, name: str) -> str:
    """The table that the records called `name` gave."""
    return text.split(f"<!-- from the records: {name} -->\n")[1].split("\n<!-- end -->")[0]
