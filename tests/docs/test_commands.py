"""Every command line that the texts show is one that the program takes: commands, arguments and options."""

import click
import pytest
import typer.main

from colora.cli.main import app
from tests.helpers.docs import ROOT, commands

TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [(text, words) for text in TEXTS for words in commands(text.read_text("utf-8"))]


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, and run nothing."""
    command, name = typer.main.get_command(app), "colora"
    parent = None
    while isinstance(command, click.Group):
        parent = command.make_context(name, [], parent=parent, resilient_parsing=True)
        found = command.get_command(parent, words[0])
        assert found is not None, f"{name} {words[0]}: no such command"
        command, name, words = found, words[0], words[1:]
    command.make_context(name, list(words), parent=parent)


@pytest.mark.parametrize(
    "words", [words for _, words in SHOWN], ids=[f"{text.stem}: {' '.join(words)}"[:70] for text, words in SHOWN]
)
def test_commands_in_the_texts_parse(words, tmp_path, monkeypatch):
    """Files and banks that a command line names need not be there."""
    monkeypatch.setattr("colora.bank.layout.find_bank", lambda path: path)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: self.coerce_path_result(value))
    parse(words)


@pytest.mark.parametrize("words", [["trian", "run.yaml"], ["train", "run.yaml", "--no-such-option"], ["generate"]])
def test_a_command_that_is_none_is_found(words):
    with pytest.raises((AssertionError, click.UsageError)):
        parse(words)


def test_the_texts_show_commands():
    assert len(SHOWN) > 30
