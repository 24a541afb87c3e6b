"""A bank on a base whose layers accelerate keeps on disk or in the CPU's memory."""

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel
from transformers import AutoModelForCausalLM

from colora import CoLoRAConfig
from colora.errors import ConfigError
from tests.helpers.dense_oracle import TASKS, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama

IDS = [2, 0, 1, 2]
PLACES = {
    "model.embed_tokens": "cpu", "lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT writes what it offloads to a path relative to here
    tiny_llama().save_pretrained(tmp_path / "base")
    make_bank(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), task_type="CAUSAL_LM").save_pretrained(
        tmp_path / "bank"
    )
    return tmp_path


def on_disk(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "base", device_map=dict(PLACES), offload_folder=folder / "off")


def expected(folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "bank")
    with torch.no_grad():
        return model(**make_inputs(), task_ids=IDS).logits


def test_a_bank_on_disk_is_read_from_there(folder):
    places = {f"base_model.model.{name}": place for name, place in PLACES.items()}
    model = PeftModel.from_pretrained(
        on_disk(folder), str(folder / "bank"), device_map=places, offload_folder=folder / "off"
    )
    assert any(value.is_meta for name, value in model.named_parameters() if "colora_" in name)
    with torch.no_grad():
        assert torch.equal(model(**make_inputs(), task_ids=IDS).logits, expected(folder))
        assert all(torch.isfinite(core).all() for core in model.core("bo").values())


def test_a_bank_in_the_memory_of_the_cpu_is_read_from_there(folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "bank")
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(value.is_meta for value in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**make_inputs(), task_ids=IDS).logits, expected(folder))


def test_a_new_bank_on_an_offloaded_layer_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match=r"layer 'model\.layers\.1\..*is offloaded to disk"):
        make_bank(on_disk(folder))
    model = make_bank(on_disk(folder), layers_to_transform=[0])
    with torch.no_grad():
        assert model(**make_inputs(), task_ids=IDS).logits.shape == (4, 6, 262)


def test_a_bank_on_a_base_without_data_has_shapes_only():
    with torch.device("meta"):
        model = make_bank(tiny_llama())
    assert all(value.is_meta for value in model.parameters())
    assert isinstance(model.peft_config["default"], CoLoRAConfig)
    assert model.tasks == TASKS
