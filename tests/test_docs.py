"""What the texts name is there: modules, functions, files, commands of benchmarks."""

import importlib
import re

import pytest

from tests.helpers.docs import ROOT

TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FILE = re.compile(
    r"(?<!/)\b((?:src/colora|tests|benchmarks|docs|recipes)/[\w./-]*\w\.(?:ipynb|pyi|py|yaml|jsonl|json|md|svg|html))\b"
)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[end:])
    return False


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dotted_names_lead_somewhere(text):
    content = text.read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:colora|benchmarks)(?:\.\w+)+)(?:\(.*?\))?`", content))
    names |= set(re.findall(r"python -m ((?:colora|benchmarks)(?:\.\w+)*)", content))
    for module, several in re.findall(r"^from (colora[\w.]*) import ([\w, ]+)$", content, flags=re.MULTILINE):
        names |= {f"{module}.{name}" for name in several.split(", ")}
    assert not [name for name in sorted(names) if not resolves(name)]


@pytest.mark.records
@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(text):
    content = text.read_text(encoding="utf-8")
    named = set(re.findall(FILE, content))
    assert not [name for name in sorted(named) if not (ROOT / name).is_file() and "NAME" not in name]
