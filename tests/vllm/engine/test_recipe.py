"""The recipe of a bank inside vLLM prints what its docstring shows, of a tiny bank."""

import re
import socket

import pytest

from tests.helpers.docs import ROOT
from tests.helpers.engines import ENVIRONMENT, SMALL, bank_for_either
from tests.helpers.recipes import pattern, printed, shown

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


def test_the_recipe_asks_every_task_of_one_server(tmp_path, monkeypatch):
    for name, value in {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}.items():
        monkeypatch.setenv(name, value)
    tasks = ["capital", "continent", "language"]
    bank, recipe = bank_for_either(tmp_path, tasks), ROOT / "recipes" / "bank_in_vllm.py"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    lines = printed(recipe, bank, "Denmark", "--port", port, "--", *SMALL)
    expected = shown(recipe)
    assert len(lines) == len(expected)
    assert all(re.fullmatch(pattern(show), line) for show, line in zip(expected, lines, strict=True)), lines
