"""The lower activations that are kept, and the order of rows."""

import numpy as np
import pytest
import torch
from torch import nn

from colora.experiments.methods.data import step_rows
from colora.experiments.methods.forward import SplitForward
from colora.experiments.methods.registry import METHODS
from tests.helpers.method_trials import close, make_trial, real, run, values_of
from tests.helpers.reference_methods import Toy, exact_llama, toy_rows


def rows_of(toy):
    return [row for own in toy.rows for row in own[:3]]


@pytest.mark.parametrize("first_layer", [1, 2])
def test_split_pass_has_the_likelihood_and_the_gradients_of_the_plain_one(first_layer):
    toy = Toy(make_trial("colora"), first_layer)
    plain = SplitForward(toy.model, first_layer)
    with real(toy) as (layers, forward):
        for layer in layers.values():
            for tensor in layer.terms.parameters():
                tensor.data.normal_(std=0.3)
        assert forward.splits
        plain.splits = False
        one, two = forward.row_nll(rows_of(toy)), plain.row_nll(rows_of(toy))
        close(one, two, "nats")
        places = [tensor for layer in layers.values() for tensor in layer.terms.parameters()]
        weights = torch.arange(1.0, 10.0).double()
        found = torch.autograd.grad((one * weights).sum(), places)
        for ours, theirs in zip(found, torch.autograd.grad((two * weights).sum(), places), strict=True):
            assert theirs.any()
            close(ours, theirs, "gradient")
        # Kept rows among other rows, and so with other padding, are the same.
        for place in range(3):
            close(forward.row_nll(rows_of(toy)[place::3]), two[place::3], place)
        assert len(forward.kept) == len({row.input_ids for row in rows_of(toy)})
        assert not plain.kept


@pytest.mark.parametrize("method", ["colora", "fed-sb"])
def test_split_pass_trains_to_the_same(method):
    ended = []
    for splits in (True, False):
        toy = Toy(make_trial(method, steps=5), first_layer=1)
        forward = SplitForward(toy.model, 1)
        assert forward.splits
        forward.splits = splits
        with real(toy, forward) as (layers, _):
            done = run(toy, layers, forward)
            ended.append((values_of(layers), done.losses))
        assert bool(forward.kept) == splits
    (one, losses), (two, others) = ended
    assert dict(losses) == pytest.approx(dict(others), abs=1.01e-5)
    for name, value in one.items():
        close(value, two[name], name)


def test_training_does_not_touch_what_is_kept():
    toy = Toy(make_trial("colora", steps=3), first_layer=1)
    forward = SplitForward(toy.model, 1)
    with torch.no_grad():
        before = forward.row_nll(rows_of(toy))
    with real(toy, forward) as (layers, _):
        run(toy, layers, forward)
        assert not torch.allclose(forward.row_nll(rows_of(toy)), before)
    with torch.no_grad():
        assert torch.equal(forward.row_nll(rows_of(toy)), before)
    assert not any(state.requires_grad for state in forward.kept.values())


def test_a_model_that_scales_what_it_is_given_runs_plainly():
    """As Gemma: also `inputs_embeds` are scaled, which kept activations must not be."""
    model = exact_llama(layers=2)
    model.model.register_forward_pre_hook(scale_embeddings, with_kwargs=True)
    forward = SplitForward(model, 1)
    assert not forward.splits
    assert not forward.kept
    with torch.no_grad():
        rows = toy_rows()[0]
        ids, labels = torch.tensor([rows[0].input_ids]), rows[0].labels
        logits = model(ids).logits[0].log_softmax(-1)
        expected = -sum(logits[t, labels[t + 1]] for t in range(len(labels) - 1) if labels[t + 1] >= 0)
        close(forward.row_nll(rows[:1])[0], expected, "nats")


def scale_embeddings(decoder, args, kwargs):
    given = kwargs.get("inputs_embeds")
    if given is None:
        given = decoder.embed_tokens(kwargs.pop("input_ids", None) if not args else args[0])
    return (), kwargs | {"inputs_embeds": given * 3.0}


