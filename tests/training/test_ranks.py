"""Runs of banks whose tasks have cores of several sizes: checkpoints keep each row at its own width."""

import json

import pytest
import safetensors.numpy
import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.bank.tensors import SavedBank
from colora.errors import CheckpointError, ConfigError
from colora.training.run import train
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import onboard
from tests.helpers.run_files import config_of, save_base, write_task
from tests.helpers.tiny import tiny_llama
from tests.helpers.train_tiny import equal, make_trainer, whole_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

RANKS = {"ab": 2, "cde": 4, "f": 1, "gh": 2, "i": 4}
COMMON = {"names": tuple(RANKS), "rows": 4, "steps": 12, "room": 4, "dropout": 0.3, "ranks": RANKS}


@pytest.mark.parametrize("step", [4, 8])
def test_a_run_resumed_from_a_checkpoint_equals_one_without_a_break(tmp_path, step):
    whole = make_trainer(tmp_path, **COMMON)
    whole.train()
    resumed = make_trainer(tmp_path, **COMMON)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert equal(whole_bank(whole), whole_bank(resumed))
    assert {name: len(next(iter(resumed.model.core(name).values()))) for name in RANKS} == RANKS


def test_files_of_a_checkpoint_have_rows_of_one_rank(tmp_path):
    trainer = make_trainer(tmp_path, **COMMON)
    trainer.train()
    names = json.loads((tmp_path / "checkpoint-4" / "cores.json").read_text())["files"]
    layers, found = len(trainer.stored.stacks), {}
    for name in names:
        file = safetensors.numpy.load_file(trainer.core_files.folder / name)
        found[file["rows"].shape[1]] = sorted(file["tasks"].tolist())
    assert found == {layers * (3 * rank**2 + 1): tasks for rank, tasks in ((1, [2]), (2, [0, 3]), (4, [1, 4]))}


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    make_trainer(tmp_path, **COMMON).train()
    other = make_trainer(tmp_path, **COMMON | {"ranks": RANKS | {"f": 3}})
    with pytest.raises(CheckpointError, match="expected rows of shape"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A bank of the tasks red and blue, extended for green."""
    folder = tmp_path_factory.mktemp("bank")
    base = save_base(folder)
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), CoLoRAConfig(r=2, tasks=["red", "blue"], init_weights=False))
    save_bank(model, folder / "b", BankInfo(base=base, max_length=96))
    onboard(folder / "b", folder / write_task(folder, "green", 5), settings=Settings(2, 2, extend=2))
    return folder / "b", base


def test_a_run_from_a_bank_of_several_sizes_keeps_them(extended, tmp_path):
    bank, base = extended
    config = config_of(tmp_path, base, ("red", "green", "new"), start_from=str(bank), training={"steps": 2})
    after = SavedBank(train(config).bank)
    assert {name: after.core_rank(number) for number, name in enumerate(after.tasks)} == {
        "red": 2,
        "green": 4,
        "new": 2,
    }
    before = SavedBank(bank)
    assert (after.config.r, after.config.core_rank) == (before.config.r, before.config.core_rank) == (4, 2)
    for name in ("red", "green"):
        one, other = before.core(before.index[name]), after.core(after.index[name])
        assert not any(torch.equal(one[key], other[key]) for key in one)


def test_cores_of_several_sizes_are_not_kept_on_the_device(extended, tmp_path):
    bank, base = extended
    config = config_of(tmp_path, base, ("red",), start_from=str(bank), training={"steps": 1, "cores": "device"})
    with pytest.raises(ConfigError, match=r"training\.cores: .* has cores of several sizes"):
        train(config)
