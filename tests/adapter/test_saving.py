"""Saving and loading through PEFT and through transformers, checked by values on re-seeded bases."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open

from colora import CoLoRAConfig
from colora.errors import TaskIdError
from tests.helpers.dense_oracle import FAMILIES, TASKS, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_bert, tiny_llama

IDS = [2, 0, 1, 2]


def logits(model, task_ids=None, family="llama", **extra):
    inputs = make_inputs(family)
    with torch.no_grad():
        return model(**inputs, **({} if task_ids is None else {"task_ids": task_ids}), **extra).logits


# ---- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_logits_are_equal_to_the_last_bit(tmp_path, family, low_cpu_mem_usage):
    model = make_bank(FAMILIES[family][0](), task_type=FAMILIES[family][1], lora_alpha=6, use_rslora=True)
    model.save_pretrained(tmp_path)
    torch.manual_seed(77)  # what loading must not depend on
    loaded = PeftModel.from_pretrained(FAMILIES[family][0](), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert type(loaded) is type(model)
    assert loaded.tasks == TASKS
    assert torch.equal(logits(loaded, IDS, family), logits(model, IDS, family))
    assert distance(logits(loaded, IDS, family), logits(FAMILIES[family][0](), family=family)) > 1e-3
    assert not any(value.requires_grad for value in loaded.parameters())


def test_a_trained_head_is_saved_with_the_bank(tmp_path):
    model = make_bank(tiny_bert(), task_type="SEQ_CLS", modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert torch.equal(logits(loaded, IDS, "bert"), logits(model, IDS, "bert"))
    head = loaded.base_model.model.classifier
    assert distance(head.modules_to_save["default"].weight, head.original_module.weight) > 0.9


def test_saved_files_are_safetensors_and_json_with_plain_keys(tmp_path):
    make_bank(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[1]).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    stem = "base_model.model.model.layers.1.self_attn.q_proj.colora_"
    assert shapes == {f"{stem}A": (4, 32), f"{stem}B": (32, 4), f"{stem}core": (3, 4, 4)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["tasks"], config["format_version"]) == ("COLORA", TASKS, 1)


def test_saving_again_after_a_change_records_the_new_tensors(tmp_path):
    model = make_bank(tiny_llama())
    model.save_pretrained(tmp_path)
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path), IDS), logits(model, IDS))


def test_an_earlier_checkpoint_loads_into_a_bank_that_was_saved_again_since(tmp_path):
    """What Trainer's load_best_model_at_end does: the live config knows the digest of the last save, not of this."""
    model = make_bank(tiny_llama())
    best = logits(model, IDS)
    model.save_pretrained(tmp_path / "best")
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    model.save_pretrained(tmp_path / "last")
    assert distance(logits(model, IDS), best) > 1e-3
    model.load_adapter(tmp_path / "best", "default", is_trainable=True)
    assert torch.equal(logits(model, IDS), best)


def test_a_state_dict_goes_back_into_a_bank_that_has_changed():
    model = make_bank(tiny_llama())
    first = logits(model, IDS)
    state = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model, IDS), first)


def test_a_loaded_bank_goes_on_training_when_asked_to(tmp_path):
    make_bank(tiny_llama()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert all(value.requires_grad == ("colora_" in name) for name, value in loaded.named_parameters())


# ---- transformers without PeftModel ---------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path):
    """A raw transformers model with a bank loaded by its own load_adapter, and the PeftModel that was saved."""
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path)
    torch.manual_seed(77)
    base = tiny_llama()
    info = base.load_adapter(tmp_path)
    assert not info.missing_keys
    assert not info.unexpected_keys
    return base, model


def test_transformers_load_adapter_loads_every_value(raw):
    base, model = raw
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    assert torch.equal(logits(base, [TASKS[i] for i in IDS]), logits(model, IDS))
    loaded, saved = factors(base), factors(model)
    assert all(torch.equal(loaded[layer][kind], saved[layer][kind]) for layer in saved for kind in ("A", "B", "core"))


def test_a_raw_model_with_several_tasks_asks_which(raw):
    base, _ = raw
    with pytest.raises(TaskIdError, match="which task"):
        logits(base)
    with pytest.raises(TaskIdError, match="which task"):
        base.generate(make_inputs()["input_ids"], max_new_tokens=2)


def test_transformers_disable_enable_and_set_adapter(raw, tmp_path):
    base, model = raw
    make_bank(tiny_llama(), tasks=["x", "y"], r=2, seed=5).save_pretrained(tmp_path / "second")
    second = PeftModel.from_pretrained(tiny_llama(), tmp_path / "second")
    base.load_adapter(tmp_path / "second", adapter_name="second")
    ids = [1, 0, 1, 1]
    base.set_adapter("second")
    assert torch.equal(logits(base, ids), logits(second, ids))
    base.set_adapter("default")
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    base.disable_adapters()
    assert torch.equal(logits(base), logits(tiny_llama()))
    base.enable_adapters()
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    base.delete_adapter("default")
    base.set_adapter("second")
    assert torch.equal(logits(base, ids), logits(second, ids))
    assert not any(".default" in name for name, _ in base.named_parameters())


def test_transformers_save_pretrained_writes_a_bank_that_peft_loads(raw, tmp_path):
    base, model = raw
    base.save_pretrained(tmp_path / "again")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again")
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_transformers_add_adapter_makes_a_fresh_bank():
    base = tiny_llama()
    base.add_adapter(CoLoRAConfig(r=4, tasks=TASKS))
    assert torch.equal(logits(base, IDS), logits(tiny_llama()))
    assert {name.split("colora_")[1].split(".")[0] for name, p in base.named_parameters() if p.requires_grad} == {
        "A", "B", "core",
    }  # fmt: skip
