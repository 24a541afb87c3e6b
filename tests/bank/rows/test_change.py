"""Tasks of a bank in rows are added, changed and forgotten; the others' cores stay to the bit, and few are written."""

import json
import os

import pytest
import torch

from colora.bank.core_file import extract_core, read_core
from colora.bank.edit import forget_tasks, merge_tasks
from colora.bank.rows import write
from colora.bank.rows.change import append_tasks, replace_core
from colora.bank.tensors import SavedBank
from colora.errors import CheckpointError, ConfigError, TaskIdError
from tests.helpers.row_banks import flip_byte, row_bank, same

NAMES = [f"user-{number}" for number in range(12)]


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """Of three rows a file."""
    row = 4 * 14 * 16  # bytes: float32, 14 layers, 4 x 4
    monkeypatch.setattr(write, "SHARD_BYTES", 3 * row)
    return row_bank(tmp_path, NAMES)


def shards(folder):
    return {path.name: path.stat().st_ino for path in (folder / "cores").glob("*") if path.name != "tasks.safetensors"}


def core_like(core, value):
    return {name: torch.full_like(one, value) for name, one in core.items()}


def agrees(folder, cores):
    """Whether the bank has these tasks in this order, with these cores."""
    saved = SavedBank(folder)
    saved.check()
    return list(saved.tasks) == list(cores) and all(same(saved.core(saved.index[name]), cores[name]) for name in cores)


def test_appending_writes_what_comes_and_links_the_rest(bank):
    folder, cores = bank
    before = shards(folder)
    assert len(before) == 4
    new = {"new": core_like(cores["user-0"], 2.0)}
    saved = SavedBank(folder)
    info = saved.info
    info.examples["new"], info.seen["new"], info.sources["new"] = 5, 6, {"onboarded": True}
    append_tasks(saved, new, info)
    assert agrees(folder, cores | new)
    after = shards(folder)
    assert before.items() <= after.items()  # the same files on the disk, not copies
    assert len(after) == 5
    found = SavedBank(folder).info
    assert (found.examples["new"], found.seen["new"], found.source_of("new")) == (5, 6, {"onboarded": True})


def test_tasks_that_come_one_by_one_do_not_each_keep_a_file(bank, monkeypatch):
    folder, cores = bank
    monkeypatch.setattr(write, "SHARD_BYTES", 2**26)
    for number in range(16):
        new = {f"new-{number}": core_like(cores["user-0"], float(number))}
        saved = SavedBank(folder)
        append_tasks(saved, new, saved.info)
        cores |= new
    assert agrees(folder, cores)
    assert len(shards(folder)) <= 6


def test_appending_elsewhere_leaves_the_bank(bank, tmp_path):
    folder, cores = bank
    saved = SavedBank(folder)
    new = {"new": core_like(cores["user-0"], 2.0)}
    append_tasks(saved, new, saved.info, tmp_path / "other")
    assert agrees(tmp_path / "other", cores | new)
    assert agrees(folder, cores)


