"""The protocol: schedules and frozen factors, messages, hashes, weights, late clients, the end, clipping."""

from copy import deepcopy
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from flwr.supercore.differential_privacy import compute_clip_model_update

from colora.errors import ConfigError, FederationError
from colora.federated import protocol
from colora.federated import state as federated_state
from colora.federated.aggregate import aggregate, update_norm
from colora.federated.local import LocalModel
from colora.federated.protocol import (
    broadcast,
    client_update,
    federate,
    finish,
    init,
    sample,
)
from colora.federated.schedule import trained_parts
from colora.federated.state import select_parts
from colora.training.config import AdapterSpec
from tests.helpers.federation_clients import ADAPTER, CORE_LR, DATA, FEDERATION, LR, SEED, SIZES, spec_of
from tests.helpers.reference_methods import exact_llama


@pytest.fixture(scope="module")
def local():
    return LocalModel(exact_llama(), ADAPTER, 0, SEED, LR, CORE_LR)


def one_round(local, spec, state=None, clients=None, names=tuple(SIZES)):
    """One round step by step: the state before, the messages, the replies, the clients' new states."""
    state = init(FEDERATION, local) if state is None else state
    clients = {name: local.initial_state() for name in names} if clients is None else clients
    messages = {name: broadcast(state, name, local.start_digests) for name in names}
    replies, states = [], {}
    for name in names:
        reply, states[name] = client_update(clients[name], messages[name], local, DATA[name], spec, SEED)
        replies.append(reply)
    return state, messages, replies, states


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_state(one, other):
    """Whether two states of one kind agree to the bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    tensors = ("shared", "cores", "moments", "residual", "payload")
    return all(
        same(a, b) if field.name in tensors else a == b for field, (a, b) in zip(fields(one), pairs, strict=True)
    )


# ---- schedules ---------------------------------------------------------------------------------------------------


def test_trained_parts_of_each_schedule():
    assert [trained_parts(spec_of(), number) for number in range(5)] == ["B", "A", "B", "A", "B"]
    assert {trained_parts(spec_of(schedule="simultaneous"), number) for number in range(5)} == {"AB"}


def test_frozen_factors_do_not_change_by_one_bit(local):
    seen = []
    spec = spec_of(rounds=4)
    clients = {name: local.initial_state() for name in SIZES}
    federate(init(FEDERATION, local), clients, DATA, local, spec, SEED, lambda state, *_: seen.append(state.shared))
    for number, (before, after) in enumerate(zip([local.start, *seen], seen, strict=False)):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(select_parts(before, "BA"[number % 2]))


@pytest.mark.parametrize("order", ["core_first", "together"])
def test_order_of_core_and_factor_steps_in_a_round(local, order, monkeypatch):
    steps = []
    inner = LocalModel._step

    def watched(self, rows, optimizers):
        before = {name: p.detach().clone() for name, p in (self._factors | self._cores).items()}
        value = inner(self, rows, optimizers)
        after = self._factors | self._cores
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        steps.append({name[0] if "/" in name else "core" for name in changed})
        return value

    state, _, replies, clients = one_round(local, spec_of())
    state, _ = aggregate(state, replies, spec_of())
    monkeypatch.setattr(LocalModel, "_step", watched)
    one_round(local, spec_of(order=order), state, clients, ("ann",))
    assert steps == ([{"core"}] * 2 + [{"A"}] * 3 if order == "core_first" else [{"core", "A"}] * 5)


def test_batches_are_shuffled_passes_that_continue_at_the_position():
    key = {str(row): number for number, row in enumerate(DATA["ann"].rows)}
    whole = [key[str(row)] for batch in DATA["ann"].batches(0, 10, 2, SEED) for row in batch]
    assert all(sorted(whole[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 20, 5))
    assert len({tuple(whole[at : at + 5]) for at in range(0, 20, 5)}) > 1
    later = [key[str(row)] for batch in DATA["ann"].batches(3, 7, 2, SEED) for row in batch]
    assert later == whole[6:]


# ---- pure functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "int8", "topk"])
def test_client_update_and_aggregate_do_not_change_their_arguments(local, compression):
    spec = spec_of(compression=compression, server="adam", schedule="simultaneous")
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    messages = {name: broadcast(state, name, local.start_digests) for name in SIZES}
    before = deepcopy((state, clients, messages))
    replies = []
    for name, client in clients.items():
        first, after = client_update(client, messages[name], local, DATA[name], spec, SEED)
        again, after_again = client_update(client, messages[name], local, DATA[name], spec, SEED)
        assert same_state(first, again)
        assert same_state(after, after_again)
        replies.append(first)
    copies = deepcopy(replies)
    once, _ = aggregate(state, replies, spec)
    twice, _ = aggregate(state, replies, spec)
    assert same_state(once, twice)
    assert same_state(state, before[0])
    assert all(same_state(clients[name], before[1][name]) for name in SIZES)
    assert all(same(messages[name].factors, before[2][name].factors) for name in SIZES)
    assert all(same_state(reply, copy) for reply, copy in zip(replies, copies, strict=True))


def test_order_of_clients_changes_no_bit(local):
    spec = spec_of()
    state, _, replies, _ = one_round(local, spec)
    expected, report = aggregate(state, replies, spec)
    for order in permutations(replies):
        permuted, permuted_report = aggregate(state, order, spec)
        assert same_state(permuted, expected)
        assert permuted_report == report
    ends = []
    for names in (list(SIZES), list(SIZES)[::-1]):
        clients = {name: local.initial_state() for name in names}
        ends.append((federate(init(FEDERATION, local), clients, DATA, local, spec, SEED), clients))
    assert same_state(ends[0][0], ends[1][0])
    assert all(same_state(ends[0][1][name], ends[1][1][name]) for name in SIZES)


@pytest.mark.parametrize(("weights", "shares"), [("examples", (5 / 12, 3 / 12, 4 / 12)), ("uniform", (1 / 3,) * 3)])
def test_weights_of_clients_in_the_mean(local, weights, shares):
    spec = spec_of(weights=weights)
    state, _, replies, _ = one_round(local, spec)
    after, _ = aggregate(state, replies, spec)
    for name in select_parts(state.shared, "B"):
        mean = sum(share * reply.payload[name].double() for share, reply in zip(shares, replies, strict=True))
        torch.testing.assert_close(after.shared[name], (state.shared[name] + mean).float(), rtol=1e-6, atol=1e-8)


def test_sample_draws_a_fraction_anew_each_round(local):
    names = [f"c{number}" for number in range(10)]
    drawn = [sample(names, spec_of(fraction=0.3), number, SEED) for number in range(40)]
    assert all(len(set(one)) == 3 for one in drawn)
    assert drawn == [sample(names[::-1], spec_of(fraction=0.3), number, SEED) for number in range(40)]
    assert {name for one in drawn for name in one} == set(names)
    assert sample(names, spec_of(fraction=0.3), 0, SEED + 1) != drawn[0]
    assert len(sample(names, spec_of(fraction=0.01), 0, SEED)) == 1
    clients = {name: local.initial_state() for name in SIZES}
    participants = []

    def check(state, report, messages, replies):
        participants.append(set(report.accepted))
        for name, client in clients.items():
            assert client.round == max(
                (number + 1 for number, who in enumerate(participants) if name in who), default=0
            )

    federate(init(FEDERATION, local), clients, DATA, local, spec_of(rounds=3, fraction=0.67), SEED, check)
    assert [len(who) for who in participants] == [2, 2, 2]


# ---- messages ----------------------------------------------------------------------------------------------------


def test_broadcast_has_only_the_factors_that_the_client_lacks(local):
    spec = spec_of(rounds=9)
    state, messages, replies, clients = one_round(local, spec)
    assert [len(message.factors) for message in messages.values()] == [0, 0, 0]
    state, _ = aggregate(state, replies, spec)
    for number in (1, 2):  # cy is away
        state, messages, replies, trained = one_round(local, spec, state, clients, ("ann", "bob"))
        clients |= trained
        assert all(same(one.factors, select_parts(state.shared, "AB"[number % 2])) for one in messages.values())
        state, _ = aggregate(state, replies, spec)
    assert same(broadcast(state, "cy", local.start_digests).factors, state.shared)
    assert same(broadcast(state, "ann", local.start_digests).factors, select_parts(state.shared, "B"))
    assert same(broadcast(state, "new client", local.start_digests).factors, state.shared)


def test_broadcast_has_both_factors_when_both_were_trained(local):
    spec = spec_of(schedule="simultaneous")
    state, messages, replies, _ = one_round(local, spec)
    assert not messages["ann"].factors
    state, _ = aggregate(state, replies, spec)
    assert same(broadcast(state, "ann", local.start_digests).factors, state.shared)


def test_client_that_lost_its_factors_is_sent_both_next_time(local):
    spec = spec_of(rounds=9)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    state, _, replies, clients = one_round(local, spec, state, clients)
    state, _ = aggregate(state, replies, spec)
    clients["bob"] = local.initial_state()
    state, _, replies, clients = one_round(local, spec, state, clients)
    lost = replies[1]
    assert (lost.missing, lost.payload, lost.loss) == (True, {}, None)
    assert (clients["bob"].steps, clients["bob"].position, clients["bob"].round) == (0, 0, 0)
    assert same(clients["bob"].cores, local.initial_state().cores)
    state, report = aggregate(state, replies, spec)
    assert report.accepted == ["ann", "cy"]
    assert "lost a factor" in report.dropped["bob"]
    state, messages, replies, _ = one_round(local, spec, state, clients)
    assert same(messages["bob"].factors, state.shared)
    assert [len(messages[name].factors) for name in SIZES] == [7, 14, 7]
    assert not replies[1].missing
    assert aggregate(state, replies, spec)[1].accepted == list(SIZES)


def test_reply_has_no_core_and_only_the_trained_factor(local):
    spec = spec_of(rounds=4)
    clients = {name: local.initial_state() for name in SIZES}

    def check(state, report, messages, replies):
        for reply in replies:
            assert set(reply.payload) == set(select_parts(state.shared, trained_parts(spec, report.round)))
            held = [*clients[reply.client].cores.values(), *clients[reply.client].moments.values()]
            for tensor in reply.payload.values():
                assert not any(tensor.shape == one.shape and torch.equal(tensor, one) for one in held)
            rows = {id(row) for row in DATA[reply.client].rows}
            assert not rows & {id(getattr(reply, field.name)) for field in fields(reply)}
        names = {field.name for field in fields(replies[0])}
        assert names == {"client", "federation", "round", "payload", "examples", "loss", "missing"}

    federate(init(FEDERATION, local), clients, DATA, local, spec, SEED, check)


def test_tell_loss_false_leaves_the_loss_out(local):
    state = init(FEDERATION, local)
    message = broadcast(state, "ann", local.start_digests)
    with_loss, _ = client_update(local.initial_state(), message, local, DATA["ann"], spec_of(), SEED)
    without_loss, _ = client_update(
        local.initial_state(), message, local, DATA["ann"], spec_of(), SEED, tell_loss=False
    )
    assert with_loss.loss > 0
    assert same_state(without_loss, replace(with_loss, loss=None))


# ---- hashes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The parts that have been hashed, in order: "A" or "B" each time."""
    parts = []
    hash_part = federated_state.digest

    def counted(shared, part):
        parts.append(part)
        return hash_part(shared, part)

    for module in (federated_state, protocol):
        monkeypatch.setattr(module, "digest", counted)
    return parts


