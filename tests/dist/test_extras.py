"""Each extra can be had together with the core: uv resolves it, from metadata alone; nothing is installed.

It also resolves for systems and Pythons that are not here, which says that there are packages for them, no more.
"""

import os
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.import_graph import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNREACHABLE = ("error sending request", "operation timed out", "the network was disabled")
# vLLM is for Linux; the development tools were not tried elsewhere.
ELSEWHERE = sorted(EXTRAS.keys() - {"vllm", "dev"})
PURE_SOURCES = ("rouge-score", "docopt", "iterators")  # have no wheels, and need no compiler


def resolve(project: Path, extras: list[str], python: str, *options: str) -> dict[str, str]:
    """The version of each package that a project with these extras needs."""
    uv = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    assert uv, "uv is missing: make install"
    command = [uv, "pip", "compile", str(project), "--no-header", "--no-annotate", "--python-version", python, *options]
    oldest = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # bitsandbytes has no wheels for earlier ones
    command += [f"--extra={extra}" for extra in extras]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=oldest)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip("no package index can be reached")
    if done.returncode:
        raise ValueError(done.stderr)
    lines = (line.split(" ;")[0].split("==") for line in done.stdout.splitlines() if "==" in line)
    return {name.split("[")[0]: version for name, version in lines}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_resolves_with_the_core(extra):
    found = resolve(ROOT / "pyproject.toml", [extra], "3.11")
    for wanted in map(Requirement, PROJECT["dependencies"] + EXTRAS[extra]):
        if wanted.name != "colora":
            assert found[canonicalize_name(wanted.name)] in wanted.specifier


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "windows", "macos"])
def test_all_extras_for_users_resolve_together_from_wheels(platform, python):
    sources = [f"--no-binary={name}" for name in PURE_SOURCES]
    options = (f"--python-platform={platform}", "--only-binary=:all:", *sources)
    assert "torch" in resolve(ROOT / "pyproject.toml", ELSEWHERE, python, *options)


def test_extras_that_contradict_each_other_are_found(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = ["click>=8.2"]\n'
        '[project.optional-dependencies]\nold = ["click<8"]\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="click"):
        resolve(project, ["old"], "3.11")
