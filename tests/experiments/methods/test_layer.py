"""The one layer of all methods against CoLoRA's own layer and PEFT's LoRA, and putting it on and taking it off."""

from copy import deepcopy

import peft
import pytest
import torch
import torch.nn.functional as F

from colora.adapter.config import CoLoRAConfig
from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router
from colora.adapter.routing import Routing
from colora.errors import ConfigError, TaskIdError
from colora.experiments.methods.attach import attached
from colora.experiments.methods.data import step_rows
from colora.experiments.methods.layer import ConstrainedLinear
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.runner import find_method
from colora.experiments.methods.train import train
from colora.tasks.encode import IGNORED
from tests.helpers.method_trials import close, make_trial, real
from tests.helpers.reference_methods import ALPHA, CLIENTS, LAYERS, RANK, Toy, exact_llama, rate_at
from tests.helpers.tiny import tiny_gpt2, tiny_llama

INPUTS, OUTPUTS, ROWS, WORDS = 5, 4, 2, 3


def filled(method, ranks, scale=1.5, seed=0):
    """A float64 layer of this method in which no part is zero."""
    torch.manual_seed(seed)
    base = torch.nn.Linear(INPUTS, OUTPUTS).double().requires_grad_(False)
    layer = ConstrainedLinear(base, METHODS[method].terms, ranks, CLIENTS, scale).double()
    for term in layer.term_layers():
        for _, tensor in term.parts():
            tensor.data.normal_()
    return layer