def test_hashes_of_a_simultaneous_round(local, hashed):
    """The server hashes A and B once for all clients, and each client hashes what it received once."""
    spec = spec_of(schedule="simultaneous", rounds=9)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    hashed.clear()
    for _ in range(2):
        state, _, replies, clients = one_round(local, spec, state, clients)
        state, _ = aggregate(state, replies, spec)
        assert sorted(hashed) == ["A"] * (1 + len(SIZES)) + ["B"] * (1 + len(SIZES))
        hashed.clear()


def test_hashes_of_an_alternating_round(local, hashed):
    """Clients do not hash the factor that they had before."""
    spec = spec_of(rounds=9)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    for received in ("B", "A"):
        hashed.clear()
        state, _, replies, clients = one_round(local, spec, state, clients)
        state, _ = aggregate(state, replies, spec)
        assert sorted(hashed) == sorted(["A", "B"] + [received] * len(SIZES))


# ---- late clients and the end ------------------------------------------------------------------------------------


def test_late_client_gets_onboarding_steps_once(local):
    spec = spec_of(rounds=9, onboard_steps=7)
    state, _, replies, clients = one_round(local, spec, names=("ann", "bob"))
    assert clients["ann"].steps == 2
    state, _ = aggregate(state, replies, spec)
    clients["cy"] = local.initial_state()
    state, _, replies, clients = one_round(local, spec, state, clients)
    drawn = {name: (client.steps, client.position) for name, client in clients.items()}
    assert drawn == {"ann": (4, 10), "bob": (4, 10), "cy": (9, 12)}
    state, _ = aggregate(state, replies, spec)
    *_, clients = one_round(local, spec, state, clients)
    assert clients["cy"].steps == 11


