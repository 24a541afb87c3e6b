"""Whatever goes wrong while writing, the old file or folder is whole, and nothing is left lying about."""

import json
import os

import pytest

import colora.common.files
from colora.common.files import STAGING_PREFIX, staged_folder, write_json, write_text
from colora.errors import CheckpointError
from tests.helpers.full_disk import no_file_longer_than


def inventory(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def final(tmp_path):
    """A folder with an old version."""
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    return folder


def write_new(final):
    with staged_folder(final) as folder:
        (folder / "new.txt").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "deep.txt").write_text("deep")


def write_half(final, error):
    with staged_folder(final) as folder:
        assert inventory(final) == {"old.txt": "old"}
        (folder / "half.txt").write_text("ha")
        raise error


def failing_replace(monkeypatch, number):
    """`os.replace` that fails at its n-th call from now on."""
    calls, real = [], os.replace

    def replace(source, target):
        calls.append((source, target))
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(colora.common.files.os, "replace", replace)
    return calls


def test_a_new_folder_appears_whole(tmp_path):
    final = tmp_path / "a" / "b" / "bank"
    with staged_folder(final) as folder:
        assert folder.name == final.name
        (folder / "x.txt").write_text("x")
        assert not final.exists()
    assert inventory(tmp_path) == {"a/b/bank/x.txt": "x"}


def test_a_folder_is_replaced_whole(final, tmp_path):
    write_new(final)
    assert inventory(tmp_path) == {"bank/new.txt": "new", "bank/sub/deep.txt": "deep"}
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_failure_inside_leaves_the_old_folder(final, tmp_path, error):
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_half(final, error)
    assert inventory(tmp_path) == {"bank/old.txt": "old"}
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("number", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(final, tmp_path, monkeypatch, number):
    failing_replace(monkeypatch, number)
    with pytest.raises(
        CheckpointError, match=r"could not write .*bank: .*No space left.*Nothing that was saved before"
    ):
        write_new(final)
    assert inventory(tmp_path) == {"bank/old.txt": "old"}
    assert list(tmp_path.iterdir()) == [final]


def test_a_process_that_died_between_the_renames_is_repaired_by_the_next_write(final, tmp_path):
    staging = tmp_path / (STAGING_PREFIX + "bank")
    (staging / "bank").mkdir(parents=True)
    os.replace(final, staging / ".old")
    with pytest.raises(CheckpointError):
        write_half(final, OSError("again"))
    assert inventory(tmp_path) == {"bank/old.txt": "old"}


def test_leftovers_of_a_dead_process_are_removed(final, tmp_path):
    staging = tmp_path / (STAGING_PREFIX + "bank") / "bank"
    staging.mkdir(parents=True)
    (staging / "stale.txt").write_text("stale")
    write_new(final)
    assert inventory(tmp_path) == {"bank/new.txt": "new", "bank/sub/deep.txt": "deep"}
    assert list(tmp_path.iterdir()) == [final]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="could not write"), staged_folder(tmp_path / "file" / "bank"):
        pass
    with pytest.raises(CheckpointError, match="could not write"):
        write_text(tmp_path / "file" / "a.txt", "a")
    assert inventory(tmp_path) == {"file": "x"}


def test_followers_neither_make_nor_rename(tmp_path):
    events = []
    final = tmp_path / "bank"
    (tmp_path / (STAGING_PREFIX + "bank") / "bank").mkdir(parents=True)  # as its leader would
    with staged_folder(final, leader=False, barrier=lambda: events.append("wait")) as folder:
        (folder / "mine.txt").write_text("mine")
    assert events == ["wait"] * 3
    assert not final.exists()
    assert (folder / "mine.txt").exists()


def test_text_and_json_are_written_whole(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "grün\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "grün\n".encode()
    write_json(tmp_path / "b.json", {"name": "grün", "n": [1]})
    text = (tmp_path / "b.json").read_text(encoding="utf-8")
    assert "grün" in text
    assert json.loads(text) == {"name": "grün", "n": [1]}
    assert sorted(inventory(tmp_path)) == ["b.json", "new/a.txt"]


def test_text_that_cannot_be_renamed_leaves_the_old(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    failing_replace(monkeypatch, 1)
    with pytest.raises(CheckpointError, match="what was there before has not changed"):
        write_text(tmp_path / "a.txt", "new")
    assert inventory(tmp_path) == {"a.txt": "old"}


def test_an_interrupted_text_leaves_the_old(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(colora.common.files, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert inventory(tmp_path) == {"a.txt": "old"}


def test_a_disk_that_is_full(final, tmp_path):
    write_text(tmp_path / "a.txt", "old")
    faults = []
    with no_file_longer_than(4096):
        try:
            write_text(tmp_path / "a.txt", "x" * 5000)
        except CheckpointError as error:
            faults.append(str(error))
        try:
            with staged_folder(final) as folder:
                (folder / "small.txt").write_text("x")
                (folder / "big.txt").write_text("x" * 5000)
        except CheckpointError as error:
            faults.append(str(error))
    first, second = faults
    assert first.startswith(f"could not write {tmp_path / 'a.txt'}: ")
    assert "File too large" in first
    assert second.startswith(f"could not write {final}: ")
    assert inventory(tmp_path) == {"a.txt": "old", "bank/old.txt": "old"}
    assert set(tmp_path.iterdir()) == {final, tmp_path / "a.txt"}
