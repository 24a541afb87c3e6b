"""Forward passes of a bank against dense weights, one per task, in float64."""

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from peft import get_peft_model
from torch import nn
from torch.func import functional_call
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification, BertModel

from colora import CoLoRAConfig
from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router
from colora.adapter.routing import Routing
from colora.errors import TaskIdError
from tests.helpers.dense_oracle import (
    FAMILIES,
    TASKS,
    dense_logits,
    distance,
    factors,
    make_bank,
    make_inputs,
    row,
)
from tests.helpers.tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama

EXACT = 1e-10
IDS = [2, 0, 1, 2]
NAMES = [TASKS[index] for index in IDS]


def double(family):
    return FAMILIES[family][0](dtype=torch.float64)


@pytest.fixture(scope="module")
def llama():
    """A bank of three tasks on a Llama, its mixed batch, and the oracle's logits of all rows under all tasks."""
    model = make_bank(double("llama"), task_type="CAUSAL_LM")
    inputs = make_inputs()
    oracle = [dense_logits(double("llama"), factors(model), [task] * 4, inputs) for task in range(3)]
    return model, inputs, oracle


@pytest.fixture(autouse=True)
def no_task_selected(request):
    yield
    if "llama" in request.fixturenames:
        request.getfixturevalue("llama")[0].set_task(None)


def mixed(oracle, ids):
    return torch.stack([oracle[task][index] for index, task in enumerate(ids)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_task_type", [True, False])
@torch.no_grad()
def test_mixed_batch_equals_dense_weights(family, with_task_type):
    settings = {"task_type": FAMILIES[family][1]} if with_task_type else {}
    if family == "bert" and not with_task_type:
        settings["exclude_modules"] = ["classifier"]  # 3 labels only, and nothing tells that it is a head
    model = make_bank(double(family), **settings)
    inputs = make_inputs(family)
    found = model(**inputs, task_ids=torch.tensor(IDS)).logits
    assert distance(found, dense_logits(double(family), factors(model), IDS, inputs)) < EXACT
    assert distance(found, double(family)(**inputs).logits) > 1e-3


@torch.no_grad()
def test_a_trained_head_is_shared_by_all_tasks():
    model = make_bank(double("bert"), task_type="SEQ_CLS", modules_to_save=["classifier"])
    head = model.base_model.model.classifier.modules_to_save["default"]
    torch.manual_seed(3)
    head.weight.copy_(torch.randn_like(head.weight))
    assert "classifier" not in factors(model)
    inputs = make_inputs("bert")
    found = model(**inputs, task_ids=NAMES).logits
    extra = {"classifier.weight": head.weight, "classifier.bias": head.bias}
    assert distance(found, dense_logits(double("bert"), factors(model), IDS, inputs, extra=extra)) < EXACT


@pytest.mark.parametrize(
    "task_ids",
    [torch.tensor(IDS), torch.tensor(IDS, dtype=torch.int32), IDS, tuple(IDS), np.array(IDS), NAMES],
    ids=["tensor", "int32", "list", "tuple", "numpy", "names"],
)
@torch.no_grad()
def test_every_form_of_task_ids(llama, task_ids):
    model, inputs, oracle = llama
    assert distance(model(**inputs, task_ids=task_ids).logits, mixed(oracle, IDS)) < EXACT


@pytest.mark.parametrize("task_ids", [1, "bo", ["bo"], torch.tensor([1])])
@torch.no_grad()
def test_one_id_or_name_for_one_row(llama, task_ids):
    model, inputs, oracle = llama
    assert distance(model(**row(inputs, 2), task_ids=task_ids).logits, oracle[1][2:3]) < EXACT


@torch.no_grad()
def test_packed_rows_have_a_task_per_token(llama):
    """Two examples in one row, kept apart by the attention mask and their own positions."""
    model, inputs, oracle = llama
    ids = inputs["input_ids"]
    packed = torch.cat([ids[0], ids[1]])[None]
    positions = torch.arange(6).repeat(2)[None]
    block = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)).tril().bool()[None, None]
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.float64).masked_fill(~block, torch.finfo(torch.float64).min)
    task_ids = torch.tensor([[2] * 6 + [0] * 6])
    found = model(input_ids=packed, attention_mask=mask, position_ids=positions, task_ids=task_ids).logits[0]
    assert distance(found, torch.cat([oracle[2][0], oracle[0][1]])) < EXACT


