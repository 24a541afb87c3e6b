"""PEFT must still be as `colora.adapter.registration` expects it; these tests fail loudly when it is not."""

import inspect
import re
from importlib.metadata import requires, version

import peft
import pytest
import torch
from packaging.requirements import Requirement
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

import colora
from colora import CoLoRAConfig, CoLoRAModel
from colora.adapter.config import COLORA
from colora.adapter.layer import CoLoRALinear
from tests.helpers.dense_oracle import factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama

PEFT_CLASSES = {peft.PeftModel, *peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.values()}


def test_peft_is_one_that_was_tested():
    pin = next(Requirement(line) for line in requires("colora") if line.startswith("peft"))
    assert version("peft") in pin.specifier
    assert {clause.operator for clause in pin.specifier} == {">=", "<"}  # PEFT's tables are not its public face


def test_peft_knows_the_method_by_its_name():
    assert PEFT_TYPE_TO_CONFIG_MAPPING["COLORA"] is CoLoRAConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["COLORA"] is CoLoRAModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["COLORA"] == CoLoRAModel.prefix == "colora_"
    assert COLORA.value == "COLORA"
    assert isinstance(get_peft_config({"peft_type": "COLORA", "r": 2}), CoLoRAConfig)


def test_the_peft_type_is_still_a_closed_enum():
    """Should this fail, `register_peft_method` takes outside methods and replaces the tables in `register`."""
    with pytest.raises(ValueError, match="Unknown PEFT type"):
        register_peft_method(name="colora", config_cls=CoLoRAConfig, model_cls=CoLoRAModel)


def test_config_round_trip_through_json(tmp_path):
    config = CoLoRAConfig(r=3, lora_alpha=5, tasks=["x", "y"], layers_to_transform=[1], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is CoLoRAConfig
    assert loaded.to_dict() == config.to_dict()
    assert loaded.scaling == 5 / 3


def test_the_names_that_peft_reads_are_there():
    model = make_bank(tiny_llama())
    layer = next(module for module in model.modules() if isinstance(module, CoLoRALinear))
    assert all(name.startswith(CoLoRAModel.prefix) for name in layer.adapter_layer_names)
    found = {name for name, _ in layer.named_parameters() if not name.startswith("base_layer")}
    assert found == {f"{name}.default" for name in layer.adapter_layer_names}
    assert repr(layer).startswith("colora.CoLoRALinear")


def test_every_peft_class_that_swallows_task_ids_is_routed():
    for cls in PEFT_CLASSES:
        for name in ("forward", "generate"):
            if name in vars(cls):
                assert hasattr(vars(cls)[name], "_colora_routed"), f"{cls.__name__}.{name}"
                assert not hasattr(vars(cls)[name].__wrapped__, "_colora_routed")


def test_peft_still_swallows_task_ids_without_the_routing():
    """Should this fail, PEFT passes them on by itself and the routing can go."""
    forward = inspect.unwrap(peft.PeftModelForCausalLM.forward)
    assert "task_ids" in inspect.signature(forward).parameters
    assert re.search(r"peft_type == PeftType.POLY:\s+kwargs\[.task_ids.\] = task_ids", inspect.getsource(forward))


def test_registering_twice_changes_nothing():
    before = {cls: (cls.forward, cls.generate) for cls in PEFT_CLASSES if hasattr(cls, "generate")}
    colora._register()  # what importing it did
    assert {cls: (cls.forward, cls.generate) for cls in before} == before


def test_other_peft_methods_are_left_alone():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    inputs = make_inputs()
    seen = []
    model.get_base_model().register_forward_pre_hook(lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    with torch.no_grad():
        plain = model(**inputs).logits
        assert torch.equal(model(**inputs, task_ids=torch.zeros(4, dtype=torch.long)).logits, plain)
    assert not any({"task_ids", "colora_task_ids"} & keys for keys in seen)
    assert model.generate(inputs["input_ids"], max_new_tokens=1, do_sample=False).shape == (4, 7)


def test_a_bank_is_found_in_any_folder_by_peft_alone(tmp_path):
    make_bank(tiny_llama(), task_type="CAUSAL_LM").save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert type(loaded) is peft.PeftModelForCausalLM
    assert isinstance(loaded.base_model, CoLoRAModel)
    assert len(factors(loaded)) == 14
