"""Every recipe runs on the tiny model, prints what its docstring shows, and uses what is public alone."""

import ast
import re
import socket

import pytest

import colora
from tests.helpers.docs import ROOT, doc
from tests.helpers.recipes import RECIPES, pattern, printed, shown
from tests.helpers.run_files import save_base

FEW = {
    "own_loop": ["--steps", "10"],
    "with_trainer": ["--steps", "2"],
    "with_trl": ["--steps", "2"],
    "serve_your_files": ["--steps", "2"],
    "newcomers": ["--steps", "2"],
    "federated": ["--rounds", "2"],
    "loras_to_bank": ["--steps", "2"],
}
"""The shortest run of each that trains a language model, and still prints every line."""
ELSEWHERE = {"bank_in_vllm": "tests/vllm/engine/test_recipe.py"}
PUBLIC_MODULES = {"colora.errors"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def check_lines(recipe, lines):
    """What was printed is what is shown, but for numbers, folders and what stands behind an arrow."""
    expected = [line for line in shown(recipe) if not re.fullmatch(r"step \d+: loss .*", line)]
    found = [line for line in lines if not re.fullmatch(r"step \d+: loss .*", line)]
    for show, line in zip(expected, found, strict=False):
        assert re.fullmatch(pattern(show), line.replace("**", "")), f"shown: {show}\nprinted: {line}"
    assert len(found) == len(expected), f"{recipe.name}: shown {expected}, printed {found}"


@pytest.mark.parametrize("name", FEW)
def test_a_recipe_prints_what_it_shows(name, base, tmp_path, monkeypatch):
    if name == "with_trl":
        pytest.importorskip("trl", reason="TRL is not installed: pip install 'trl>=1.16'")
    recipe = ROOT / "recipes" / f"{name}.py"
    options = [*FEW[name], "--base", base, "--output", tmp_path / "out"]
    if name == "serve_your_files":
        with socket.create_server(("127.0.0.1", 0)) as taken:
            options += ["--port", taken.getsockname()[1]]
    check_lines(recipe, printed(recipe, *options))


def test_the_estimator_prints_what_it_shows_to_the_digit():
    """It draws its own data, so that its figures are those of the docstring on any machine."""
    recipe = ROOT / "recipes" / "estimator.py"
    lines = printed(recipe)
    check_lines(recipe, lines)
    numbers = [[float(one) for one in re.findall(r"-?\d+\.\d+", "\n".join(text))] for text in (lines, shown(recipe))]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_held_to_its_output(recipe):
    assert recipe.stem in {*FEW, *ELSEWHERE, "estimator"}
    assert len(shown(recipe)) >= 3
    assert "OUTPUT" not in shown(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_uses_what_is_public_alone(recipe):
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("colora")} - PUBLIC_MODULES == {"colora"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "colora"
    }
    assert used <= set(colora.__all__)
    assert all(f"`{name}`" in doc("api.md") for name in used)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_in_the_list(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    assert 30 <= len(lines) <= 130
    assert f"[{recipe.name}]({recipe.name})" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("shown_line", "line", "fits"),
    [
        ("step 10: loss 1.25", "step 5: loss 0.1", True),
        ("step 10: loss 1.25", "step 5: lost 0.1", False),
        ("| mean | **71.0** |", "| mean | 3.5 |", True),
        ("| mean | 71.0 |", "| mean | **3.5** |", True),
        ("capital: Japan -> 'Tokyo'", "capital: Japan -> 'x'", True),
        ("capital: Japan -> 'Tokyo'", "language: Japan -> 'x'", False),
        ("bank: runs/own-loop", "bank: elsewhere", True),
        ("capital is the same to the bit", "capital has changed", False),
    ],
)
def test_a_line_is_held_to_its_words(shown_line, line, fits):
    assert bool(re.fullmatch(pattern(shown_line), line.replace("**", ""))) is fits