@torch.no_grad()
def test_packed_ids_that_are_constant_in_a_row_equal_one_id_per_row(llama):
    model, inputs, oracle = llama
    task_ids = torch.tensor(IDS)[:, None].expand(4, 6)
    assert distance(model(**inputs, task_ids=task_ids).logits, mixed(oracle, IDS)) < EXACT


@torch.no_grad()
def test_inputs_embeds_are_routed(llama):
    model, inputs, oracle = llama
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert distance(model(inputs_embeds=embeds, task_ids=IDS).logits, mixed(oracle, IDS)) < EXACT


@torch.no_grad()
def test_set_task_holds_until_taken_back_and_task_ids_go_before_it(llama):
    model, inputs, oracle = llama
    model.set_task("bo")
    assert distance(model(**inputs).logits, oracle[1]) < EXACT
    assert distance(model(**inputs, task_ids=IDS).logits, mixed(oracle, IDS)) < EXACT
    assert distance(model(**inputs).logits, oracle[1]) < EXACT
    model.set_task(None)
    with pytest.raises(TaskIdError, match="which task"):
        model(**inputs)


@torch.no_grad()
def test_the_only_task_needs_no_ids():
    model = make_bank(double("llama"), tasks=["only"])
    inputs = make_inputs()
    oracle = dense_logits(double("llama"), factors(model), [0] * 4, inputs)
    for extra in ({}, {"task_ids": [0] * 4}, {"task_ids": ["only"] * 4}):
        assert distance(model(**inputs, **extra).logits, oracle) < EXACT


@torch.no_grad()
def test_one_task_for_all_rows_equals_the_mixed_path():
    """The folded path (set_task) and the batched path (task_ids) are two ways through the layer."""
    model = make_bank(tiny_llama())
    inputs = make_inputs()
    model.set_task("cy")
    assert distance(model(**inputs).logits, model(**inputs, task_ids=[2] * 4).logits) < 1e-5


HEADS = {
    "TOKEN_CLS": BertForTokenClassification,
    "QUESTION_ANS": BertForQuestionAnswering,
    "FEATURE_EXTRACTION": BertModel,
}


@pytest.mark.parametrize("task_type", HEADS)
@torch.no_grad()
def test_every_other_peft_model_class_passes_task_ids(task_type):
    def base():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
        return HEADS[task_type](config).double().eval()

    model = make_bank(base(), task_type=task_type, target_modules=["query", "value", "dense"])
    inputs = make_inputs()
    found = model(**inputs, task_ids=NAMES)[0]
    oracle, tensors = base(), factors(model)
    for index, task in enumerate(IDS):
        weights = {
            f"{layer}.weight": oracle.get_submodule(layer).weight + 2.0 * t["B"] @ t["core"][task] @ t["A"]
            for layer, t in tensors.items()
        }
        assert distance(found[index], functional_call(oracle, weights, (), row(inputs, index))[0][0]) < EXACT


# ---- which layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "last_names", "layers"),
    [
        ({"target_modules": ["q_proj", "down_proj"]}, {"q_proj", "down_proj"}, {0, 1}),
        ({"target_modules": r".*\.1\.self_attn\.(k|v)_proj"}, {"k_proj", "v_proj"}, {1}),
        ({"exclude_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}, {"gate_proj", "up_proj", "down_proj"}, {0, 1}),
        ({"exclude_modules": r".*mlp.*"}, {"q_proj", "k_proj", "v_proj", "o_proj"}, {0, 1}),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"q_proj"}, {1}),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, {"q_proj"}, {0}),
        ({"layers_to_transform": [1], "exclude_modules": r".*mlp.*"}, {"q_proj", "k_proj", "v_proj", "o_proj"}, {1}),
        ({"target_modules": r".*\.[qk]_proj", "layers_to_transform": 1}, {"q_proj", "k_proj"}, {1}),
    ],
)
@torch.no_grad()
def test_only_the_chosen_layers_are_adapted(settings, last_names, layers):
    model = make_bank(double("llama"), **settings)
    tensors = factors(model)
    assert {name.rsplit(".", 1)[-1] for name in tensors} == last_names
    assert {int(name.split(".")[2]) for name in tensors} == layers
    inputs = make_inputs()
    found = model(**inputs, task_ids=IDS).logits
    assert distance(found, dense_logits(double("llama"), tensors, IDS, inputs)) < EXACT


