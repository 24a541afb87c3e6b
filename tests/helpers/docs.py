"""The project's texts, and what stands in them between marks."""

from pathlib import Path

__all__ = ["README", "ROOT", "between", "doc"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def doc(name: str) -> str:
    """A text of the folder docs."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def between(text: str, name: str) -> str:
    """The table that the records called `name` gave."""
    return text.split(f"<!-- from the records: {name} -->\n")[1].split("\n<!-- end -->")[0]