def test_finish_fits_only_the_core_to_the_final_factors(local):
    spec = spec_of(finish_steps=4)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    message = broadcast(state, "ann", local.start_digests)
    done = finish(clients["ann"], message, local, DATA["ann"], spec, SEED)
    assert same(done.shared, state.shared)
    assert (done.steps, done.position) == (clients["ann"].steps + 4, clients["ann"].position + 4)
    assert all(not torch.equal(core, clients["ann"].cores[name]) for name, core in done.cores.items())
    late = finish(local.initial_state(), broadcast(state, "z", local.start_digests), local, DATA["ann"], spec, SEED)
    assert late.steps == 24
    with pytest.raises(FederationError, match="final factors"):
        finish(clients["ann"], replace(message, factors={}), local, DATA["ann"], spec, SEED)


def test_without_core_steps_cores_stay_the_identity(local):
    for order in ("core_first", "together"):
        clients = {name: local.initial_state() for name in SIZES}
        state = federate(
            init(FEDERATION, local), clients, DATA, local, spec_of(core_steps=0, order=order, fraction=0.67), SEED
        )
        for client in clients.values():
            assert all(torch.equal(core, torch.eye(2)) for core in client.cores.values())
            assert (client.steps, client.moments) == (0, {})
        assert not same(state.shared, local.start)


# ---- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_clipped_update_equals_flowers(local, clip):
    state = init(FEDERATION, local)
    message = broadcast(state, "ann", local.start_digests)
    free, after_free = client_update(local.initial_state(), message, local, DATA["ann"], spec_of(), SEED)
    spec = spec_of(clip=clip, weights="uniform")
    clipped, after = client_update(local.initial_state(), message, local, DATA["ann"], spec, SEED)
    assert update_norm(clipped.payload) <= clip * (1 + 1e-6)
    assert 0.05 < update_norm(free.payload) < 1e3
    trained = [(state.shared[name] + change).numpy() for name, change in free.payload.items()]
    before = [state.shared[name].numpy() for name in free.payload]
    compute_clip_model_update(trained, before, clip)
    for change, ours, expected in zip(clipped.payload.values(), before, trained, strict=True):
        np.testing.assert_allclose(ours + change.numpy(), expected, rtol=1e-5, atol=1e-8)
    assert same_state(after, after_free)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"modules_to_save": ["lm_head"]}])
def test_local_model_refuses_modules_that_would_not_be_shared(changes):
    with pytest.raises(ConfigError, match="in a federation"):
        LocalModel(exact_llama(), AdapterSpec(**changes), 0, SEED, LR, CORE_LR)
