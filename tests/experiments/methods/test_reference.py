"""Every method of the comparison against its reference implementation: plain float64 loops of its formula."""

import pytest
import torch

from colora.experiments.methods.registry import METHODS
from tests.helpers.method_trials import RANKS, close, effective, make_trial, real, run, values_of
from tests.helpers.reference_methods import CLIENTS, RANK, REFERENCES, Toy


@pytest.mark.parametrize("first_layer", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_method_equals_its_reference(method, first_layer):
    toy = Toy(make_trial(method), first_layer)
    with real(toy) as (layers, forward):
        assert forward.splits == (first_layer > 0)
        assert list(layers) == toy.layers
        start = values_of(layers)
        done = run(toy, layers, forward)
        reference = REFERENCES[method](toy, start)
        ended = values_of(layers)
        for name, layer in layers.items():
            for k, weight in enumerate(effective(layer)):
                close(weight, reference.weights[k][name], (name, k))
                if METHODS[method].terms:
                    assert not torch.allclose(weight, toy.W0[name], rtol=1e-3), "nothing was learnt"
            if reference.folded is None:
                assert layer.folded is None
            else:
                close(layer.folded, reference.folded[name], (name, "folded"))
                assert reference.folded[name].abs().max() > 1e-6
        for k, held in enumerate(reference.held):
            if method in RANKS:
                assert held["A", toy.layers[0]].shape[0] == RANKS[method]
            assert len(held) * CLIENTS == len(ended)
            for (part, layer), value in held.items():
                close(ended[part, layer, k], value, (part, layer, k))
        with torch.no_grad():
            rows = [row for own in toy.rows for row in own[:2]]
            found = forward.row_nll(rows)
            for place, row in enumerate(rows):
                close(found[place], toy.nats(row, reference.weights[place // 2]), place)
    assert [step for step, _ in done.losses] == list(range(toy.trial.steps if METHODS[method].terms else 0))
    for step, loss in done.losses:
        assert loss == pytest.approx(reference.losses[step], abs=1.01e-5)
    assert done.rounds == (3 if METHODS[method].federated else 0)


def test_every_method_has_a_reference():
    assert list(REFERENCES) == list(METHODS)


# ---- starts ---------------------------------------------------------------------------------------------------------

KAIMING = [name for name, method in METHODS.items() if method.start == "kaiming" and method.terms]


@pytest.mark.parametrize("method", KAIMING)
def test_start_is_that_of_lora(method):
    """A uniform within 1/√d_in, B = 0, Λ = I; a server sends all clients one A, and local adapters differ."""
    toy = Toy(make_trial(method))
    with real(toy) as (layers, _):
        for (part, layer, _), value in values_of(layers).items():
            if part[0] == "A":
                bound = layers[layer].base.in_features ** -0.5
                assert bound / 2 < value.abs().max() <= bound
            elif part[0] == "B":
                assert not value.any()
            else:
                assert torch.equal(value, torch.eye(RANK).double() if value.ndim == 2 else torch.ones(RANK).double())
        first = layers[toy.layers[0]].term_layers()[0].A
        if len(first) > 1:
            assert torch.equal(first[0], first[1]) == METHODS[method].federated
        assert not torch.equal(first[0], layers[toy.layers[1]].term_layers()[0].A[0]), "two layers with one start"
        for name, layer in layers.items():
            close(effective(layer), toy.W0[name].expand(CLIENTS, -1, -1), name)


def test_lora_xs_starts_at_the_leading_part_of_the_weight():
    toy = Toy(make_trial("lora-xs"))
    with real(toy) as (layers, _):
        cores = []
        for name, layer in layers.items():
            (term,) = layer.term_layers()
            U, S, Vh = torch.linalg.svd(toy.W0[name])
            close(term.B[0] @ term.A[0], U[:, :RANK] * S[:RANK] @ Vh[:RANK], name)
            close(term.A[0] @ term.A[0].T, torch.eye(RANK).double(), name)
            close(term.B[0].T @ term.B[0], S[:RANK].square().diag(), name)
            cores.append(term.core.detach().flatten())
            assert not torch.equal(term.core[0], term.core[1])
        assert torch.cat(cores).std().item() == pytest.approx(1e-5, rel=0.3)


def test_fed_sb_starts_at_the_first_clients_gradient():
    toy = Toy(make_trial("fed-sb"))
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in toy.W0.items()}
    gradients = torch.autograd.grad(toy.loss(0, 0, leaves), list(leaves.values()))
    with real(toy) as (layers, _):
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            (term,) = layer.term_layers()
            U, _, Vh = torch.linalg.svd(gradient)
            close(term.B[0] @ term.A[0], U[:, :RANK] @ Vh[:RANK], name)
            close(term.A[0] @ term.A[0].T, torch.eye(RANK).double(), name)
            assert not term.core.any()
    assert not any(weight.requires_grad for weight in toy.model.parameters())


def test_matched_ranks():
    """CoLoRA at r = 2 trains 2 · 128 + 7 · 3 · 4 = 340 numbers here; widths sum to 16+12+12+16+24+24+24 = 128."""
    for method, rank, numbers in [("pooled-matched", 3, 3 * 128), ("local-matched", 1, 3 * 128), ("colora", 2, 340)]:
        with real(Toy(make_trial(method))) as (layers, _):
            assert {layer.term_layers()[0].A.shape[1] for layer in layers.values()} == {rank}
            assert sum(tensor.numel() for layer in layers.values() for tensor in layer.terms.parameters()) == numbers


def test_cores_move_at_the_rate_of_the_factors_where_none_is_given():
    toy = Toy(make_trial("colora", core_lr=None))
    with real(toy) as (layers, forward):
        start = values_of(layers)
        run(toy, layers, forward)
        reference = REFERENCES["colora"](toy, start)
        for name, layer in layers.items():
            close(effective(layer), torch.stack([weights[name] for weights in reference.weights]), name)


def test_a_pull_stronger_than_one_makes_the_cores_one():
    toy = Toy(make_trial("colora-mean", options={"pull": 1e6}, steps=3))
    with real(toy) as (layers, forward):
        run(toy, layers, forward)
        for layer in layers.values():
            (term,) = layer.term_layers()
            close(term.core, term.core[:1].expand_as(term.core), "core")