@pytest.mark.parametrize(("family", "layers"), [("llama", 14), ("gpt2", 8), ("t5", 32), ("bert", 13)])
def test_all_linear_is_the_default_and_leaves_the_output_layer_out(family, layers):
    tensors = factors(make_bank(FAMILIES[family][0](), task_type=FAMILIES[family][1]))
    assert len(tensors) == layers
    assert not {name.rsplit(".", 1)[-1] for name in tensors} & {"lm_head", "classifier"}


@torch.no_grad()
def test_rslora_scales_by_the_root_of_the_rank():
    model = make_bank(double("llama"), use_rslora=True, lora_alpha=3)
    inputs = make_inputs()
    oracle = dense_logits(double("llama"), factors(model), IDS, inputs, scaling=3 / 4**0.5)
    assert distance(model(**inputs, task_ids=IDS).logits, oracle) < EXACT


@torch.no_grad()
def test_dropout_acts_only_in_training():
    model = make_bank(double("llama"), lora_dropout=0.5)
    inputs = make_inputs()
    oracle = dense_logits(double("llama"), factors(model), IDS, inputs)
    assert distance(model(**inputs, task_ids=IDS).logits, oracle) < EXACT
    model.train()
    one, other = (model(**inputs, task_ids=IDS).logits for _ in range(2))
    assert distance(one, oracle) > 1e-3
    assert distance(one, other) > 1e-3


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
@torch.no_grad()
def test_training_starts_at_the_base_model(init):
    model = make_bank(double("llama"), init_weights=init)
    inputs = make_inputs()
    assert torch.equal(model(**inputs, task_ids=IDS).logits, double("llama")(**inputs).logits)
    for tensors in factors(model).values():
        common, turned = tensors["core"][:, :2, :2], tensors["core"][:, 2:, 2:]
        assert torch.equal(common, torch.eye(2).double().expand(3, 2, 2))
        assert not tensors["core"][:, :2, 2:].any()
        assert not tensors["core"][:, 2:, :2].any()
        assert distance(turned @ turned.mT, torch.eye(2).double().expand(3, 2, 2)) < 1e-6
        assert not torch.equal(turned[0], turned[1])
        assert tensors["A"].abs().min() > 0


@torch.no_grad()
def test_orthogonal_start_has_orthonormal_rows():
    for tensors in factors(make_bank(tiny_llama(), init_weights="orthogonal")).values():
        assert distance(tensors["A"] @ tensors["A"].T, torch.eye(4)) < 1e-5


# ---- other shapes of input ------------------------------------------------------------------------------------------


