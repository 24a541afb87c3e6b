"""A bank in rows that is torn, of another bank, killed while it is saved, or saved on a full disk: told, and whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from colora.adapter import config as adapter_config
from colora.bank.edit import forget_tasks
from colora.bank.layout import BankInfo
from colora.bank.load import attach_bank, load_bank, save_bank
from colora.bank.rows import write
from colora.bank.rows.change import append_tasks
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, CheckpointError
from tests.helpers.dense_oracle import make_bank
from tests.helpers.full_disk import no_file_longer_than
from tests.helpers.row_banks import flip_byte, row_bank, same, stored_bank
from tests.helpers.run_files import cli, refusal
from tests.helpers.tiny import tiny_llama

NAMES = ["ada", "bo", "cy", "dé", "ed", "fy"]
ROW = 4 * 14 * 16  # bytes


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """Of two rows a file."""
    monkeypatch.setattr(write, "SHARD_BYTES", 2 * ROW)
    return row_bank(tmp_path, NAMES)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shard_of(folder, name):
    index = SavedBank(folder).rows.index
    return folder / "cores" / index.form.shards[int(index.columns["shard"][index.names[name]])]


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_a_torn_row_is_told_by_task_and_file_and_the_others_are_read(bank):
    folder, cores = bank
    file = shard_of(folder, "dé")
    flip_byte(file, -1)  # the last number of the second row
    saved = SavedBank(folder)
    saved.check()  # reads no row
    with pytest.raises(
        BankFileError, match=rf"{file.name}: row 1, the core of task 'dé', is not the one that was saved"
    ):
        saved.core(3)
    assert all(same(saved.core(number), cores[name]) for number, name in enumerate(NAMES) if name != "dé")
    assert [name for name, _ in saved.rows.faults()] == ["dé"]
    model, _, _ = load_bank(folder)
    with pytest.raises(BankFileError, match="the core of task 'dé'"):
        model.base_model.core("dé")
    assert same(model.base_model.core("cy"), cores["cy"])


def test_verifying_names_the_torn_tasks_and_fails(bank):
    folder, _ = bank
    assert cli("tasks", folder, "--verify").exit_code == 0
    flip_byte(shard_of(folder, "bo"), -1)
    told = refusal("tasks", folder, "--verify")
    assert "the core of task 'bo'" in told
    assert "'ada'" not in told


@pytest.mark.parametrize("left", [0, 40, 300])
def test_a_file_of_cores_that_is_cut_short_is_refused_and_the_rest_can_be_had(bank, left):
    folder, cores = bank
    file = shard_of(folder, "dé")
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(BankFileError, match=rf"1 of 3 files of cores cannot be read(?s:.*){file.name}"):
        load_bank(folder)
    with pytest.raises(BankFileError, match="the core of task 'cy' cannot be read"):
        SavedBank(folder).core(2)
    model, _, _ = load_bank(folder, tasks=["ed"])
    assert same(model.base_model.core("ed"), cores["ed"])
    with pytest.raises(BankFileError, match="1 of 3 files"):
        load_bank(folder, tasks=["ed", "cy"])


def test_a_missing_file_of_cores_is_told(bank):
    folder, _ = bank
    shard_of(folder, "ada").unlink()
    with pytest.raises(BankFileError, match=r"1 of 3 files of cores cannot be read(?s:.*)missing"):
        attach_bank(tiny_llama(), folder)


def test_files_of_cores_that_changed_places_are_told(bank):
    folder, _ = bank
    one, other = shard_of(folder, "ada"), shard_of(folder, "fy")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(BankFileError, match="row 0, the core of task 'ada'"):
        SavedBank(folder).core(0)


def test_the_folder_of_cores_of_another_bank_is_refused(bank, tmp_path):
    folder, _ = bank
    save_bank(stored_bank([*NAMES, "gus"]), tmp_path / "other", BankInfo("base"))
    shutil.rmtree(folder / "cores")
    shutil.copytree(tmp_path / "other" / "cores", folder / "cores")
    with pytest.raises(
        BankFileError, match=r"index_sha256\): it has 7 tasks, expected 6; the folder is of another bank"
    ):
        load_bank(folder)


def test_a_changed_index_is_refused(bank):
    folder, _ = bank
    path = folder / "cores" / "tasks.safetensors"
    tensors = load_file(path)
    tensors["row"] = tensors["row"].flip(0).contiguous()
    save_file(tensors, path)
    with pytest.raises(BankFileError, match="index_sha256"):
        load_bank(folder)


@pytest.mark.parametrize("change", ["missing", "cut", "without", "short"])
def test_an_index_that_is_none_is_refused(bank, change):
    folder, _ = bank
    path = folder / "cores" / "tasks.safetensors"
    tensors = load_file(path)
    if change == "missing":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        if change == "without":
            del tensors["rank"]
        else:
            tensors["rank"] = tensors["rank"][:2].clone()
        save_file(tensors, path)
    with pytest.raises(BankFileError, match=r"tasks.safetensors.*restore"):
        SavedBank(folder)


def test_other_shared_factors_are_refused(bank):
    folder, _ = bank
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).add_(1.0)
    save_file(tensors, path)
    with pytest.raises(BankFileError, match="weights_sha256"):
        load_bank(folder)


def test_an_older_library_refuses_it_and_says_upgrade(bank, monkeypatch):
    """As it was when it knew version 1 alone, with the fields that it did not know."""
    folder, _ = bank
    fields = json.loads((folder / "adapter_config.json").read_text())
    monkeypatch.setattr(adapter_config, "ROWS_VERSION", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BankFileError, match=r"format version 2.*upgrade colora"):
            adapter_config.CoLoRAConfig.from_peft_type(**fields)


# ---- what is written ------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_while_saving_leaves_the_bank_as_it_was(bank):
    folder, _ = bank
    before = files(folder)
    model, _, info = load_bank(folder)
    model.base_model.set_core("ada", {key: 2 * one for key, one in model.base_model.core("ada").items()})
    with no_file_longer_than(ROW), pytest.raises(CheckpointError, match="Nothing that was saved before has changed"):
        save_bank(model, folder, info)
    assert files(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bank", "base"]
    save_bank(model, folder, info)  # with room it goes on
    assert same(SavedBank(folder).core(0), model.base_model.core("ada"))


def test_a_disk_that_fills_while_a_task_is_added_or_forgotten_leaves_the_bank_as_it_was(bank):
    folder, cores = bank
    before = files(folder)
    saved = SavedBank(folder)
    with no_file_longer_than(ROW):
        with pytest.raises(CheckpointError):
            append_tasks(saved, {"new": cores["ada"]}, saved.info)
        with pytest.raises(CheckpointError):
            forget_tasks(folder, ["ada"])
    assert files(folder) == before


def test_a_core_of_nan_is_not_saved(tmp_path):
    model = stored_bank(NAMES)
    stored = model.base_model.router.stored["default"]
    stored.set_rows(np.array([1]), np.full((1, stored.table.width), np.nan))
    with pytest.raises(BankFileError, match="the core of task 1 holds NaN"):
        save_bank(model, tmp_path / "bank", BankInfo("base"))
    assert not (tmp_path / "bank").exists()


KILLED = """
import sys, time
from pathlib import Path
from colora.bank.rows import write
from colora.bank.load import save_bank, load_bank
flush = write.RowWriter._flush
def slowly(self, rank):
    flush(self, rank)
    print("written", flush=True)
    time.sleep(60)
