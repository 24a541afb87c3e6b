"""The shape of the code: imports run downwards only and in no circle, files stay small, no text names a home folder.

A package is a folder, or a module, directly under `colora`. The table says what each may import besides itself, from
the bottom to the top; a new package is added where it belongs.
"""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.helpers.import_graph import ROOT, SOURCE, imported, imports_of, modules

MOST_LINES = 350
MOST_ENTRIES = 18

_LIBRARY = ("errors", "common", "tasks", "models", "bank", "evaluation", "training", "transfer", "federated", "serving")
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "algebra": set(),
    "common": {"errors"},
    "tasks": {"errors", "common"},
    "adapter": {"errors", "algebra", "common"},
    "models": {"errors", "common", "tasks"},
    "bank": {"errors", "algebra", "common", "tasks", "adapter", "models"},
    "evaluation": {"errors", "common", "tasks", "models"},
    "training": {"errors", "algebra", "common", "tasks", "adapter", "models", "bank", "evaluation"},
    "transfer": {"errors", "algebra", "common", "tasks", "adapter", "models", "bank", "evaluation", "training"},
    "federated": {"errors", "common", "tasks", "adapter", "models", "bank", "evaluation", "training"},
    "serving": {"errors", "common", "tasks", "adapter", "models", "bank"},
    "vllm": {"errors", "common", "tasks", "adapter", "models", "bank", "serving"},
    "theory": {"errors", "algebra", "common"},
    "experiments": {"errors", "algebra", "common", "tasks", "adapter", "models", "bank", "evaluation", "training"},
    "cli": {*_LIBRARY, "vllm", "theory", "experiments"},
    "__main__": {"cli"},
}
PACKAGES = list(ALLOWED)
# Outside libraries: these packages use no others, and these libraries are used in no other package.
ONLY_USES = {"errors": set(), "algebra": {"torch", "jaxtyping"}}
ONLY_USED_IN = {
    "flwr": {"federated"},
    "matplotlib": {"transfer", "theory", "experiments"},
    "scipy": {"transfer", "theory", "evaluation"},
    "typer": {"cli"},
    "sklearn": {"theory"},
    "vllm": {"vllm"},
    "fastapi": {"serving", "vllm"},
    "uvicorn": {"serving"},
    "starlette": {"serving", "vllm"},
    "babel": {"tasks"},
    "datasets": {"tasks"},
    "pyarrow": {"tasks"},
}

# A home folder in a text file works on one machine only. The look-behind leaves the paths of URLs alone.
HOME_PATH = re.compile(r"(?<![\w.-])/(home|root|Users)/\w")


def package_of(module: str) -> str:
    """The package of a dotted module name; the root's own `__init__` has none: ''."""
    return [*module.split("."), ""][1]


def violations(tree: ast.AST, module: str, is_package: bool = False) -> list[str]:
    """What in `tree`, the code of `module`, breaks the rules above."""
    package = package_of(module)
    faults = []
    for line, name in imported(tree, module, is_package):
        top = name.split(".")[0]
        where = f"{module}:{line}"
        if top == "colora":
            target = package_of(name)
            if target == "cli" and package not in ("cli", "__main__"):
                faults.append(f"{where}: nobody imports cli")
            elif target == "" and package not in ("", "cli"):
                faults.append(f"{where}: import from the module itself, not from the package's root")
            elif package and target not in {package, ""} | ALLOWED.get(package, set()):
                faults.append(f"{where}: {package} may not import {target}")
        elif top not in sys.stdlib_module_names:
            if top not in ONLY_USES.get(package, {top}):
                faults.append(f"{where}: {package} may not import {top}")
            if package not in ONLY_USED_IN.get(top, {package}):
                faults.append(f"{where}: only {' and '.join(sorted(ONLY_USED_IN[top]))} may import {top}")
    return faults


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, the first one again at the end; none if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_table_itself_runs_downwards():
    for place, (package, below) in enumerate(ALLOWED.items()):
        assert below <= set(PACKAGES[:place]), f"{package} may import only packages above it in the table"


