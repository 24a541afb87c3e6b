"""An adapter that stands in for a bank, as TRL adds them: a copy that follows the bank's choice of task."""

import pytest
import torch
from peft import PeftModel

from colora import CoLoRAConfig
from colora.errors import TaskIdError
from tests.helpers.dense_oracle import factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama


def bank(**config):
    return make_bank(tiny_llama(), ("a", "b"), task_type="CAUSAL_LM", **config)


@pytest.mark.parametrize("name", ["ref", "teacher"])
def test_a_stand_in_follows_the_choice_of_task(name):
    model, inputs = bank(), make_inputs()
    model.add_adapter(name, model.peft_config["default"])
    for task in ("a", "b"):
        model.set_task(task)
        with torch.no_grad():
            expected = model(**inputs).logits
            model.set_adapter(name)
            found = model(**inputs).logits
        model.set_adapter("default")
        assert torch.equal(found, expected)
    model.set_task(None)
    model.set_adapter(name)
    with pytest.raises(TaskIdError, match="which task"):
        model(**inputs)


def test_a_stand_in_keeps_its_tasks_when_the_bank_gets_more():
    model = bank()
    model.add_adapter("ref", model.peft_config["default"])
    model.add_tasks(["c"])
    assert model.peft_config["ref"].tasks == ["a", "b"]
    model.set_adapter("ref")
    with pytest.raises(TaskIdError, match=r"unknown task 'c'; this bank knows a, b"):
        model(**make_inputs(), task_ids=["c"] * 4)


def test_other_names_and_other_configs_get_a_fresh_bank():
    model = bank(init_weights=True)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".colora_B." in name:
                value.fill_(1.0)
    model.add_adapter("second", model.peft_config["default"])
    model.add_adapter("ref", CoLoRAConfig(r=2, tasks=["x"], task_type="CAUSAL_LM"))
    for name in ("second", "ref"):
        assert not any(tensors["B"].any() for tensors in factors(model, name).values())


def test_a_saved_stand_in_loads_as_a_bank(tmp_path):
    model = bank()
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "ref")
    with torch.no_grad():
        ids = ["a", "b", "b", "a"]
        assert torch.equal(loaded(**make_inputs(), task_ids=ids).logits, model(**make_inputs(), task_ids=ids).logits)
