"""Gradients of A, B and the cores against a dense float64 oracle; one storage for the shared factors."""

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from tests.helpers.dense_oracle import FAMILIES, TASKS, dense_logits, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama

IDS, OTHER_IDS = [2, 0, 2, 2], [1, 1, 0, 1]
EXACT = 1e-9


def double(family):
    return FAMILIES[family][0](dtype=torch.float64)


def weighted(logits, seed=9):
    """A scalar loss to which every logit contributes its own amount."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)
    return (logits * weights).sum()


def oracle_gradients(family, model, passes):
    """{layer: {"A", "B", "core"}} of gradients of the summed losses of several (ids, inputs, loss seed)."""
    tensors, base = factors(model), double(family).requires_grad_(False)
    sum(weighted(dense_logits(base, tensors, ids, inputs), seed) for ids, inputs, seed in passes).backward()
    return {layer: {name: value.grad for name, value in t.items()} for layer, t in tensors.items()}


def assert_gradients(model, expected):
    for layer, gradients in expected.items():
        found = model.get_submodule(f"base_model.model.{layer}")
        for name, gradient in gradients.items():
            ours = getattr(found, f"colora_{name}")["default"].grad
            assert gradient.abs().max() > 0
            assert distance(ours, gradient) < EXACT * max(1.0, gradient.abs().max().item()), (layer, name)


def cores(model):
    return [value for name, value in model.named_parameters() if "colora_core" in name]


class Calls:
    """Counts how often one adapted layer runs."""

    def __init__(self, model):
        self.count = 0
        layer = next(module for name, module in model.named_modules() if hasattr(module, "colora_core"))
        layer.register_forward_hook(self)

    def __call__(self, *_):
        self.count += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_dense_weights(family):
    model = make_bank(double(family), task_type=FAMILIES[family][1])
    inputs = make_inputs(family)
    weighted(model(**inputs, task_ids=IDS).logits).backward()
    assert_gradients(model, oracle_gradients(family, model, [(IDS, inputs, 9)]))


def test_absent_tasks_have_gradients_of_exactly_zero():
    model = make_bank(tiny_llama())
    weighted(model(**make_inputs(), task_ids=IDS).logits).backward()
    for core in cores(model):
        assert torch.equal(core.grad[1], torch.zeros(4, 4))
        assert core.grad[[0, 2]].abs().amax((1, 2)).min() > 0


def test_one_task_for_the_whole_batch_gets_all_of_the_gradient():
    model = make_bank(double("llama"))
    inputs = make_inputs()
    model.set_task("bo")
    weighted(model(**inputs).logits).backward()
    expected = oracle_gradients("llama", model, [([1] * 4, inputs, 9)])
    assert_gradients(model, expected)
    assert all(torch.equal(core.grad[[0, 2]], torch.zeros(2, 4, 4).double()) for core in cores(model))


def test_gradients_per_token_in_packed_rows():
    """Two examples of two tasks packed into one row have the gradients of the same two examples in two rows."""
    model = make_bank(double("llama"))
    inputs = make_inputs(rows=2)
    block = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)).tril().bool()[None, None]
    logits = model(
        input_ids=inputs["input_ids"].view(1, 12),
        attention_mask=torch.zeros(1, 1, 12, 12).double().masked_fill(~block, torch.finfo(torch.float64).min),
        position_ids=torch.arange(6).repeat(2)[None],
        task_ids=torch.tensor([[0] * 6 + [2] * 6]),
    ).logits
    weighted(logits.view(2, 6, -1)).backward()
    assert_gradients(model, oracle_gradients("llama", model, [([0, 2], inputs, 9)]))


def test_only_the_bank_is_trained():
    model = make_bank(tiny_llama())
    assert all(value.requires_grad == ("colora_" in name) for name, value in model.named_parameters())


# ---- gradient checkpointing -----------------------------------------------------------------------------------------


def checkpointed(family, use_reentrant, before_wrapping=False, **config):
    base = double(family)
    settings = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    if before_wrapping:
        base.gradient_checkpointing_enable(**settings)  # PEFT makes the embeddings require gradients
        model = make_bank(base, task_type=FAMILIES[family][1], **config)
    else:
        model = make_bank(base, task_type=FAMILIES[family][1], **config)
        model.gradient_checkpointing_enable(**settings)
        model.enable_input_require_grads()
    return model.train()


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_keeps_ids_although_another_forward_ran_before_backward(family, use_reentrant):
    model = checkpointed(family, use_reentrant)
    calls = Calls(model)
    first, second = make_inputs(family), make_inputs(family, seed=6)
    loss = weighted(model(**first, task_ids=IDS).logits, 9) + weighted(model(**second, task_ids=OTHER_IDS).logits, 10)
    assert calls.count == 2
    loss.backward()
    assert calls.count == 4  # both were recomputed
    assert_gradients(model, oracle_gradients(family, model, [(IDS, first, 9), (OTHER_IDS, second, 10)]))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_enabled_before_wrapping(use_reentrant):
    model = checkpointed("llama", use_reentrant, before_wrapping=True)
    calls, inputs = Calls(model), make_inputs()
    loss = weighted(model(**inputs, task_ids=IDS).logits)
    with torch.no_grad():
        model(**make_inputs(seed=6), task_ids=OTHER_IDS)
    loss.backward()
    assert calls.count == 3
    assert_gradients(model, oracle_gradients("llama", model, [(IDS, inputs, 9)]))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_keeps_the_task_that_was_set_in_forward(use_reentrant):
    model = checkpointed("llama", use_reentrant)
    inputs = make_inputs()
    model.set_task("ada")
    loss = weighted(model(**inputs).logits)
    model.set_task("cy")
    loss.backward()
    assert_gradients(model, oracle_gradients("llama", model, [([0] * 4, inputs, 9)]))
    assert all(torch.equal(core.grad[1:], torch.zeros(2, 4, 4).double()) for core in cores(model))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_of_a_bank_with_one_task_and_no_ids(use_reentrant):
    model = checkpointed("llama", use_reentrant, tasks=["only"])
    inputs = make_inputs()
    weighted(model(**inputs).logits).backward()
    assert_gradients(model, oracle_gradients("llama", model, [([0] * 4, inputs, 9)]))


def test_checkpointing_enabled_again_after_training_began():
    """transformers then puts a fresh, unwrapped function on every block."""
    model = checkpointed("llama", True)
    model(**make_inputs(), task_ids=IDS)
    model.gradient_checkpointing_disable()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = make_inputs()
    loss = weighted(model(**inputs, task_ids=IDS).logits)
    model(**inputs, task_ids=OTHER_IDS)
    loss.backward()
    assert_gradients(model, oracle_gradients("llama", model, [(IDS, inputs, 9)]))


def test_backward_may_run_while_generation_has_its_own_tasks():
    """Evaluation by generation between forward and backward, as callbacks do."""
    model = checkpointed("llama", False)
    inputs = make_inputs()
    loss = weighted(model(**inputs, task_ids=IDS).logits)
    model.eval()
    model.generate(inputs["input_ids"], task_ids=OTHER_IDS, max_new_tokens=2, do_sample=False)
    model.train()
    loss.backward()
    assert_gradients(model, oracle_gradients("llama", model, [(IDS, inputs, 9)]))


# ---- sharing --------------------------------------------------------------------------------------------------------


def test_factors_are_stored_once_for_all_tasks(tmp_path):
    model = make_bank(tiny_llama())
    stored = {name: value for name, value in model.named_parameters() if "colora_" in name}
    assert len(stored) == 14 * 3
    assert len({value.data_ptr() for value in stored.values()}) == 14 * 3

    def shared():
        return {name: value.data_ptr() for name, value in stored.items() if "colora_core" not in name}

    before, objects = shared(), {name: id(value) for name, value in model.named_parameters() if "colora_" in name}
    model.add_tasks(["dee", "eli"])
    assert shared() == before
    assert {name: id(value) for name, value in model.named_parameters() if "colora_" in name} == objects
    assert all(core.shape == (5, 4, 4) for core in cores(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    kinds = [name.rsplit(".", 1)[-1] for name in saved]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"colora_A": 14, "colora_B": 14, "colora_core": 14}


def test_size_grows_by_a_core_per_task_and_layer():
    one, many = (make_bank(tiny_llama(), tasks=[f"t{i}" for i in range(count)]) for count in (1, 51))
    sizes = [sum(value.numel() for value in get_peft_model_state_dict(model).values()) for model in (one, many)]
    assert sizes[1] - sizes[0] == 50 * 14 * 4 * 4


def test_stock_adamw_trains_a_bank():
    model = make_bank(tiny_llama(), init_weights=True).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.0)
    inputs, first = make_inputs(), None
    before = [core.detach().clone() for core in cores(model)]
    for _ in range(30):
        loss = model(**inputs, labels=inputs["input_ids"], task_ids=[TASKS[i] for i in IDS]).loss
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.3
    for core, old in zip(cores(model), before, strict=True):
        assert torch.equal(core[1], old[1])  # never in a batch, no weight decay
        assert distance(core[2], core[0]) > 1e-3
