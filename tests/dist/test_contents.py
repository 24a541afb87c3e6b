"""What the wheel and the sdist hold: the wheel all of src, the sdist all of the repository but the records."""

import email
import subprocess
import tarfile
import zipfile

import pytest

from tests.helpers.import_graph import ROOT, SOURCE


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}
    sources = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"colora/{path.relative_to(SOURCE).as_posix()}": path.read_bytes() for path in sources}
    assert {"colora/py.typed", "colora/__init__.pyi"} <= contents.keys()
    assert contents == expected


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(file.read(name))
        points = file.read(name.replace("METADATA", "entry_points.txt")).decode()
        assert name.replace("METADATA", "licenses/LICENSE") in file.namelist()
    assert "colora = colora.cli.main:app" in points
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith("# CoLoRA")


def test_the_sdist_has_what_git_has_but_the_records(sdist):
    asked = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        tracked = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no repository: nothing to compare with")
    expected = {name for name in tracked if (ROOT / name).is_file() and "/records/" not in name}
    with tarfile.open(sdist) as file:
        found = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    made = {name for name in found if name in ("PKG-INFO", "setup.cfg") or name.startswith("src/colora.egg-info/")}
    assert found - made == expected


def test_the_sdist_is_small(sdist):
    assert sdist.stat().st_size < 3_000_000
