"""Exports: stock PEFT and transformers, in a process that cannot import CoLoRA, give the bank's own logits."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import colora.bank.export
from colora.adapter.config import CoLoRAConfig
from colora.bank.export import export_lora, export_loras, export_merged, lora_tensors
from colora.errors import CheckpointError, ConfigError, TaskIdError
from tests.helpers.run_files import content
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5

TASKS = ["red", "light blue", "v1.0:x"]
FAMILIES = {"llama": tiny_llama, "gpt2": tiny_gpt2, "t5": tiny_t5}
LOADER = Path(__file__).parents[1] / "helpers" / "load_exports.py"
INPUTS = {
    "input_ids": torch.randint(6, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
}


def untied():
    """A model whose output layer is not the embedding, so that training the one does not mean the other."""
    model = tiny_llama()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


# name: (model, dtype, options of the bank)
BANKS = {
    **{f"{family}-{bits}": (make, f"float{bits}", {}) for family, make in FAMILIES.items() for bits in (64, 32)},
    "rslora": (tiny_llama, "float64", {"use_rslora": True, "lora_alpha": 5}),
    "some-layers": (tiny_llama, "float64", {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    "head": (untied, "float64", {"modules_to_save": ["lm_head"]}),
    "tied-head": (tiny_llama, "float64", {"modules_to_save": ["lm_head"]}),
}


def make_bank(base, seed=1, **options):
    torch.manual_seed(seed)
    kind = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    config = CoLoRAConfig(
        **{"r": 4, "lora_alpha": 8, "tasks": TASKS, "init_weights": False, "task_type": kind} | options
    )
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def decoder_inputs(model):
    return {"decoder_input_ids": [[0, 7, 8], [0, 9, 10]]} if model.config.is_encoder_decoder else {}


def logits_of(model, **task):
    more = {key: torch.tensor(value) for key, value in decoder_inputs(model).items()}
    with torch.no_grad():
        return model(**INPUTS, **more, **task).logits


@dataclass
class Expected:
    bank: Tensor
    base: Tensor


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(what the bank and its base gave, what the other process gave) of every case, by name."""
    folder = tmp_path_factory.mktemp("exports")
    cases, expected = [], {}
    for bank, (make, dtype, options) in BANKS.items():
        base = make().to(getattr(torch, dtype))
        base.save_pretrained(folder / bank / "base")
        before = logits_of(base)
        model = make_bank(base, **options)
        paths = export_loras(model, folder / bank / "loras")
        common = {"dtype": dtype, "seq2seq": model.config.is_encoder_decoder, "more": decoder_inputs(model)}
        for number, task in enumerate(TASKS):
            name = f"{bank}-{number}"
            expected[name] = Expected(logits_of(model, task_ids=[task] * 2), before)
            cases.append({"name": name, "base": str(folder / bank / "base"), "lora": str(paths[task]), **common})
        if dtype == "float64":
            export_merged(model, TASKS[1], folder / bank / "merged")
            cases.append({"name": f"{bank}-merged", "base": str(folder / bank / "merged"), "lora": None, **common})
            expected[f"{bank}-merged"] = expected[f"{bank}-1"]
    save_file(INPUTS, folder / "inputs.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases))
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(LOADER), str(folder), *packages], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["colora cannot be imported", "[]"]
    return {name: (one, load_file(folder / f"{name}.out.safetensors")["logits"]) for name, one in expected.items()}


@pytest.mark.parametrize("bank", BANKS)
def test_stock_peft_gives_the_banks_logits(loaded, bank):
    dtype = BANKS[bank][1]
    for number in range(len(TASKS)):
        expected, found = loaded[f"{bank}-{number}"]
        assert found.dtype == expected.bank.dtype == getattr(torch, dtype)
        worst = float((found - expected.bank).abs().max())
        size = float(expected.bank.abs().max())
        assert worst <= (1e-10 if dtype == "float64" else 2e-4 / 35 * max(size, 1.0)), (worst, size)
        assert float((expected.bank - expected.base).abs().max()) > 0.01, "the task changes nothing"


@pytest.mark.parametrize("bank", BANKS)
def test_the_tasks_differ(loaded, bank):
    _, first = loaded[f"{bank}-0"]
    _, second = loaded[f"{bank}-1"]
    assert float((first - second).abs().max()) > 0.01


@pytest.mark.parametrize("bank", [name for name, (_, dtype, _) in BANKS.items() if dtype == "float64"])
def test_a_merged_model_needs_nothing_but_transformers(loaded, bank):
    expected, found = loaded[f"{bank}-merged"]
    assert float((found - expected.bank).abs().max()) <= 1e-10


@pytest.fixture
def bank():
    return make_bank(tiny_llama())


def test_the_tensors_are_those_of_a_plain_lora(bank):
    found = lora_tensors(bank, "red")
    lora = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))
    expected = {
        name.replace(".default", ""): tuple(value.shape) for name, value in lora.named_parameters() if "lora_" in name
    }
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    layer = bank.base_model.model.model.layers[1].mlp.down_proj
    B, core = layer.colora_B["default"].detach(), layer.colora_core["default"].detach()[0]
    stem = "base_model.model.model.layers.1.mlp.down_proj"
    assert torch.equal(found[f"{stem}.lora_A.weight"], layer.colora_A["default"])
    assert torch.equal(found[f"{stem}.lora_B.weight"], (B.double() @ core.double()).float())