write.RowWriter._flush = slowly
model, _, info = load_bank(Path(sys.argv[1]))
save_bank(model, Path(sys.argv[1]), info)
"""


def test_a_process_that_is_killed_while_saving_leaves_the_old_bank(bank):
    folder, cores = bank
    before = files(folder)
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert files(folder) == before
    assert (folder.parent / ".writing-bank").exists()
    model, _, info = load_bank(folder)
    save_bank(model, folder, info)  # the next one tidies up
    assert not (folder.parent / ".writing-bank").exists()
    assert all(same(SavedBank(folder).core(number), cores[name]) for number, name in enumerate(NAMES))


def test_a_bank_that_was_opened_is_read_on_after_it_was_replaced(bank):
    folder, cores = bank
    saved = SavedBank(folder)
    saved.check()
    forget_tasks(folder, ["ada", "dé", "fy"])
    assert all(same(saved.core(number), cores[name]) for number, name in enumerate(NAMES))


def test_a_bank_in_stacks_has_no_rows_to_change(tmp_path):
    save_bank(make_bank(tiny_llama(), NAMES), tmp_path / "bank", BankInfo("base"))
    saved = SavedBank(tmp_path / "bank")
    with pytest.raises(BankFileError, match="expected a bank in rows"):
        append_tasks(saved, {"new": saved.core(0)}, saved.info)