def blocks(seed=1):
    return torch.randn(
        CLIENTS * ROWS, WORDS, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_colora_is_the_layer_of_the_library():
    ours = filled("colora", [RANK])
    (term,) = ours.term_layers()
    names = list("abc")
    router = Router()
    router.register("default", names)
    config = CoLoRAConfig(r=RANK, lora_alpha=1.5 * RANK, tasks=names)
    theirs = CoLoRALinear(ours.base, "default", config, router).double()
    theirs.colora_A["default"].data.copy_(term.A[0])
    theirs.colora_B["default"].data.copy_(term.B[0])
    theirs.colora_core["default"].data.copy_(term.core)
    router.current = Routing({"default": torch.arange(CLIENTS).repeat_interleave(ROWS)})
    x, y = (blocks().requires_grad_() for _ in range(2))
    weights = torch.randn(CLIENTS * ROWS, WORDS, OUTPUTS, dtype=torch.float64)
    one, two = ours(x), theirs(y)
    close(one, two, "outputs")
    (one * weights).sum().backward()
    (two * weights).sum().backward()
    close(x.grad, y.grad, "x")
    close(term.A.grad[0], theirs.colora_A["default"].grad, "A")
    close(term.B.grad[0], theirs.colora_B["default"].grad, "B")
    close(term.core.grad, theirs.colora_core["default"].grad, "core")


@pytest.mark.parametrize("method", ["local", "pooled", "colora", "colora-diagonal", "colora-residual", "fed-sb"])
def test_layer_is_the_dense_product(method):
    """W_k = W0 + W+ + s Σ B Λ A for rows of two and of three dimensions, the folded part and a bias included."""
    layer = filled(method, [RANK] * len(METHODS[method].terms))
    layer.folded = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    x = blocks()
    for k in range(CLIENTS):
        W = layer.base.weight + layer.folded
        for term in layer.term_layers():
            A, B = term.A[k % len(term.A)], term.B[k % len(term.B)]
            core = torch.eye(RANK).double() if term.core is None else term.core[k % len(term.core)]
            W = W + layer.scale * B @ (core.diag() if core.ndim == 1 else core) @ A
            left, right = term.factors(k)
            close(left @ right, B @ (core.diag() if core.ndim == 1 else core) @ A, "factors")
        own = slice(k * ROWS, (k + 1) * ROWS)
        close(layer(x)[own], x[own] @ W.T + layer.base.bias, (method, k))
        close(layer(x[:, 0])[own], x[own, 0] @ W.T + layer.base.bias, (method, k))


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_rows_that_are_not_equal_blocks_are_refused(rows):
    with pytest.raises(TaskIdError, match=f"expected 3 equal blocks of rows, one a task, found {rows} rows"):
        filled("local", [RANK])(torch.zeros(rows, WORDS, INPUTS).double())


def peft_lora(toy, start, client):
    """PEFT's LoRA on a copy of the base, from the same initial A and B."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[name.split(".")[1] for name in LAYERS])
    model = peft.get_peft_model(deepcopy(toy.base), config, autocast_adapter_dtype=False).double()
    for name, layer in start.items():
        (term,) = layer.term_layers()
        found = model.get_submodule(f"base_model.model.{name}")
        found.lora_A["default"].weight.data.copy_(term.A[client % len(term.A)])
        found.lora_B["default"].weight.data.copy_(term.B[client % len(term.B)])
    return model


def mean_nats(model, rows):
    """Mean nats per answer token, row by row."""
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        total = total + F.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum")
    return total / sum(row.answer_tokens for row in rows)


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_peft_and_torch_train_the_same(method):
    """Local LoRA in one batched run is K separate runs of PEFT with torch's AdamW; pooled LoRA is one of all rows."""
    toy = Toy(make_trial(method, steps=5))
    with real(toy) as (layers, forward):
        alone = [peft_lora(toy, layers, k) for k in (toy.clients if method == "local" else [0])]
        train(METHODS[method], layers, forward, toy.rows, toy.trial)
        for place, model in enumerate(alone):
            optimizer = torch.optim.AdamW(
                (p for p in model.parameters() if p.requires_grad),
                weight_decay=toy.trial.weight_decay,
                betas=(0.9, 0.95),
            )
            for step in range(toy.trial.steps):
                batch = step_rows(toy.rows, 2, step, toy.trial.seed)
                clients = [place] if method == "local" else toy.clients
                loss = sum(mean_nats(model, batch[2 * k : 2 * k + 2]) for k in clients)
                optimizer.zero_grad()
                loss.backward()
                optimizer.param_groups[0]["lr"] = rate_at(toy.trial.lr, step, toy.trial)
                optimizer.step()
            for name, layer in layers.items():
                (term,) = layer.term_layers()
                found = model.get_submodule(f"base_model.model.{name}")
                close(term.A[place], found.lora_A["default"].weight, (name, "A"))
                close(term.B[place], found.lora_B["default"].weight, (name, "B"))


# ---- on and off -----------------------------------------------------------------------------------------------------


def picture(model):
    return {name: id(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["base", "colora", "fed-sb", "fedex-lora"])
def test_the_model_is_as_before_afterwards(method, fails):
    toy = Toy(make_trial(method), first_layer=1)
    ids = torch.arange(10, 22).view(CLIENTS, 4)
    modules, state = picture(toy.model), {name: value.clone() for name, value in toy.model.state_dict().items()}
    with torch.no_grad():
        before = toy.model(ids).logits
    try:
        with real(toy) as (layers, forward):
            if METHODS[method].terms:
                train(METHODS[method], layers, forward, toy.rows, toy.trial)
                with torch.no_grad():
                    assert not torch.allclose(toy.model(ids).logits, before)
            if fails:
                raise KeyError("in the middle")
    except KeyError:
        assert fails
    assert picture(toy.model) == modules
    assert all(torch.equal(value, state[name]) for name, value in toy.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(toy.model(ids).logits, before)


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_trainable_is_trainable_again(fails):
    model = exact_llama()
    model.model.embed_tokens.requires_grad_(False)
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    assert set(before.values()) == {False, True}
    try:
        with attached(model, METHODS["colora"], 0, CLIENTS, RANK, ALPHA, {}):
            trained = {name.rsplit(".", 1)[-1] for name, value in model.named_parameters() if value.requires_grad}
            assert trained == {"A", "B", "core"}
            if fails:
                raise KeyError("in the middle")
    except KeyError:
        assert fails
    assert {name: value.requires_grad for name, value in model.named_parameters()} == before


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_adapters_sit_on_the_upper_layers_alone(first_layer):
    model = exact_llama(layers=3)
    with attached(model, METHODS["local"], first_layer, CLIENTS, RANK, ALPHA, {}) as layers:
        assert list(layers) == [f"model.layers.{i}.{name}" for i in range(first_layer, 3) for name in LAYERS]


# ---- what cannot be -------------------------------------------------------------------------------------------------


def refusal(method="colora", model=None, first_layer=0, rank=RANK, options=None):
    model = exact_llama() if model is None else model
    modules = picture(model)
    attaching = attached(model, find_method(method), first_layer, CLIENTS, rank, ALPHA, options or {})
    with pytest.raises(ConfigError) as caught, attaching:
        pass
    assert picture(model) == modules
    return str(caught.value)


def test_rank_larger_than_a_layer():
    assert refusal(rank=5) == "rank 5 of method 'colora' is larger than layer 'model.layers.0.self_attn.k_proj' (4 × 8)"
    assert "rank 9 of method 'colora-residual'" in refusal("colora-residual", options={"residual_rank": 9})


def test_unknown_options_are_listed_with_the_known_ones():
    message = refusal("colora-mean", options={"push": 1, "drag": 2, "pull": 3})
    assert message == "unknown option 'drag', 'push' of method 'colora-mean': expected some of pull, release, rotated"
    assert refusal("local", options={"pull": 1}) == "unknown option 'pull' of method 'local': it takes none"
    message = refusal(options={"pull": 1, "release": 1.5})
    assert message == "option 'release': expected a share between 0 and 1, found 1.5"


def test_defaults_of_options():
    assert METHODS["colora-alternating"].with_defaults({}) == {"turn": 5, "pull": 0.0, "release": 1.0, "rotated": 0.0}
    assert METHODS["colora-mean"].with_defaults({"pull": 2.5}) == {"pull": 2.5, "release": 1.0, "rotated": 0.0}
    assert METHODS["local"].with_defaults({}) == {}


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        find_method("lora")
    assert str(caught.value) == f"unknown method 'lora'; known: {', '.join(METHODS)}"


def test_models_without_a_stack_of_layers_and_layers_that_are_not_there():
    assert refusal(first_layer=1) == "first_layer: expected at most 0, found 1"
    assert "expected a causal model whose decoder has `layers`" in refusal(model=tiny_gpt2())
    assert "found Linear" in refusal(model=torch.nn.Linear(2, 2))
    assert "first_layer: expected at most 1, found 2" in refusal(model=tiny_llama(), first_layer=2)


@pytest.mark.parametrize("method", ["colora", "fed-colora"])
def test_cores_that_start_turned_leave_the_base_and_a_as_they_were(method):
    model = tiny_llama()
    found = {}
    for rotated in (0.0, 0.5):
        torch.manual_seed(7)
        with attached(model, METHODS[method], 0, 3, 4, 4.0, {"rotated": rotated}) as layers:
            found[rotated] = [
                {part: tensor.detach().clone() for part, tensor in layer.term_layers()[0].parts()}
                for layer in layers.values()
            ]
    for plain, turned in zip(found[0.0], found[0.5], strict=True):
        assert torch.equal(plain["A"], turned["A"])
        assert not turned["B"].any()
        assert torch.equal(plain["core"], torch.eye(4).expand(3, 4, 4))
        assert torch.equal(turned["core"][:, :2], torch.eye(4)[:2].expand(3, 2, 4))
        assert (turned["core"][0] - turned["core"][1]).abs().max() > 0.1
    first, second = (layer["core"][0] for layer in found[0.5][:2])
    assert not torch.equal(first, second)
