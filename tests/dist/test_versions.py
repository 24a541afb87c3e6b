"""The version stands in one place, and whatever else names it agrees."""

import re
import tomllib

import yaml

import colora
from tests.helpers.import_graph import ROOT
from tests.helpers.run_files import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_build_reads_the_version_off_the_package():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "colora.__version__"}


def test_the_citation_names_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == colora.__version__


def test_the_changelog_begins_with_the_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *_ = re.findall(r"^## \[(.+?)\]", changes, flags=re.MULTILINE)
    assert first == colora.__version__


def test_the_command_line_tells_the_version():
    result = cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"colora {colora.__version__}\n")


def test_the_files_are_named_by_the_version(wheel, sdist):
    assert wheel.name == f"colora-{colora.__version__}-py3-none-any.whl"
    assert sdist.name == f"colora-{colora.__version__}.tar.gz"
