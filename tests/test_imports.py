"""The shape of the code: imports run downwards only, files stay small, and nothing names one machine's folders.

A room is a module or subpackage directly under `colora`. The table says what each may import besides itself,
from the bottom to the top; a new room is added where it belongs.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "colora"
MOST_LINES = 350

_MODEL = {
    "errors",
    "specs",
    "placement",
    "config",
    "files",
    "algebra",
    "likelihood",
    "adapter",
    "bankconfig",
    "tasks",
    "base",
}
_TRAINED = _MODEL | {"dates", "training", "evaluation", "bank", "export"}
_STUDIES = {"cells", "baselines", "groups", "compare", "federated", "regression", "recovery", "report"}
_RUN = _TRAINED | _STUDIES | {"runfolder", "run"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "specs": set(),
    "placement": set(),
    "config": {"errors", "specs"},
    "files": {"errors"},
    "cells": {"errors", "files"},
    "algebra": set(),
    "likelihood": {"errors"},
    "adapter": {"errors", "config", "files", "algebra"},
    "bankconfig": {"specs", "adapter"},
    "tasks": {"errors", "files"},
    "dates": {"errors", "files", "tasks"},
    "base": {"errors", "files"},
    "training": _MODEL,
    "evaluation": _MODEL,
    "bank": {"errors", "files", "adapter", "base"},
    "export": {"errors", "config", "files", "algebra", "adapter", "base"},
    "loras": {"errors", "algebra", "adapter", "base", "bank"},
    "bankfiles": {"errors", "files", "adapter", "bank"},
    "editing": {"errors", "adapter", "bank", "bankfiles"},
    "corefiles": {"errors", "files", "adapter", "bank", "bankfiles"},
    "decoding": {"errors", "tasks"},
    "similarity": _MODEL | {"bank", "bankfiles"},
    "newcomers": _MODEL | {"training", "bank", "bankfiles", "similarity"},
    "baselines": _TRAINED | {"cells"},
    "groups": {"errors", "files", "tasks", "dates"},
    "compare": _TRAINED | {"cells", "baselines", "groups"},
    "federated": _TRAINED | {"compare"},
    "regression": {"errors", "algebra"},
    "recovery": {"errors", "config", "files", "evaluation", "compare", "regression"},
    "report": {"errors", "files", "cells", "recovery", "similarity"},
    "runfolder": {"errors", "config", "files", "tasks"},
    "starting": {"errors", "specs", "adapter", "bank", "bankfiles", "runfolder"},
    "spectral": _MODEL | {"similarity"},
    "run": (_RUN - {"run"}) | {"starting", "spectral"},
    "generate": _MODEL | {"evaluation", "bank", "decoding"},
    "serving": _MODEL | {"bank", "bankfiles", "corefiles", "decoding"},
    "check": _MODEL | {"bank", "runfolder", "starting", "spectral", "run"},
    "forecast": _MODEL | {"run", "similarity"},
    "grouping": _MODEL | {"evaluation", "runfolder", "run", "similarity", "forecast"},
    "company": _MODEL | {"evaluation", "run", "grouping"},
    "simulate": _RUN,
    "demo": _RUN,
    "cli": _RUN
    | {"loras", "editing", "similarity", "newcomers", "generate", "check", "forecast", "grouping", "company"}
    | {"corefiles", "decoding", "serving", "simulate", "demo"},
    "__main__": {"cli"},
}
ROOMS = list(ALLOWED)
# Outside libraries: these rooms use no others, and these libraries are used in no other room.
ONLY_USES = {"errors": set(), "algebra": {"torch"}}
ONLY_USED_IN = {
    "flwr": "federated",
    "matplotlib": "report",
    "typer": "cli",
    "sklearn": "regression",
    "fastapi": "serving",
    "uvicorn": "serving",
}

# A home folder in a text file works on one machine only. The look-behind leaves the paths of URLs alone.
HOME_PATH = re.compile(r"(?<![\w.-])/(home|root|Users)/\w")


def room_of(module: str) -> str:
    """The room of a dotted module name; the package's own `__init__` has none: ''."""
    return [*module.split("."), ""][1]


