"""Banks on quantised bases: a backend made here with real int8 arithmetic, and HQQ and torchao where installed."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend
from torch import nn

import colora.adapter.identity
import colora.adapter.layer
import colora.adapter.model
from tests.helpers.dense_oracle import dense_logits, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama

IDS = [2, 0, 1, 2]


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight as int8 with a scale per row; like HQQ's, without the name `weight`."""

    def __init__(self, weight):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("W_q", (weight / scale).round().to(torch.int8))

    def dequantize(self):
        return self.W_q * self.scale

    def forward(self, x):
        return F.linear(x, self.dequantize())


class Int8Backend(QuantizationBackend):
    supports_merge = True
    layer_type = "linear"
    backend_name = "int8 for tests"

    def get_base_weight(self, base_layer):
        return base_layer.dequantize()

    def set_base_weight(self, peft_layer, weight_data):
        peft_layer.base_layer = Int8Linear(weight_data)


def quantised_llama(seed=0):
    base = tiny_llama(seed)
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            base.set_submodule(name, Int8Linear(module.weight.detach()))
    return base


def dequantised_llama():
    base = tiny_llama()
    for name, module in quantised_llama().named_modules():
        if isinstance(module, Int8Linear):
            base.get_submodule(name).weight.data = module.dequantize()
    return base


TARGETS = {"target_modules": r".*_proj", "task_type": "CAUSAL_LM"}


@pytest.fixture
def backend(monkeypatch):
    """Makes PEFT's `resolve_quantization_backend` know Int8Linear; returns a list whose one item is the backend."""
    chosen = [Int8Backend()]
    for module in (colora.adapter.identity, colora.adapter.layer, colora.adapter.model):
        known = module.resolve_quantization_backend

        def resolve(layer, known=known, **kwargs):
            return chosen[0] if isinstance(layer, Int8Linear) else known(layer, **kwargs)

        monkeypatch.setattr(module, "resolve_quantization_backend", resolve)
    return chosen


@torch.no_grad()
def logits(model, task_ids=None):
    return model(**make_inputs(), **({} if task_ids is None else {"task_ids": task_ids})).logits


def test_forward_on_a_quantised_base_equals_its_dequantised_weights(backend):
    model = make_bank(quantised_llama(), **TARGETS)
    with torch.no_grad():
        expected = dense_logits(dequantised_llama(), factors(model), IDS, make_inputs())
    assert distance(logits(model, IDS), expected) < 1e-4
    assert distance(logits(model, IDS), logits(quantised_llama())) > 1e-2


def test_training_on_a_quantised_base_reaches_the_bank_only(backend):
    model = make_bank(quantised_llama(), **TARGETS)
    inputs = make_inputs()
    model(**inputs, labels=inputs["input_ids"], task_ids=IDS).loss.backward()
    for name, value in model.named_parameters():
        assert (value.grad is not None and value.grad.abs().max() > 0) == ("colora_" in name), name


def test_merging_into_a_quantised_base_warns_and_stays_near(backend):
    model = make_bank(quantised_llama(), **TARGETS)
    expected, plain = logits(model, [1] * 4), logits(quantised_llama())
    with pytest.warns(UserWarning, match=r"layer 'model.layers.0.self_attn.q_proj' re-quantises .* costs accuracy"):
        merged = model.merge_and_unload(task="bo")
    assert isinstance(merged.model.layers[0].self_attn.q_proj, Int8Linear)
    error = distance(logits(merged), expected)
    assert 0 < error < 0.1 * distance(expected, plain)


@pytest.mark.filterwarnings("ignore:merging into the quantised layer")
def test_unmerging_a_quantised_base_stays_near(backend):
    model = make_bank(quantised_llama(), **TARGETS)
    model.set_task("bo")
    mixed = logits(model, IDS)
    model.merge_adapter()
    model.unmerge_adapter()
    assert distance(logits(model, IDS), mixed) < 0.1 * distance(mixed, logits(quantised_llama()))


def test_a_backend_that_cannot_merge_says_so_and_still_runs(backend):
    backend[0] = ForwardOnlyQuantizationBackend("gptq")
    model = make_bank(quantised_llama(), **TARGETS)
    expected = logits(model, IDS)
    with pytest.raises(TypeError, match="not supported for gptq"):
        model.merge_and_unload(task="bo")
    assert torch.equal(logits(model, IDS), expected)
    assert not any(getattr(module, "merged", False) for module in model.modules())


@pytest.mark.filterwarnings("error:the base model's weights differ")
def test_a_bank_moves_between_the_plain_and_the_quantised_base(backend, tmp_path):
    make_bank(tiny_llama(), **TARGETS).save_pretrained(tmp_path / "plain")
    expected = logits(make_bank(tiny_llama(), **TARGETS), IDS)
    update = distance(expected, logits(tiny_llama()))
    loaded = PeftModel.from_pretrained(quantised_llama(), tmp_path / "plain")
    assert 0 < distance(logits(loaded, IDS), expected) < 0.1 * update
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "again"), IDS), expected)
    with pytest.raises(ValueError, match="same shapes, other weights"):
        PeftModel.from_pretrained(quantised_llama(seed=1), tmp_path / "plain")


def test_a_layer_that_no_backend_knows_is_refused():
    with pytest.raises(ValueError, match="is a Int8Linear: expected a linear layer"):
        make_bank(quantised_llama(), **TARGETS)


# ---- real quantisers ------------------------------------------------------------------------------------------------


def hqq_llama():
    pytest.importorskip("hqq.core.quantize", reason="needs the hqq package (pip install hqq)")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    base = tiny_llama()
    config = BaseQuantizeConfig(nbits=8, group_size=16)
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            quantised = HQQLinear(module, config, compute_dtype=torch.float32, device="cpu", initialize=True)
            base.set_submodule(name, quantised)
    return base


def torchao_llama():
    pytest.importorskip("torchao", reason="needs the torchao package (pip install torchao)")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig

    base, config = tiny_llama(), TorchAoConfig(Int8WeightOnlyConfig())
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            quantize_(module, config.get_apply_tensor_subclass())

    class Quantizer:
        quantization_config = config

    base.hf_quantizer = Quantizer()
    return base


@pytest.mark.parametrize("make_base", [hqq_llama, torchao_llama])
@pytest.mark.filterwarnings("ignore")
def test_with_a_real_quantiser(make_base, tmp_path):
    plain = logits(make_base())
    model = make_bank(make_base(), **TARGETS)
    reference = logits(make_bank(tiny_llama(), **TARGETS), IDS)
    update = distance(reference, logits(tiny_llama()))
    assert distance(logits(model, IDS), reference) < 0.1 * update
    inputs = make_inputs()
    model(**inputs, labels=inputs["input_ids"], task_ids=IDS).loss.backward()
    assert all(value.grad.abs().max() > 0 for name, value in model.named_parameters() if "colora_" in name)
    model.save_pretrained(tmp_path)
    mixed = logits(model, IDS)
    assert torch.equal(logits(PeftModel.from_pretrained(make_base(), tmp_path), IDS), mixed)
    model.set_task("bo")
    one = logits(model)
    model.merge_adapter()
    assert distance(logits(model), one) < 0.1 * update
    model.unmerge_adapter()
    assert distance(logits(model, IDS), mixed) < 0.1 * update
    with model.disable_adapter():
        assert distance(logits(model), plain) < 0.1 * update
    assert distance(logits(model.merge_and_unload(task="bo")), one) < 0.1 * update