class Flattening(nn.Module):
    """Like a mixture-of-experts router: its linear layer sees (batch · seq, d)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.linear = nn.Linear(8, 5)

    def forward(self, input_ids, keep=None):
        flat = self.embed(input_ids).flatten(0, 1)
        return self.linear(flat if keep is None else flat[keep])


def flat_oracle(model, input_ids, per_token):
    base, t = Flattening(), factors(model)["linear"]
    x = base.embed(input_ids).flatten(0, 1)
    return torch.stack(
        [base.linear(x[i]) + 2.0 * t["B"] @ t["core"][task] @ t["A"] @ x[i] for i, task in enumerate(per_token)]
    )


@torch.no_grad()
def test_inputs_flattened_to_tokens_follow_their_rows():
    model = make_bank(Flattening(), target_modules=["linear"])
    input_ids = torch.arange(12).view(3, 4)
    found = model(input_ids=input_ids, task_ids=[2, 0, 1])
    assert distance(found, flat_oracle(model, input_ids, [2] * 4 + [0] * 4 + [1] * 4)) < 1e-5
    per_token = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 2], [0, 0, 0, 1]])
    found = model(input_ids=input_ids, task_ids=per_token)
    assert distance(found, flat_oracle(model, input_ids, per_token.flatten().tolist())) < 1e-5


@pytest.mark.parametrize("task_ids", [[2, 0, 1], torch.zeros(3, 4, dtype=torch.long)])
def test_a_selection_of_tokens_is_refused_rather_than_misrouted(task_ids):
    model = make_bank(Flattening(), target_modules=["linear"])
    with pytest.raises(TaskIdError, match=r"do not fit the input of layer 'linear', of shape \(5, 8\)"):
        model(input_ids=torch.arange(12).view(3, 4), keep=torch.tensor([0, 3, 5, 7, 8]), task_ids=task_ids)


@torch.no_grad()
def test_a_plain_module_outside_transformers():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    first = [p.clone() for p in base.parameters()]
    model = make_bank(base, target_modules=["0", "2"])
    t = factors(model)
    x = torch.randn(3, 6)
    found = model(x, task_ids=["cy", "ada", "bo"])
    for index, task in enumerate([2, 0, 1]):
        w0 = first[0] + 2.0 * t["0"]["B"] @ t["0"]["core"][task] @ t["0"]["A"]
        w2 = first[2] + 2.0 * t["2"]["B"] @ t["2"]["core"][task] @ t["2"]["A"]
        expected = w2 @ (w0 @ x[index] + first[1]).relu() + first[3]
        assert distance(found[index], expected) < 1e-4


def test_encoder_pooler_takes_one_row_per_example():
    """BERT's pooler sees (batch, d): one id per row fits, one id per token cannot."""
    model = make_bank(tiny_bert(), task_type="SEQ_CLS")
    assert any("pooler" in name for name in factors(model))
    with pytest.raises(TaskIdError, match="do not fit"):
        model(**make_inputs("bert"), task_ids=torch.zeros(4, 6, dtype=torch.long))


@torch.no_grad()
def test_the_update_of_a_conv1d_has_the_layout_of_its_weight():
    model = make_bank(tiny_gpt2(), target_modules=["c_attn"])
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert layer.get_delta_weight("default", 1).shape == layer.get_base_layer().weight.shape == (32, 96)


def test_get_peft_model_accepts_tuples_and_sets():
    config = CoLoRAConfig(r=2, tasks=("x", "y"), target_modules={"q_proj", "k_proj"})
    assert config.tasks == ["x", "y"]
    assert len(factors(get_peft_model(tiny_llama(), config))) == 4


def test_the_layer_has_the_shapes_it_declares(monkeypatch):
    """Checked here and not by the import hook of all tests: torch.compile would break its graph at the checks."""
    for name in ("forward", "_add_update", "_mixed", "get_delta_weight"):
        monkeypatch.setattr(CoLoRALinear, name, jaxtyped(getattr(CoLoRALinear, name), typechecker=beartype))
    router = Router()
    router.register("default", TASKS)
    config = CoLoRAConfig(r=2, tasks=TASKS, init_weights=False)
    layer = CoLoRALinear(nn.Linear(7, 5), "default", config, router)
    for ids in (torch.tensor([2, 0]), torch.tensor([[0, 1, 2], [1, 1, 0]]), 1):
        router.current = Routing({"default": ids})
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert layer(torch.randn(2, 3, 7)).shape == (2, 3, 5)
    assert layer.get_delta_weight("default", 1).shape == (5, 7)
    with pytest.raises(TypeCheckError, match="x"):
        layer(torch.ones(2, 3, 7, dtype=torch.long))


@torch.no_grad()
def test_cores_that_start_turned_leave_the_base_model_as_it_is():
    model = make_bank(double("llama"), init_weights=True, init_rotation=0.5)
    inputs = make_inputs()
    assert torch.equal(model(**inputs, task_ids=IDS).logits, double("llama")(**inputs).logits)
    for tensors in factors(model).values():
        core = tensors["core"]
        assert torch.equal(core[:, :2], torch.eye(4).double()[:2].expand(3, 2, 4))
        assert not torch.equal(core[0], core[1])
