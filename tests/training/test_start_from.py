"""Runs that start from a bank: its factors and cores by name, refusals, and going on after a crash."""

import os
import shutil
import signal

import pytest
import torch
import yaml
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.bank.importing.bank import import_loras
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank, save_bank
from colora.errors import BankFileError, BaseMismatchError, ConfigError, InterruptedRunError
from colora.evaluation.evaluate import evaluate
from colora.evaluation.settings import EvaluationSettings
from colora.federated.simulate import simulate
from colora.models.base import load_base
from colora.training.adapter_config import bank_config
from colora.training.check import check_run
from colora.training.config_file import load_config, load_federation
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.run import train
from colora.training.starts.from_bank import resolve_adapter, start_bank
from tests.helpers.lora_folders import save_lora
from tests.helpers.run_files import bank_tensors, cli, config_of, content, refusal, run_file, save_base
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["blue", "red", "old"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def make_bank(folder, base, **options):
    torch.manual_seed(3)
    config = CoLoRAConfig(
        **{"r": 4, "lora_alpha": 4, "tasks": TASKS, "init_weights": False, "task_type": "CAUSAL_LM"} | options
    )
    model = get_peft_model(load_base(base)[0], config)
    save_bank(model, folder, BankInfo(base=base))
    return model


@pytest.fixture
def bank(base, tmp_path):
    make_bank(tmp_path / "start", base)
    return tmp_path / "start"


def from_bank(folder, base, bank, *args, adapter=None, **changes):
    """The config of a run that starts from a bank, with only these adapter settings in its file."""
    path = run_file(folder, base, *args, start_from=str(bank), **changes)
    value = yaml.safe_load(path.read_text())
    value["adapter"] = adapter or {}
    path.write_text(yaml.safe_dump(value))
    return load_config(path)


def started(config, names, log=lambda line: None):
    config, start = resolve_adapter(config)
    return start_bank(bank_config(config.adapter, names), start, load_base(config.base)[0], log, names)


# ---- what it starts with --------------------------------------------------------------------------------------------


def test_factors_and_cores_come_by_name_and_new_tasks_from_the_mean(base, tmp_path, bank):
    lines = []
    found = started(from_bank(tmp_path, base, bank), ["red", "new", "blue"], lines.append)
    assert found.tasks == ["red", "new", "blue"]
    before, _, _ = load_bank(bank)
    mean = {name: torch.stack([before.core(task)[name] for task in TASKS]).mean(0) for name in before.core("red")}
    for task, expected in (("red", before.core("red")), ("blue", before.core("blue")), ("new", mean)):
        assert all(torch.equal(core, expected[name]) for name, core in found.core(task).items())
    own, first = dict(found.named_parameters()), dict(before.named_parameters())
    shared = [name for name in own if "colora_A" in name or "colora_B" in name]
    assert len(shared) == 28
    assert all(torch.equal(own[name], first[name]) for name in shared)
    assert all(one.requires_grad == ("colora_" in name) for name, one in own.items())
    assert lines == [
        f"not in {bank}, start at the mean core: new",
        f"only in {bank}, left out: old",
    ]


def test_a_run_goes_on_from_the_bank(base, tmp_path, bank):
    """With rates of nothing, what comes out is what went in."""
    config = from_bank(tmp_path, base, bank, training={"lr": 1e-30, "core_lr": 1e-30})
    result = train(config)
    trained, before = bank_tensors(tmp_path / "out"), load_bank(bank)[0]
    key = "base_model.model.model.layers.1.mlp.up_proj"
    layer = before.base_model.model.model.layers[1].mlp.up_proj
    assert torch.allclose(trained[f"{key}.colora_A"], layer.colora_A["default"])
    assert torch.allclose(trained[f"{key}.colora_core"], layer.colora_core["default"][[1, 0]])
    assert result.model.tasks == ["red", "blue"]
    written = CoLoRAConfig.from_pretrained(str(tmp_path / "out" / "bank"))
    assert (written.tasks, written.r, written.base_model_name_or_path) == (["red", "blue"], 4, base)


def test_the_run_file_says_what_the_bank_has(base, tmp_path):
    make_bank(tmp_path / "start", base, r=3, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "v_proj"])
    train(from_bank(tmp_path, base, tmp_path / "start"))
    written = load_config(tmp_path / "out" / "run.yaml")
    assert written.start_from == str(tmp_path / "start")
    spec = written.adapter
    assert (spec.r, spec.lora_alpha, spec.use_rslora, spec.target_modules) == (3, 7, True, ["q_proj", "v_proj"])
    assert load_bank(tmp_path / "out")[0].peft_config["default"].scaling == 7 / 3**0.5