def test_a_model_that_caps_its_logits_runs_plainly():
    class Capped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = exact_llama(layers=2)
            self.config = self.inner.config

        def get_decoder(self):
            return self.inner.get_decoder()

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.logits = torch.tanh(output.logits)
            return output

    assert not SplitForward(Capped(), 1).splits


def test_a_decoder_without_a_last_norm_runs_plainly():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = exact_llama(layers=2)
            self.config = self.inner.config
            self.stack = nn.Module()
            self.stack.layers = self.inner.model.layers

        def get_decoder(self):
            return self.stack

        def forward(self, **inputs):
            return self.inner(**inputs)

    model, rows = Elsewhere(), toy_rows()[0]
    forward = SplitForward(model, 1)
    assert not forward.splits
    with torch.no_grad():
        close(forward.row_nll(rows), SplitForward(model.inner, 0).row_nll(rows), "nats")


def test_without_lower_layers_nothing_is_kept():
    forward = SplitForward(exact_llama(layers=2), 0)
    assert not forward.splits
    with torch.no_grad():
        forward.row_nll(toy_rows()[0])
    assert not forward.kept


def test_the_check_leaves_the_model_as_it_was():
    model = exact_llama(layers=2).train()
    modules = {name: id(module) for name, module in model.named_modules()}
    SplitForward(model, 1)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert all(module.training for module in model.modules())


# ---- rows -----------------------------------------------------------------------------------------------------------


def passes(rows, task, per_task, steps, seed=0):
    """The rows of one task in the order in which they come."""
    return [
        row
        for step in range(steps)
        for row in step_rows(rows, per_task, step, seed)[task * per_task : (task + 1) * per_task]
    ]


@pytest.mark.parametrize("per_task", [1, 2, 3, 7])
def test_every_pass_sees_every_example_once(per_task):
    rows = toy_rows((4, 5, 3))
    for task, own in enumerate(rows):
        order = passes(rows, task, per_task, 40)
        for start in range(0, 12 * len(own), len(own)):
            part = order[start : start + len(own)]
            if len(part) == len(own):
                assert sorted(part, key=str) == sorted(own, key=str)
    assert passes(rows, 1, per_task, 40)[:5] != passes(rows, 1, per_task, 40)[5:10], "passes are shuffled anew"


def test_order_is_that_of_the_seed_and_the_place_alone():
    rows = toy_rows((4, 5, 3))
    assert passes(rows, 1, 2, 9) == passes(rows, 1, 2, 9)
    assert passes(rows, 1, 2, 9) != passes(rows, 1, 2, 9, seed=1)
    others = [rows[2], rows[1], rows[0] * 7, rows[0]]
    assert passes(rows, 1, 2, 9) == passes(others, 1, 2, 9)
    assert passes(rows, 1, 2, 9) == passes(rows, 1, 1, 18), "not of how many rows a step has"
    np.random.seed(0)
    torch.manual_seed(1)
    assert passes(rows, 1, 2, 9) == passes(rows, 1, 2, 9)
    same = [rows[1], rows[1]]
    assert passes(same, 0, 1, 25) != passes(same, 1, 1, 25), "two tasks do not share an order"


def test_blocks_stand_in_the_order_of_the_tasks():
    rows = toy_rows((4, 5, 3))
    batch = step_rows(rows, 2, 3, 0)
    assert [next(k for k, own in enumerate(rows) if row in own) for row in batch] == [0, 0, 1, 1, 2, 2]


def test_all_methods_see_the_same_rows(monkeypatch):
    seen = {}
    for method in ("local", "colora", "fedit"):
        toy = Toy(make_trial(method, steps=4))
        with real(toy) as (layers, forward):
            plain = forward.row_nll
            monkeypatch.setattr(
                forward,
                "row_nll",
                lambda rows, plain=plain, m=method: seen.setdefault(m, []).append(rows) or plain(rows),
            )
            run(toy, layers, forward)
    assert METHODS["fedit"].federated
    assert len(seen["local"]) == 4
    assert seen["local"] == seen["colora"] == seen["fedit"]
