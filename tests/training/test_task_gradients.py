"""The tasks' gradients in low rank, against dense ones by autograd of the weights."""

import pytest
import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.errors import ConfigError
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Example, Task
from colora.training.task_gradients import reduced, task_gradients
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TOKENIZER = tiny_tokenizer()
NAMES = ["red", "blue"]


def tasks(sizes=(5, 3)):
    rows = {"red": lambda i: Example(f"r{i}" * (1 + i), ("rot" * (1 + i % 2),)),
            "blue": lambda i: Example(f"question {i}", ("blau!",))}  # fmt: skip
    return [
        Task(name, {"train": tuple(rows[name](i) for i in range(size)), "val": (), "test": ()}, "", None)
        for name, size in zip(NAMES, sizes, strict=True)
    ]


def bank(make=tiny_llama, trained=True, **options):
    """A bank whose cores and B are random, as after training, or a new one."""
    model = make()
    torch.manual_seed(1)
    return get_peft_model(model, CoLoRAConfig(r=3, tasks=NAMES, init_weights=not trained, **options)).eval()


def encoded(model, sizes=(5, 3)):
    return encode_tasks(tasks(sizes), TOKENIZER, "train", 96, is_encoder_decoder(model))


def dense(model, data, task, rows=16):
    """The gradient of each adapted weight, (d_out, d_in), of the mean nats per token; and these."""
    layers = bank_layers(model, "default")
    weights = [layer.base_layer.weight for layer in layers.values()]
    for weight in weights:
        weight.requires_grad_(True)
    start, size = data.offsets[task], data.sizes[task]
    batch = TaskCollator(0)([data[start + row] for row in range(min(rows, size))])
    labels = batch.pop("labels")
    loss = row_nll(model, batch, labels).sum() / label_tokens(labels, is_encoder_decoder(model)).sum()
    found = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    turned = {name: one.T if layers[name].transposed else one for name, one in zip(layers, found, strict=True)}
    return turned, float(loss.detach())


def gradients(model, data, **options):
    return task_gradients(model, data, NAMES, 0, **{"rank": 64} | options)


def assert_equal(found, expected, task, tolerance=2e-5):
    assert found.factors.keys() == expected.keys()
    for name, whole in expected.items():
        B, A = (factor[task] for factor in found.factors[name])
        torch.testing.assert_close(B @ A, whole, atol=tolerance * float(whole.norm()), rtol=0, msg=name)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_t5])
@pytest.mark.parametrize("trained", [False, True])
def test_gradients_in_full_rank_are_the_dense_ones(make, trained):
    model = bank(make, trained)
    data = encoded(model)
    found = gradients(model, data)
    for task in range(2):
        expected, loss = dense(model, data, task)
        assert_equal(found, expected, task)
        assert float(found.loss[task]) == pytest.approx(loss, rel=1e-5)


def test_micro_batches_and_padding_change_nothing():
    model = bank()
    data = encoded(model)
    whole, parts = gradients(model, data), gradients(model, data, batch=2)
    single = gradients(model, data, batch=1)  # nothing is padded
    for task in range(2):
        expected, _ = dense(model, data, task)
        for found in (whole, parts, single):
            assert_equal(found, expected, task)
    torch.testing.assert_close(whole.loss, single.loss)


def test_only_the_first_rows_count():
    model = bank()
    data = encoded(model)
    found = gradients(model, data, rows=2)
    assert_equal(found, dense(model, data, 0, rows=2)[0], 0)


def test_shapes_orthonormal_columns_and_zeros_where_there_is_no_direction():
    model = bank()
    data = encoded(model, (5, 1))
    for rank in (2, 64):
        for name, (B, A) in gradients(model, data, rank=rank).factors.items():
            layer = bank_layers(model, "default")[name]
            assert B.shape == (2, layer.out_features, rank)
            assert A.shape == (2, rank, layer.in_features)
            used = B.any(1)
            assert not A[~used].any()
            torch.testing.assert_close(B.mT @ B, torch.diag_embed(used.float()), atol=1e-5, rtol=0)


