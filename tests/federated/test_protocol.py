"""What the protocol promises: whose turn it is, what rests, what is sent, who counts how much."""

from copy import deepcopy
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from flwr.supercore.differential_privacy import compute_clip_model_update

from colora.errors import ConfigError, FederationError
from colora.federated.local import LocalModel
from colora.federated.protocol import (
    aggregate,
    broadcast,
    client_update,
    federate,
    finish,
    init,
    sample,
    turn,
    update_norm,
)
from colora.federated.state import digest, moving
from colora.training.config import AdapterSpec
from tests.helpers.federation_clients import ADAPTER, CORE_LR, DATA, FEDERATION, LR, SEED, SIZES, spec_of
from tests.helpers.reference_methods import exact_llama


@pytest.fixture(scope="module")
def local():
    return LocalModel(exact_llama(), ADAPTER, 0, SEED, LR, CORE_LR)


def start_of(local):
    return {which: digest(local.start, which) for which in "AB"}


def one_round(local, spec, state=None, clients=None, names=tuple(SIZES)):
    """A round by hand: the state before, the messages, the replies, the clients' states."""
    state = init(FEDERATION, local) if state is None else state
    clients = {name: local.newcomer() for name in names} if clients is None else clients
    messages = {name: broadcast(state, name, start_of(local)) for name in names}
    done = {
        name: client_update(clients[name], messages[name], local, DATA[name], spec, SEED) for name in names
    }  # fmt: skip
    return state, messages, [reply for reply, _ in done.values()], {name: after for name, (_, after) in done.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_state(one, other):
    """Whether two states of one kind agree to the bit."""
    found = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    tensors = ("shared", "cores", "moments", "residual", "payload")
    return all(
        same(a, b) if field.name in tensors else a == b for field, (a, b) in zip(fields(one), found, strict=True)
    )


# ---- turns and rest ----------------------------------------------------------------------------------------------


def test_the_turns_are_b_then_a_or_both_at_once():
    assert [turn(spec_of(), number) for number in range(5)] == ["B", "A", "B", "A", "B"]
    assert {turn(spec_of(schedule="simultaneous"), number) for number in range(5)} == {"AB"}


def test_the_resting_factor_does_not_change_by_one_bit(local):
    seen = []
    spec = spec_of(rounds=4)
    federate(
        init(FEDERATION, local), {name: local.newcomer() for name in SIZES}, DATA, local, spec, SEED,
        lambda state, *_: seen.append(state.shared),
    )  # fmt: skip
    for number, (before, after) in enumerate(zip([local.start, *seen], seen, strict=False)):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(moving(before, "BA"[number % 2]))


@pytest.mark.parametrize("order", ["core_first", "together"])
def test_within_a_round_the_core_moves_before_the_factor(local, order, monkeypatch):
    steps = []
    inner = LocalModel._step

    def watched(self, rows, optimizers):
        before = {name: p.detach().clone() for name, p in (self._factors | self._cores).items()}
        value = inner(self, rows, optimizers)
        after = self._factors | self._cores
        steps.append({name[0] if "/" in name else "core" for name in before if not torch.equal(before[name],
                      after[name])})  # fmt: skip
        return value

    state, _, replies, clients = one_round(local, spec_of())
    state, _ = aggregate(state, replies, spec_of())
    monkeypatch.setattr(LocalModel, "_step", watched)
    one_round(local, spec_of(order=order), state, clients, ("ann",))
    assert steps == ([{"core"}] * 2 + [{"A"}] * 3 if order == "core_first" else [{"core", "A"}] * 5)


def test_local_batches_are_whole_shuffled_passes_that_go_on_where_they_stopped():
    key = {str(row): number for number, row in enumerate(DATA["ann"].rows)}
    whole = [key[str(row)] for batch in DATA["ann"].batches(0, 10, 2, SEED) for row in batch]
    assert all(sorted(whole[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 20, 5))
    assert len({tuple(whole[at : at + 5]) for at in range(0, 20, 5)}) > 1
    later = [key[str(row)] for batch in DATA["ann"].batches(3, 7, 2, SEED) for row in batch]
    assert later == whole[6:]


# ---- pure functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "int8", "topk"])
def test_client_update_and_aggregate_leave_their_arguments_as_they_were(local, compression):
    spec = spec_of(compression=compression, server="adam", schedule="simultaneous")
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    messages = {name: broadcast(state, name, start_of(local)) for name in SIZES}
    before = deepcopy((state, clients, messages))
    replies = []
    for name, client in clients.items():
        first, after = client_update(client, messages[name], local, DATA[name], spec, SEED)
        again, after_again = client_update(client, messages[name], local, DATA[name], spec, SEED)
        assert same_state(first, again)
        assert same_state(after, after_again)
        replies.append(first)
    kept = deepcopy(replies)
    once, _ = aggregate(state, replies, spec)
    twice, _ = aggregate(state, replies, spec)
    assert same_state(once, twice)
    assert same_state(state, before[0])
    assert all(same_state(clients[name], before[1][name]) for name in SIZES)
    assert all(same(messages[name].factors, before[2][name].factors) for name in SIZES)
    assert all(same_state(reply, was) for reply, was in zip(replies, kept, strict=True))


def test_the_order_of_clients_does_not_matter_to_the_bit(local):
    spec = spec_of()
    state, _, replies, _ = one_round(local, spec)
    expected, report = aggregate(state, replies, spec)
    for order in permutations(replies):
        found, told = aggregate(state, order, spec)
        assert same_state(found, expected)
        assert told == report
    ends = []
    for names in (list(SIZES), list(SIZES)[::-1]):
        clients = {name: local.newcomer() for name in names}
        ends.append((federate(init(FEDERATION, local), clients, DATA, local, spec, SEED), clients))
    assert same_state(ends[0][0], ends[1][0])
    assert all(same_state(ends[0][1][name], ends[1][1][name]) for name in SIZES)


@pytest.mark.parametrize(("weights", "shares"), [("examples", (5 / 12, 3 / 12, 4 / 12)), ("uniform", (1 / 3,) * 3)])
def test_clients_count_by_their_examples_or_alike(local, weights, shares):
    spec = spec_of(weights=weights)
    state, _, replies, _ = one_round(local, spec)
    after, _ = aggregate(state, replies, spec)
    for name in moving(state.shared, "B"):
        mean = sum(share * reply.payload[name].double() for share, reply in zip(shares, replies, strict=True))
        torch.testing.assert_close(after.shared[name], (state.shared[name] + mean).float(), rtol=1e-6, atol=1e-8)


def test_a_fraction_of_the_clients_takes_part_drawn_anew_each_round(local):
    names = [f"c{number}" for number in range(10)]
    drawn = [sample(names, spec_of(fraction=0.3), number, SEED) for number in range(40)]
    assert all(len(set(one)) == 3 for one in drawn)
    assert drawn == [sample(names[::-1], spec_of(fraction=0.3), number, SEED) for number in range(40)]
    assert {name for one in drawn for name in one} == set(names)
    assert sample(names, spec_of(fraction=0.3), 0, SEED + 1) != drawn[0]
    assert len(sample(names, spec_of(fraction=0.01), 0, SEED)) == 1
    clients = {name: local.newcomer() for name in SIZES}
    took_part = []

    def look(state, report, messages, replies):
        took_part.append(set(report.accepted))
        for name, client in clients.items():
            assert client.round == max((number + 1 for number, who in enumerate(took_part) if name in who), default=0)

    federate(init(FEDERATION, local), clients, DATA, local, spec_of(rounds=3, fraction=0.67), SEED, look)
    assert [len(who) for who in took_part] == [2, 2, 2]


# ---- what is sent ------------------------------------------------------------------------------------------------


def test_a_client_is_sent_only_the_factors_that_it_lacks(local):
    spec = spec_of(rounds=9)
    state, messages, replies, clients = one_round(local, spec)
    assert [len(message.factors) for message in messages.values()] == [0, 0, 0]
    state, _ = aggregate(state, replies, spec)
    for number in (1, 2):  # cy is away
        state, messages, replies, found = one_round(local, spec, state, clients, ("ann", "bob"))
        clients |= found
        assert all(same(one.factors, moving(state.shared, "AB"[number % 2])) for one in messages.values())
        state, _ = aggregate(state, replies, spec)
    assert same(broadcast(state, "cy", start_of(local)).factors, state.shared)
    assert same(broadcast(state, "ann", start_of(local)).factors, moving(state.shared, "B"))
    assert same(broadcast(state, "newcomer", start_of(local)).factors, state.shared)


def test_when_both_factors_move_both_are_sent(local):
    spec = spec_of(schedule="simultaneous")
    state, messages, replies, _ = one_round(local, spec)
    assert not messages["ann"].factors
    state, _ = aggregate(state, replies, spec)
    assert same(broadcast(state, "ann", start_of(local)).factors, state.shared)


def test_a_client_that_lost_its_factors_says_so_and_gets_both_next_time(local):
    spec = spec_of(rounds=9)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    state, _, replies, clients = one_round(local, spec, state, clients)
    state, _ = aggregate(state, replies, spec)
    clients["bob"] = local.newcomer()
    state, _, replies, found = one_round(local, spec, state, clients)
    lost = replies[1]
    assert (lost.missing, lost.payload, lost.loss) == (True, {}, None)
    assert (found["bob"].steps, found["bob"].position, found["bob"].round) == (0, 0, 0)
    assert same(found["bob"].cores, local.newcomer().cores)
    state, report = aggregate(state, replies, spec)
    assert report.accepted == ["ann", "cy"]
    assert "lost a factor" in report.dropped["bob"]
    state, messages, replies, found = one_round(local, spec, state, found)
    assert same(messages["bob"].factors, state.shared)
    assert [len(messages[name].factors) for name in SIZES] == [7, 14, 7]
    assert not replies[1].missing
    assert aggregate(state, replies, spec)[1].accepted == list(SIZES)


def test_a_reply_holds_no_core_and_only_the_moving_factor(local):
    spec = spec_of(rounds=4)
    clients = {name: local.newcomer() for name in SIZES}

    def look(state, report, messages, replies):
        for reply in replies:
            assert set(reply.payload) == set(moving(state.shared, turn(spec, report.round)))
            held = [*clients[reply.client].cores.values(), *clients[reply.client].moments.values()]
            for tensor in reply.payload.values():
                assert not any(tensor.shape == one.shape and torch.equal(tensor, one) for one in held)
            own = {id(row) for row in DATA[reply.client].rows}
            assert not own & {id(getattr(reply, field.name)) for field in fields(reply)}
        told = {field.name for field in fields(replies[0])}
        assert told == {"client", "federation", "round", "payload", "examples", "loss", "missing"}

    federate(init(FEDERATION, local), clients, DATA, local, spec, SEED, look)


def test_the_loss_is_told_only_if_the_client_wants_to(local):
    state = init(FEDERATION, local)
    message = broadcast(state, "ann", start_of(local))
    told, _ = client_update(local.newcomer(), message, local, DATA["ann"], spec_of(), SEED)
    silent, _ = client_update(local.newcomer(), message, local, DATA["ann"], spec_of(), SEED, tell_loss=False)
    assert told.loss > 0
    assert same_state(silent, replace(told, loss=None))


# ---- joining and ending ------------------------------------------------------------------------------------------


def test_who_joins_late_gets_onboarding_steps_of_the_core_once(local):
    spec = spec_of(rounds=9, onboard_steps=7)
    state, _, replies, clients = one_round(local, spec, names=("ann", "bob"))
    assert clients["ann"].steps == 2
    state, _ = aggregate(state, replies, spec)
    clients["cy"] = local.newcomer()
    state, _, replies, clients = one_round(local, spec, state, clients)
    assert {name: (one.steps, one.position) for name, one in clients.items()} == {
        "ann": (4, 10), "bob": (4, 10), "cy": (9, 12)
    }  # fmt: skip
    state, _ = aggregate(state, replies, spec)
    *_, clients = one_round(local, spec, state, clients)
    assert clients["cy"].steps == 11


def test_the_end_fits_only_the_core_to_the_final_factors(local):
    spec = spec_of(finish_steps=4)
    state, _, replies, clients = one_round(local, spec)
    state, _ = aggregate(state, replies, spec)
    message = broadcast(state, "ann", start_of(local))
    done = finish(clients["ann"], message, local, DATA["ann"], spec, SEED)
    assert same(done.shared, state.shared)
    assert (done.steps, done.position) == (clients["ann"].steps + 4, clients["ann"].position + 4)
    assert all(not torch.equal(core, clients["ann"].cores[name]) for name, core in done.cores.items())
    late = finish(local.newcomer(), broadcast(state, "z", start_of(local)), local, DATA["ann"], spec, SEED)
    assert late.steps == 24
    with pytest.raises(FederationError, match="final factors"):
        finish(clients["ann"], replace(message, factors={}), local, DATA["ann"], spec, SEED)


def test_without_core_steps_cores_stay_at_the_identity(local):
    for order in ("core_first", "together"):
        clients = {name: local.newcomer() for name in SIZES}
        state = federate(
            init(FEDERATION, local), clients, DATA, local, spec_of(core_steps=0, order=order, fraction=0.67), SEED
        )
        for client in clients.values():
            assert all(torch.equal(core, torch.eye(2)) for core in client.cores.values())
            assert (client.steps, client.moments) == (0, {})
        assert not same(state.shared, local.start)


# ---- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_a_clipped_update_is_what_flower_makes_of_it(local, clip):
    state = init(FEDERATION, local)
    message = broadcast(state, "ann", start_of(local))
    free, after_free = client_update(local.newcomer(), message, local, DATA["ann"], spec_of(), SEED)
    spec = spec_of(clip=clip, weights="uniform")
    clipped, after = client_update(local.newcomer(), message, local, DATA["ann"], spec, SEED)
    assert update_norm(clipped.payload) <= clip * (1 + 1e-6)
    assert 0.05 < update_norm(free.payload) < 1e3
    trained = [(state.shared[name] + change).numpy() for name, change in free.payload.items()]
    before = [state.shared[name].numpy() for name in free.payload]
    compute_clip_model_update(trained, before, clip)
    for change, ours, expected in zip(clipped.payload.values(), before, trained, strict=True):
        np.testing.assert_allclose(ours + change.numpy(), expected, rtol=1e-5, atol=1e-8)
    assert same_state(after, after_free)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"modules_to_save": ["lm_head"]}])
def test_what_would_not_be_shared_is_refused(changes):
    with pytest.raises(ConfigError, match="in a federation"):
        LocalModel(exact_llama(), AdapterSpec(**changes), 0, SEED, LR, CORE_LR)
