"""Which revision a record names: that of the sources, whatever else has changed around them."""

import subprocess

import pytest

from colora.common.provenance import _git_revision, environment


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "record.json").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_records_may_change_and_sources_may_not(repository):
    folder, commit = repository
    assert _git_revision(folder / "package") == commit
    (folder / "record.json").write_text("2")
    assert _git_revision(folder / "package") == commit
    (folder / "package" / "__init__.py").write_text("1")
    assert _git_revision(folder / "package") == f"{commit}-dirty"


def test_a_new_source_counts_as_an_edit(repository):
    folder, commit = repository
    (folder / "package" / "new.py").write_text("")
    assert _git_revision(folder / "package") == f"{commit}-dirty"


def test_a_copy_that_is_not_under_git_has_no_revision(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    assert _git_revision(tmp_path) is None


def test_an_environment_says_where_and_when():
    assert {"date", "python", "torch", "machine", "threads", "git_revision"} <= environment("cpu").keys()