def test_the_table_has_a_row_for_each_package_and_no_other():
    assert {package_of(module) for _, module, _ in modules()} - {""} == set(PACKAGES)


def test_every_permission_of_the_table_is_used():
    used: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for module, names in imports_of().items():
        if package := package_of(module):
            used[package] |= {package_of(name) for name in names} - {package, ""}
    unused = {package: ALLOWED[package] - used[package] for package in PACKAGES if ALLOWED[package] - used[package]}
    assert not unused, f"nobody needs these: {unused}"


def test_the_top_of_the_package_is_short():
    entries = [path.name for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_imports_run_downwards_only():
    faults = [f for path, module, pkg in modules() for f in violations(ast.parse(path.read_text("utf-8")), module, pkg)]
    assert not faults, "\n".join(faults)


def test_no_imports_run_in_a_circle():
    """Imports for type checkers alone and imports inside functions count as well."""
    assert circle(imports_of()) == []


@pytest.mark.parametrize(
    ("graph", "is_circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, False),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, True),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, False),
    ],
)
def test_a_circle_is_found(graph, is_circle):
    assert bool(circle(graph)) is is_circle


def test_an_import_for_type_checkers_counts():
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from colora.tasks import read\n"
    assert (3, "colora.tasks.read") in imported(ast.parse(code), "colora.errors")


@pytest.mark.parametrize(
    ("module", "code", "fault"),
    [
        ("colora.adapter.layer", "from colora.training.loop.loss import x", "adapter may not import training"),
        ("colora.adapter.layer", "import colora.training", "adapter may not import training"),
        ("colora.adapter.layer", "from colora import training", "adapter may not import training"),
        ("colora.adapter.layer", "from ..training import loss", "adapter may not import training"),
        ("colora.adapter.layer", "from .. import training", "adapter may not import training"),
        ("colora.adapter.layer", "def f():\n    from colora.tasks import read", "adapter may not import tasks"),
        ("colora.tasks.read", "from colora.training.config import RunConfig", "tasks may not import training"),
        ("colora.tasks.read", "from colora import CoLoRAConfig", "not from the package's root"),
        ("colora.tasks.read", "import colora", "not from the package's root"),
        ("colora.algebra", "import numpy as np", "algebra may not import numpy"),
        ("colora.training.loop.loss", "import flwr.app", "only federated may import flwr"),
        ("colora.training.run", "from colora.cli.main import app", "nobody imports cli"),
        ("colora", "from colora.cli.main import app", "nobody imports cli"),
        ("colora.experiments.demo", "import colora.__main__", "experiments may not import __main__"),
        ("colora.__main__", "from colora.training.run import train", "__main__ may not import training"),
        ("colora.bank.load", "from colora.training.loop.trainer import x", "bank may not import training"),
        ("colora.theory.recover", "from colora.adapter.layer import x", "theory may not import adapter"),
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
        (
            "colora.cli.main",
            "import typer\nfrom colora import __version__\nfrom colora.experiments.demo import run_demo",
        ),
        ("colora.__main__", "from colora.cli.main import app"),
        ("colora", "from colora.adapter.config import CoLoRAConfig"),
        ("colora.federated.app", "from flwr.app import Context"),
    ],
)
def test_what_is_allowed_is_not_reported(module, code):
    assert violations(ast.parse(code), module) == []


def test_subpackages_export_nothing():
    filled = [path for path, module, pkg in modules() if pkg and module != "colora" and path.read_text("utf-8").strip()]
    assert not filled, "the __init__.py of a subpackage is empty; only the package's root exports"


def test_no_test_imports_another():
    """What several tests need stands in tests/helpers."""
    faults = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for line, name in imported(ast.parse(path.read_text("utf-8")), "tests"):
            if name.split(".")[-1].startswith("test_"):
                faults.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not faults, "\n".join(faults)


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