def test_a_core_of_smaller_rank_keeps_its_rank(bank):
    folder, cores = bank
    small = {name: torch.full((2, 2), 3.0) for name in cores["user-0"]}
    saved = SavedBank(folder)
    append_tasks(saved, {"small": small}, saved.info)
    saved = SavedBank(folder)
    assert (saved.core_rank(12), saved.core_rank(0)) == (2, 4)
    assert same(saved.core(12), small)
    padded = saved.cores([12, 0])
    for name, one in small.items():
        assert torch.equal(padded[name][0, :2, :2], one)
        assert padded[name][0].sum() == one.sum()
        assert torch.equal(padded[name][1], cores["user-0"][name])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("user-3", lambda core: None, "already a task"),
        ("a/b", lambda core: None, "expected a task name"),
        ("new", lambda core: core.popitem(), "found others"),
        ("new", lambda core: core.update({key: torch.zeros(5, 5) for key in core}), "one size up to"),
        ("new", lambda core: next(iter(core.values())).fill_(torch.nan), "NaN"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(bank, name, change, told):
    folder, cores = bank
    core = core_like(cores["user-0"], 1.0)
    change(core)
    saved = SavedBank(folder)
    with pytest.raises(ConfigError, match=told):
        append_tasks(saved, {name: core}, saved.info)
    assert agrees(folder, cores)


def test_a_bank_that_another_process_has_changed_is_not_overwritten(bank):
    folder, cores = bank
    saved, again = SavedBank(folder), SavedBank(folder)
    other = {"other": core_like(cores["user-0"], 1.0)}
    append_tasks(again, other, again.info)  # all files that the first knows are still there
    with pytest.raises(CheckpointError, match="another process has changed this bank meanwhile; nothing was written"):
        append_tasks(saved, {"new": core_like(cores["user-0"], 2.0)}, saved.info)
    assert agrees(folder, cores | other)
    saved = SavedBank(folder)
    forget_tasks(folder, ["user-4"])  # one of them is gone
    with pytest.raises(CheckpointError, match="Nothing that was saved before has changed"):
        append_tasks(saved, {"new": core_like(cores["user-0"], 2.0)}, saved.info)
    del cores["user-4"]
    assert agrees(folder, cores | other)


def test_forgetting_removes_the_bytes_and_writes_only_the_files_that_had_them(bank):
    folder, cores = bank
    gone = [cores["user-4"], cores["user-11"]]
    before = shards(folder)
    done = forget_tasks(folder, ["user-4", "user-11"])
    del cores["user-4"], cores["user-11"]
    assert list(done.tasks) == list(cores)
    assert agrees(folder, cores)
    assert len(before.items() & shards(folder).items()) == 2  # the files without a core of theirs
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for core in gone:
        assert not any(one.numpy().tobytes() in content for one in core.values())
    assert b"user-11" not in content


def test_forgetting_a_task_that_is_not_there_or_all_is_refused(bank):
    folder, cores = bank
    with pytest.raises(TaskIdError, match="no task 'nobody'"):
        forget_tasks(folder, ["nobody"])
    with pytest.raises(ConfigError, match="no task would be left"):
        forget_tasks(folder, NAMES)
    assert agrees(folder, cores)


def test_another_core_takes_the_place_of_the_old_one_whose_bytes_are_gone(bank):
    folder, cores = bank
    old, cores["user-5"] = cores["user-5"], core_like(cores["user-5"], 7.0)
    saved = SavedBank(folder)
    info = saved.info
    info.seen["user-5"] = 99
    replace_core(saved, "user-5", cores["user-5"], info)
    assert agrees(folder, cores)
    assert SavedBank(folder).info.seen["user-5"] == 99
    content = b"".join(path.read_bytes() for path in (folder / "cores").iterdir())
    assert not any(one.numpy().tobytes() in content for one in old.values())


def test_a_sum_of_tasks_is_added_and_must_be_forgotten_with_its_parts(bank):
    folder, cores = bank
    merge_tasks(folder, "mixed", {"user-1": 0.5, "user-9": -2.0})
    mixed = {key: 0.5 * cores["user-1"][key] - 2.0 * cores["user-9"][key] for key in cores["user-1"]}
    saved = SavedBank(folder)
    assert all(torch.allclose(one, mixed[key]) for key, one in saved.core(saved.index["mixed"]).items())
    with pytest.raises(ConfigError, match="mixed: merged from user-9"):
        forget_tasks(folder, ["user-9"])
    forget_tasks(folder, ["user-9", "mixed"])
    del cores["user-9"]
    assert agrees(folder, cores)


def test_a_core_file_of_a_task_is_the_task(bank, tmp_path):
    folder, cores = bank
    extract_core(folder, "user-7", tmp_path / "one.core")
    shapes = {name: tuple(one.shape) for name, one in cores["user-7"].items()}
    found, _ = read_core((tmp_path / "one.core").read_bytes(), shapes, SavedBank(folder).shared_sha256)
    assert same(found, cores["user-7"])


def test_a_torn_file_is_linked_into_no_other_bank_in_silence(bank, tmp_path):
    """Appending does not read what stays; the torn core is still told when it is read."""
    folder, cores = bank
    name = SavedBank(folder).rows.index.form.shards[0]
    flip_byte(folder / "cores" / name, -1)
    saved = SavedBank(folder)
    append_tasks(saved, {"new": core_like(cores["user-0"], 2.0)}, saved.info, tmp_path / "other")
    faults = dict(SavedBank(tmp_path / "other").rows.faults())
    assert list(faults) == ["user-2"]


def test_files_of_cores_are_copied_where_links_cannot_be(bank, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    folder, cores = bank
    saved = SavedBank(folder)
    new = {"new": core_like(cores["user-0"], 2.0)}
    append_tasks(saved, new, saved.info, tmp_path / "other")
    assert agrees(tmp_path / "other", cores | new)
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text())["cores"]["tasks"] == 13