def test_a_bank_of_one_layer_and_the_same_said_otherwise(base, tmp_path):
    make_bank(tmp_path / "start", base, target_modules=["q_proj"], layers_to_transform=1)
    for number, adapter in enumerate(
        ({}, {"target_modules": r".*\.1\.self_attn\.q_proj"}, {"target_modules": ["q_proj"]})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert len(started(from_bank(folder, base, tmp_path / "start", adapter=adapter), TASKS).core("red")) == 1


def test_a_bank_of_everything_says_all_linear(base, tmp_path, bank):
    config = from_bank(
        tmp_path, base, bank, adapter={"target_modules": "all-linear", "r": 4, "init_weights": "gaussian"}
    )
    assert len(started(config, TASKS).core("red")) == 14


def test_imported_loras_train_on(base, tmp_path):
    loras = [
        save_lora(tmp_path / name, base, seed, torch.float32, r=3, lora_alpha=0.1)
        for seed, name in enumerate(("red", "blue"))
    ]
    import_loras(loras, tmp_path / "start", rank=4)
    training = {"steps": 30, "rows": 8, "lr": 0.002, "log_every": 30}
    config = from_bank(tmp_path, base, tmp_path / "start", training=training)
    before = load_bank(tmp_path / "start")[0]
    result = train(config)
    assert train_nll(result.model, result) < train_nll(before, result) - 0.2  # as much as from a fresh start


def train_nll(model, result):
    settings = EvaluationSettings(split="train", metrics=("nll",), max_length=96)
    done = evaluate(model, result.tokenizer, result.tasks, settings, {"red": 0, "blue": 1}, progress=False)
    return sum(one.value for one in done.records) / len(done.records)


# ---- paths ----------------------------------------------------------------------------------------------------------


def test_the_path_is_relative_to_the_run_file(base, tmp_path, bank, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert from_bank(tmp_path, base, "start").start_from == str(bank)
    assert from_bank(tmp_path, base, "~/start").start_from == os.path.expanduser("~/start")
    assert config_of(tmp_path, base).start_from is None


def test_a_runs_folder_will_do(base, tmp_path, bank):
    train(from_bank(tmp_path, base, bank))
    (tmp_path / "next").mkdir()
    assert started(from_bank(tmp_path / "next", base, tmp_path / "out"), ["red"]).tasks == ["red"]


def test_the_option_of_the_command(base, tmp_path, bank, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = run_file(tmp_path, base)
    result = cli("train", file, "--from", "start")
    assert result.exit_code == 0, result.stderr
    assert f"only in {bank}, left out: old" in result.stderr
    assert load_config(tmp_path / "out" / "run.yaml").start_from == str(bank)
    again = cli("train", file, "--from", "start")
    assert again.exit_code == 0
    assert "has ended before" in again.stderr
    assert "start_from: it has" in refusal("train", file)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"r": 8}, "adapter.r: the bank has 4, the run file 8"),
        ({"lora_alpha": 8}, "adapter.lora_alpha: the bank has 4.0, the run file 8.0"),
        ({"use_rslora": True}, "adapter.use_rslora: the bank has False, the run file True"),
        ({"target_modules": ["q_proj"]}, "only in the bank"),
        ({"layers_to_transform": [0]}, "only in the bank"),
    ],
)
def test_other_adapter_settings(base, tmp_path, bank, adapter, message):
    config = from_bank(tmp_path, base, bank, adapter=adapter)
    before = content(tmp_path)
    for attempt in (train, check_run):
        with pytest.raises(ConfigError) as caught:
            attempt(config)
        assert message in str(caught.value)
    assert content(tmp_path) == before


def test_another_base(tmp_path, bank):
    other = save_base(tmp_path / "other", tiny_llama(seed=5))
    config = from_bank(tmp_path, other, bank)
    for attempt in (train, check_run):
        with pytest.raises(BaseMismatchError, match="trained on another base model"):
            attempt(config)
    assert not (tmp_path / "out").exists()


def test_no_bank_there(base, tmp_path, bank):
    for attempt in (train, check_run):
        with pytest.raises(BankFileError, match="no such folder"):
            attempt(from_bank(tmp_path, base, tmp_path / "nowhere"))
    save_lora(tmp_path / "lora", base)
    with pytest.raises(BankFileError, match="expected a bank, found an adapter of type"):
        train(from_bank(tmp_path, base, tmp_path / "lora"))
    path = bank / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BankFileError, match=r"truncated or no safetensors file .* restore it from a copy"):
        train(from_bank(tmp_path, base, bank))
    assert not (tmp_path / "out").exists()


def test_a_check_plans_with_the_banks_rank(base, tmp_path, bank):
    assert check_run(from_bank(tmp_path, base, bank)).per_task.parameters == 14 * 16


def test_federations_start_afresh(base, tmp_path, bank):
    config = from_bank(tmp_path, base, bank)
    with pytest.raises(ConfigError, match="a federation starts from fresh factors"):
        simulate(config)
    with pytest.raises(ConfigError, match="a federation starts from fresh factors"):
        load_federation(tmp_path / "run.yaml")
    assert load_federation(run_file(tmp_path, base, start_from=None)).base == base
    assert not (tmp_path / "out").exists()


# ---- going on -------------------------------------------------------------------------------------------------------


def test_after_a_crash_the_checkpoint_wins(base, tmp_path, bank, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    train(from_bank(tmp_path / "whole", base, bank))
    config = from_bank(tmp_path / "broken", base, bank)
    real, calls = CoLoRATrainer.compute_loss, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CoLoRATrainer, "compute_loss", interrupted)
    with pytest.raises(InterruptedRunError):
        train(config)
    monkeypatch.setattr(CoLoRATrainer, "compute_loss", real)
    lines = []
    train(config, log=lines.append)
    assert f"going on from {tmp_path / 'broken' / 'out' / 'checkpoints' / 'checkpoint-3'}" in lines
    name = os.path.join("out", "bank", "adapter_model.safetensors")
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_has_ended_does_not_need_its_first_bank(base, tmp_path, bank):
    config = from_bank(tmp_path, base, bank)
    train(config)
    shutil.rmtree(bank)
    assert train(config).reused
