"""Pages of the site that are made from the sources, so that they cannot fall behind: MkDocs calls this file.

reference/python.md      every public name with its docstring, under the headings of api.md
reference/fields.md      every field of every YAML file that a command reads
reference/commands.md    every command with its arguments and options
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

DOCS = Path(__file__).parent


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here to those of the folder."""
    pages = {
        "reference/python.md": python_page((DOCS / "api.md").read_text(encoding="utf-8")),
        "reference/fields.md": fields_page(),
        "reference/commands.md": commands_page(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def python_page(index: str) -> str:
    """The docstrings of the names that `index` lists in its tables, in its order and under its headings."""
    lines = ["# Python interface", "", "Arguments, shapes, errors. [Which names you may rely on](../api.md).", ""]
    for line in index.splitlines():
        if line.startswith("## "):
            lines += [line, ""]
        elif name := re.match(r"\| `(\w+)` \|", line):
            lines += [f"::: colora.{name[1]}", "", *_settings(name[1])]
    return "\n".join(lines)


def _settings(name: str) -> list[str]:
    """The table of a config's fields, which say in their metadata what they are, as PEFT's configs do."""
    import colora

    public = getattr(colora, name)
    fields = [one for one in dataclasses.fields(public) if "help" in one.metadata] if _is_config(public) else []
    if not fields:
        return []
    own = [one for one in fields if one.name in vars(public).get("__annotations__", {})]
    table = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for one in own:
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        table.append(
            f"| `{one.name}` | {_cell(str(one.type))} | {_cell(repr(default))} | {_text(one.metadata['help'])} |"
        )
    return [*table, ""]


def _is_config(public: object) -> bool:
    return isinstance(public, type) and dataclasses.is_dataclass(public)


def fields_page() -> str:
    """The fields of run files, of comparisons, and of the theory's experiments."""
    from colora.experiments.config import Experiment, MethodSettings
    from colora.theory.experiments.config import RecoveryExperiment
    from colora.theory.experiments.records import MethodSettings as RecoveryMethod
    from colora.theory.experiments.records import ProblemSettings
    from colora.training.config_file import field_rows

    comparison = [*field_rows(Experiment), *field_rows(MethodSettings, "methods.NAME.")]
    recovery = [
        *field_rows(RecoveryExperiment),
        *field_rows(ProblemSettings, "problem."),
        *field_rows(RecoveryMethod, "methods.NAME."),
    ]
    parts = [
        "# Fields of the YAML files",
        "`colora schema` prints the first table, `--json` a JSON Schema for editors.",
        *_section("A run: `colora check`, `train`, `compare`, `federate`", field_rows()),
        *_section("A comparison of methods: `colora compare EXPERIMENT.yaml`", comparison),
        *_section("The theory's experiments: `colora recover`", recovery),
    ]
    return "\n\n".join(parts)


def _section(title: str, rows: Iterable[Iterable[str]]) -> list[str]:
    table = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        table.append(f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_text(meaning)} |")
    return [f"## {title}", "\n".join(table)]


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands_page() -> str:
    """Every command's help."""
    from colora.cli.main import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(
        obj=command, ctx=command.make_context("colora", [], resilient_parsing=True), name="colora"
    )
    return text.replace("# `colora`", "# Commands", 1)
