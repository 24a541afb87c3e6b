"""The tutorial, block by block, with a tiny model in place of the default one."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.helpers.docs import blocks, doc
from tests.helpers.run_files import COMMON, save_base

BLOCKS = blocks(doc("tutorial.md"))
ELSEWHERE = ("make install", "source ", "curl ", "colora serve ", "colora compare ")
"""Lines that need another environment, run until they are ended, or take minutes: see the tests of those commands."""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs a line of a bash block in the folder of the tutorial."""
    monkeypatch.chdir(tmp_path)
    program = {"colora": [sys.executable, "-m", "colora"], "python": [sys.executable]}

    def run(line: str) -> str:
        name, *words = shlex.split(line)
        done = subprocess.run(
            [*program[name], *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_the_tutorial_runs(shell, tmp_path):
    base = save_base(tmp_path / "base")
    ran = []
    for block in BLOCKS:
        if block.title == "run.yaml":
            config = yaml.safe_load(block.code) | {"base": base}
            config |= {name: config.get(name, {}) | COMMON[name] for name in ("training", "evaluation")}
            (tmp_path / block.title).write_text(yaml.safe_dump(config), "utf-8")
        elif block.title:
            (tmp_path / block.title).write_text(block.code, "utf-8")
        else:
            lines = block.code.replace("\\\n", " ").splitlines()
            for line in lines:
                if not line.startswith(ELSEWHERE):
                    shell(re.sub(r"\s+", " ", line))
                    ran.append(line.split()[:2])
    assert [words[1] for words in ran] == [
        "write_examples.py", "check", "train", "evaluate", "generate", "generate", "onboard", "generate", "export",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["acme", "borealis", "cobalt", "delta"]
    shell("python load_plain.py")


def test_the_answers_told_are_those_of_the_files(shell, tmp_path):
    """What the tutorial says that the two customers get is what its program writes for that date."""
    (program,) = [block.code for block in BLOCKS if block.title == "write_examples.py"]
    told = re.search(r"`(\d[^`]*2025)` and `([\d.]+)`", doc("tutorial.md"))
    names: dict[str, object] = {}
    exec(compile(program, "write_examples.py", "exec"), names)
    day = names["date"](2025, 11, 30)
    assert told is not None
    assert list(told.groups()) == [day.strftime(names["STYLES"][customer]) for customer in ("acme", "cobalt")]
