"""How the texts are set: prose has at most 100 columns, so that it reads well in an editor and in a diff."""

import re

import pytest

from tests.helpers.docs import ROOT

TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MOST = 100


def prose(text: str) -> list[str]:
    """The lines that are no code, table, heading, image, or part of a table of the records."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- from the records.*?<!-- end -->", "", text, flags=re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith(("|", "#", "!", "    "))]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_wrapped(text):
    """A piece that cannot be broken, such as a command in a line of its own, may be longer."""
    long = [line for line in prose(text.read_text("utf-8")) if len(line) > MOST]
    assert not [line for line in long if re.search(r"\s", re.sub(r"`[^`]*`|\(`[^`]*`\)\.?", "", line).strip())]
