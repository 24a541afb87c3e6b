"""Every method of the comparison against its reference implementation: plain float64 loops of its formula."""

import pytest
import torch

from colora.errors import ConfigError
from colora.experiments.methods.measure import kept_parameters, trained_parameters
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.train import remaining_pull
from tests.helpers.method_trials import RANKS, close, effective, make_trial, real, run, values_of
from tests.helpers.reference_methods import CLIENTS, RANK, Toy
from tests.helpers.references import REFERENCES


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


def test_dittos_own_model_starts_at_the_global_one():
    with real(Toy(make_trial("ditto"))) as (layers, _):
        for layer in layers.values():
            common, own = layer.term_layers()
            assert torch.equal(own.A, common.A)


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


@pytest.mark.parametrize(("method", "cores"), [("colora", 14), ("colora-kind-cores", 7), ("colora-one-core", 1)])
def test_layers_that_have_one_core_between_them(method, cores):
    """Two blocks of seven layers: the reference, and how many different cores there are."""
    toy = Toy(make_trial(method, steps=4, options={"pull": 2.0}), blocks=2)
    with real(toy) as (layers, forward):
        start = values_of(layers)
        trained = trained_parameters(layers)
        run(toy, layers, forward)
        assert len({id(layer.term_layers()[0].core) for layer in layers.values()}) == cores
        assert trained - sum(value.numel() for (part, *_, k), value in start.items() if part != "core" and not k) == (
            CLIENTS * cores * RANK**2
        )
        assert kept_parameters(layers)[1] == cores * RANK**2
        if method == "colora":
            return
        reference = REFERENCES[method](toy, start)
        ended = values_of(layers)
        for k, held in enumerate(reference.held):
            for (part, layer), value in held.items():
                close(ended[part, layer, k], value, (part, layer, k))
        for name, layer in layers.items():
            close(effective(layer), torch.stack([weights[name] for weights in reference.weights]), name)


def test_the_pull_is_released():
    """Level up to the share `release` of the steps, and on a straight line to 0 after the last."""
    assert [remaining_pull(step, 8, 0.5) for step in (0, 3, 4, 6, 7)] == [1, 1, 1, 0.5, 0.25]
    assert [remaining_pull(step, 4, 0.0) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [remaining_pull(step, 4, 1.0) for step in range(4)] == [1, 1, 1, 1]


def test_a_pull_of_zero_changes_no_bit():
    ended = []
    for options in ({}, {"pull": 0.0, "release": 0.5}):
        with real(toy := Toy(make_trial("colora", options=options))) as (layers, forward):
            run(toy, layers, forward)
            ended.append(values_of(layers))
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_a_basis_needs_steps_after_it_and_as_many_directions_as_there_are():
    with (
        real(toy := Toy(make_trial("share", options={"first": 1.0}))) as (layers, forward),
        pytest.raises(ConfigError, match="method 'share': expected steps after the first stage of 8, found none"),
    ):
        run(toy, layers, forward)
    with (
        real(toy := Toy(make_trial("share", rank=1, options={"basis_rank": 4}))) as (layers, forward),
        pytest.raises(ConfigError, match="expected a rank of at most 3, found 4"),
    ):
        run(toy, layers, forward)


def test_a_pull_stronger_than_one_makes_the_cores_one():
    toy = Toy(make_trial("colora-mean", options={"pull": 1e6}, steps=3))
    with real(toy) as (layers, forward):
        run(toy, layers, forward)
        for layer in layers.values():
            (term,) = layer.term_layers()
            close(term.core, term.core[:1].expand_as(term.core), "core")