# The fields of LoraConfig in PEFT 0.13.2, which refuses all others.
FIELDS_OF_PEFT_0_13 = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
NEEDED = {"base_model_name_or_path", "lora_alpha", "peft_type", "r", "target_modules", "task_type"}


@pytest.mark.parametrize("name", BANKS)
def test_older_readers_know_every_field(name, tmp_path):
    make, dtype, options = BANKS[name]
    model = make_bank(make(dtype=getattr(torch, dtype)) if make is not untied else make(), **options)
    export_lora(model, "red", tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert NEEDED <= fields.keys() <= FIELDS_OF_PEFT_0_13
    read = LoraConfig.from_pretrained(str(tmp_path))
    assert (read.r, read.lora_alpha) == (4, options.get("lora_alpha", 8))
    assert (read.use_rslora, read.fan_in_fan_out) == (name == "rslora", "gpt2" in name)
    assert read.modules_to_save == options.get("modules_to_save")


def test_a_task_that_windows_has_no_folder_for_is_refused_there_before_anything_is_written(bank, tmp_path, monkeypatch):
    monkeypatch.setattr("colora.common.systems.WINDOWS", True)
    with pytest.raises(ConfigError, match=r"no file can be called 'v1.0:x'.*or export it alone into a folder"):
        export_loras(bank, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_refused_before_anything_is_written(bank, tmp_path):
    for attempt in (
        lambda: export_lora(bank, "pink", tmp_path / "x"),
        lambda: export_loras(bank, tmp_path / "x", ["red", "pink"]),
        lambda: export_merged(bank, "pink", tmp_path / "x"),
    ):
        with pytest.raises(TaskIdError, match="pink"):
            attempt()
    assert list(tmp_path.iterdir()) == []
    logits_of(bank, task_ids=["red", "red"])  # still a bank


def test_only_some_tasks(bank, tmp_path):
    paths = export_loras(bank, tmp_path, ["v1.0:x"])
    assert paths == {"v1.0:x": tmp_path / "v1.0:x"}
    assert [path.name for path in tmp_path.iterdir()] == ["v1.0:x"]


def test_the_bank_is_the_same_after_an_export(bank, tmp_path):
    before = logits_of(bank, task_ids=["red", "light blue"])
    export_loras(bank, tmp_path)
    assert torch.equal(logits_of(bank, task_ids=["red", "light blue"]), before)


def test_an_earlier_export_is_replaced(bank, tmp_path):
    export_lora(bank, "red", tmp_path / "lora")
    first = content(tmp_path)
    with torch.no_grad():
        bank.base_model.core("red")["model.layers.0.mlp.up_proj"] += 1
    export_lora(bank, "red", tmp_path / "lora")
    second = content(tmp_path)
    assert first.keys() == second.keys()
    assert first["lora/adapter_model.safetensors"] != second["lora/adapter_model.safetensors"]


def test_the_lora_of_another_task_or_program_stays(bank, tmp_path):
    export_lora(bank, "red", tmp_path / "lora")
    (tmp_path / "plain").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "plain" / name).write_bytes((tmp_path / "lora" / name).read_bytes())
    weights = tmp_path / "plain" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})  # as PEFT writes it
    (tmp_path / "all").mkdir()
    (tmp_path / "lora").rename(tmp_path / "all" / "light blue")
    before = content(tmp_path)
    for export in (export_lora, export_merged):
        with pytest.raises(ConfigError, match=r"holds the LoRA of task 'red'; choose another folder for 'light blue'"):
            export(bank, "light blue", tmp_path / "all" / "light blue")
        with pytest.raises(ConfigError, match=r"plain holds an adapter that does not name its task"):
            export(bank, "red", tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"holds the LoRA of task 'red'"):
        export_loras(bank, tmp_path / "all", ["red", "light blue"])
    with pytest.raises(ConfigError, match=r"plain holds an adapter itself, not a folder for each task"):
        export_loras(bank, tmp_path / "plain")
    assert content(tmp_path) == before


def test_nothing_else_is_ever_replaced(bank, tmp_path):
    (tmp_path / "bank").mkdir()
    bank.save_pretrained(str(tmp_path / "bank"), save_embedding_layers=False)
    bank.get_base_model().config.save_pretrained(tmp_path / "base")
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    for name in ("bank", "base", "notes.txt", "."):
        for export in (export_lora, export_merged):
            refused = "holds an adapter that does not name" if name == "bank" else "is there already and is no exported"
            with pytest.raises(ConfigError, match=refused):
                export(bank, "red", tmp_path / name)
    (tmp_path / "all" / "v1.0:x").mkdir(parents=True)
    (tmp_path / "all" / "v1.0:x" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export_loras(bank, tmp_path / "all")
    assert content(tmp_path).keys() == before.keys() | {"all/v1.0:x/mine.txt"}
    assert before.items() <= content(tmp_path).items()
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["v1.0:x"]


def test_an_export_that_fails_leaves_the_old_one(bank, tmp_path, monkeypatch):
    export_lora(bank, "red", tmp_path / "lora")
    before = content(tmp_path)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(colora.bank.export, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_lora(bank, "red", tmp_path / "lora")
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_a_plain_lora_is_no_bank(tmp_path):
    lora = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(ConfigError, match="bank"):
        export_lora(lora, "default", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
