"""Whoever may read the config of a bank, an export or a checkpoint may read its weights, and nobody else."""

import os
import sys
from pathlib import Path
from stat import S_IMODE

import pytest

from colora.bank.edit import forget_tasks
from colora.bank.export import export_lora, export_merged
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.files import staged_folder
from tests.helpers.dense_oracle import make_bank
from tests.helpers.row_banks import row_bank
from tests.helpers.tiny import tiny_llama
from tests.helpers.train_tiny import make_trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists, and no umask")


@pytest.fixture(params=[0o022, 0o077, 0o027], ids=oct)
def mode(request):
    """That of new files; the umask is set as a shell sets it."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def check_modes(folder: Path, mode: int) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.name: oct(S_IMODE(path.stat().st_mode)) for path in files} == {path.name: oct(mode) for path in files}


def test_weights_of_banks_have_the_mode_of_new_files(mode, tmp_path):
    bank = make_bank(tiny_llama())
    save_bank(bank, tmp_path / "bank", BankInfo(base="tiny"))
    check_modes(tmp_path / "bank", mode)
    rows, _ = row_bank(tmp_path / "more", ["a", "b", "c"])
    check_modes(rows, mode)
    forget_tasks(rows, ["b"])
    check_modes(rows, mode)


def test_weights_of_exports_have_the_mode_of_new_files(mode, tmp_path):
    bank = make_bank(tiny_llama())
    task = bank.peft_config["default"].tasks[0]
    export_lora(bank, task, tmp_path / "lora")
    check_modes(tmp_path / "lora", mode)
    export_merged(bank, task, tmp_path / "merged")
    check_modes(tmp_path / "merged", mode)


@pytest.mark.parametrize("room", [None, 3])
def test_weights_of_checkpoints_have_the_mode_of_new_files(mode, room, tmp_path):
    make_trainer(tmp_path / "run", steps=2, save_steps=2, room=room).train()
    check_modes(tmp_path / "run", mode)


def test_what_was_made_private_stays_private(tmp_path):
    before = os.umask(0o022)
    try:
        secret = tmp_path / "old.safetensors"
        secret.write_bytes(b"weights")
        secret.chmod(0o600)
        with staged_folder(tmp_path / "new") as staging:
            (staging / "key.pem").touch(0o600)
            os.link(secret, staging / "linked.safetensors")
    finally:
        os.umask(before)
    assert {S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()} == {0o600}
    assert S_IMODE(secret.stat().st_mode) == 0o600