def imported(tree: ast.AST, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Each import anywhere in `tree`, also inside functions, as (line, absolute dotted name)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from colora import x` may mean the room x or a name of the package itself.
            found += [
                (node.lineno, f"{origin}.{alias.name}" if origin == "colora" and alias.name in ROOMS else origin)
                for alias in node.names
            ]
    return sorted(set(found))


def violations(tree: ast.AST, module: str, is_package: bool = False) -> list[str]:
    """What in `tree`, the code of `module`, breaks the rules above."""
    room = room_of(module)
    faults = []
    for line, name in imported(tree, module, is_package):
        top = name.split(".")[0]
        where = f"{module}:{line}"
        if top == "colora":
            target = room_of(name)
            if target == "cli" and room not in ("cli", "__main__"):
                faults.append(f"{where}: nobody imports cli")
            elif target == "" and room not in ("", "cli"):
                faults.append(f"{where}: import from the module itself, not from the package's root")
            elif room and target not in {room, ""} | ALLOWED.get(room, set()):
                faults.append(f"{where}: {room} may not import {target}")
        elif top not in sys.stdlib_module_names:
            if top not in ONLY_USES.get(room, {top}):
                faults.append(f"{where}: {room} may not import {top}")
            if room != ONLY_USED_IN.get(top, room):
                faults.append(f"{where}: only {ONLY_USED_IN[top]} imports {top}")
    return faults


def modules() -> list[tuple[Path, str, bool]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["colora", *path.relative_to(SOURCE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        found.append((path, ".".join(parts[:-1] if is_package else parts), is_package))
    return found


def test_the_table_itself_runs_downwards():
    for place, (room, below) in enumerate(ALLOWED.items()):
        assert below <= set(ROOMS[:place]), f"{room} may import only rooms above it in the table"


def test_every_room_is_in_the_table():
    unknown = {room_of(module) for _, module, _ in modules()} - {""} - set(ROOMS)
    assert not unknown, f"give these rooms their place in the table: {sorted(unknown)}"


def test_imports_run_downwards_only():
    faults = [f for path, module, pkg in modules() for f in violations(ast.parse(path.read_text("utf-8")), module, pkg)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "code", "fault"),
    [
        ("colora.adapter.layer", "from colora.training.loss import row_loss", "adapter may not import training"),
        ("colora.adapter.layer", "import colora.training", "adapter may not import training"),
        ("colora.adapter.layer", "from colora import training", "adapter may not import training"),
        ("colora.adapter.layer", "from ..training import loss", "adapter may not import training"),
        ("colora.adapter.layer", "from .. import training", "adapter may not import training"),
        ("colora.adapter.layer", "def f():\n    from colora.tasks import read", "adapter may not import tasks"),
        ("colora.tasks.read", "from colora.config import Config", "tasks may not import config"),
        ("colora.tasks.read", "from colora import CoLoRAConfig", "not from the package's root"),
        ("colora.tasks.read", "import colora", "not from the package's root"),
        ("colora.algebra", "import numpy as np", "algebra may not import numpy"),
        ("colora.training.loss", "import flwr.app", "only federated imports flwr"),
        ("colora.run", "from colora.cli import app", "nobody imports cli"),
        ("colora", "from colora.cli import app", "nobody imports cli"),
        ("colora.demo", "import colora.__main__", "demo may not import __main__"),
        ("colora.__main__", "from colora.run import train", "__main__ may not import run"),
        ("colora.bank", "from colora.training.trainer import CoLoRATrainer", "bank may not import training"),
        ("colora.errors", "from colora.nowhere import x", "errors may not import nowhere"),
    ],
)
def test_a_violation_is_found(module, code, fault):
    (found,) = violations(ast.parse(code), module)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("colora.adapter.layer", "import math\nimport torch\nfrom peft import x\nfrom colora.algebra import compose"),
        (
            "colora.adapter.layer",
            "from .routing import Router\nfrom . import hook\nfrom ..errors import ConfigError",
        ),
        ("colora.algebra", "import torch.linalg\nfrom collections import Counter"),
        ("colora.cli", "import typer\nfrom colora import __version__\nfrom colora.demo import demonstrate"),
        ("colora.__main__", "from colora.cli import app"),
        ("colora", "from colora.adapter.config import CoLoRAConfig"),
        ("colora.federated.app", "from flwr.app import Context"),
    ],
)
def test_what_is_allowed_is_not_reported(module, code):
    assert violations(ast.parse(code), module) == []


def test_subpackages_export_nothing():
    filled = [path for path, module, pkg in modules() if pkg and module != "colora" and path.read_text("utf-8").strip()]
    assert not filled, "the __init__.py of a subpackage is empty; only the package's root exports"


def test_files_stay_small():
    sizes = {module: len(path.read_text("utf-8").splitlines()) for path, module, _ in modules()}
    assert not {module: size for module, size in sizes.items() if size > MOST_LINES}


def test_no_text_names_a_home_folder():
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so what belongs to the project is not known")
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if not path.is_file():  # removed, but not yet from git's list
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if HOME_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("cd /" + "home/ann/colora", True),
        ("'/" + "Users/ann'", True),
        ("file:///" + "root/x", True),
        ("https://example.org/home/page", False),
        ("~/.cache/colora", False),
    ],
)
def test_a_home_folder_is_recognised(text, is_found):
    assert bool(HOME_PATH.search(text)) is is_found