def test_a_task_may_have_another_index_in_the_bank():
    model = bank()
    data = encoded(model)
    swapped = gradients(model, data, task_index=[1, 0])
    items = [dict(data[0 + row], task_ids=1) for row in range(5)]
    batch = TaskCollator(0)(items)
    labels = batch.pop("labels")
    with torch.no_grad():
        nats = row_nll(model, batch, labels).sum() / label_tokens(labels, False).sum()
    assert float(swapped.loss[0]) == pytest.approx(float(nats), rel=1e-5)
    assert [data[row]["task_ids"] for row in range(8)] == [0] * 5 + [1] * 3


def test_a_task_in_a_new_bank_has_the_same_gradient_at_every_index():
    model = bank(trained=False)
    data = encoded(model)
    one, other = gradients(model, data), gradients(model, data, task_index=[1, 0])
    for name in one.factors:
        assert torch.equal(one.factors[name][1], other.factors[name][1])


@pytest.mark.parametrize("inference", [False, True])
def test_nothing_in_the_model_changes(inference):
    model = bank(lora_dropout=0.5, inference_mode=inference)
    model.train()
    model.get_base_model().model.layers[0].eval()  # put to rest by somebody
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()

    def everything():
        return (
            {n: (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone())
             for n, p in model.named_parameters()},
            {n: (m.training, len(m._forward_hooks)) for n, m in model.named_modules()},
        )  # fmt: skip

    parameters, modules = everything()
    found = gradients(model, encoded(model))
    again = gradients(model, encoded(model))
    after, modules_after = everything()
    assert modules == modules_after
    for name, (value, asks, grad) in parameters.items():
        assert torch.equal(value, after[name][0])
        assert asks == after[name][1]
        assert grad is None or torch.equal(grad, after[name][2])
    assert inference == (not any(asks for _, asks, _ in parameters.values()))
    assert torch.equal(state, torch.get_rng_state())
    for name in found.factors:  # dropout is off, and the random start is always the same
        assert torch.equal(found.factors[name][1], again.factors[name][1])


def test_gradients_are_taken_inside_no_grad_too():
    model = bank()
    with torch.no_grad():
        found = gradients(model, encoded(model))
    assert_equal(found, dense(model, encoded(model), 0)[0], 0)


def test_what_backward_does_not_reach_has_no_gradient(monkeypatch):
    model = bank()
    layer = model.get_base_model().model.layers[1].mlp
    monkeypatch.setattr(layer, "forward", lambda x: x)
    found = gradients(model, encoded(model))
    assert not found.factors["model.layers.1.mlp.up_proj"][1].any()
    assert found.factors["model.layers.0.mlp.up_proj"][1].any()


def test_nan_is_refused_and_leaves_the_model_as_it_was():
    model = bank(inference_mode=True)
    model.train()
    with torch.no_grad():
        bank_layers(model, "default")["model.layers.0.mlp.up_proj"].colora_core["default"][1] = float("nan")
    with pytest.raises(ConfigError, match="task 'blue': its loss or its gradient is NaN"):
        gradients(model, encoded(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(layer._forward_hooks for layer in bank_layers(model, "default").values())


def test_a_task_without_examples_is_refused():
    model = bank()
    with pytest.raises(ConfigError, match="these tasks have none: blue"):
        gradients(model, encoded(model, (2, 0)))


# ---- the reduction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_reduction_is_near_the_best_approximation(tokens):
    torch.manual_seed(0)
    decay = torch.logspace(0, -2, 20)
    deltas = torch.randn(tokens, 20) * decay
    inputs = torch.randn(tokens, 30)
    whole = deltas.T @ inputs
    for rank in (1, 4, 20, 25):
        B, A = reduced(deltas, inputs, rank)
        assert (B.shape, A.shape) == ((20, rank), (rank, 30))
        best = torch.linalg.svdvals(whole)[rank:].norm()
        assert (whole - B @ A).norm() <= 1.25 * best + 1e-5 * whole.norm()


def test_the_reduction_of_nothing_is_nothing():
    B, A = reduced(torch.zeros(0, 5), torch.zeros(0, 6), 3)
    assert (B.shape, A.shape) == ((5, 3), (3, 6))
    assert not B.any()
    assert not A.any()
