"""Bad clients: they are dropped with a reason, outweighed by robust rules, or the round is void."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.federated.aggregate import aggregate, update_norm
from colora.federated.combine import combine
from colora.federated.history import RoundCost, history_line, round_records
from colora.federated.optimizer import server_step
from colora.federated.state import Reply, ServerState
from colora.training.config import FederationSpec

FEDERATION = "0123456789abcdef" * 2
GENERATOR = torch.Generator().manual_seed(0)
SHARED = {
    f"{part}/{name}": torch.randn(shape, generator=GENERATOR)
    for name in ("q", "v")
    for part, shape in (("A", (2, 5)), ("B", (4, 2)))
}
STATE = ServerState(FEDERATION, 0, SHARED, {"model_type": "toy"})


def spec_of(**changes):
    """The alternating schedule, whose first round trains B alone."""
    return FederationSpec(**{"schedule": "alternating"} | changes)


def update_of(number, size=1.0):
    """An update of B, of norm `size`."""
    generator = torch.Generator().manual_seed(number)
    update = {f"B/{name}": torch.randn(4, 2, generator=generator) for name in ("q", "v")}
    norm = update_norm(update)
    return {name: size / norm * tensor for name, tensor in update.items()}


def reply(number, size=1.0, **changes):
    return replace(Reply(f"c{number}", FEDERATION, 0, update_of(number, size), 3, 1.5), **changes)


def set_at(number, value):
    """A payload with one number replaced."""
    payload = update_of(number)
    payload["B/v"] = payload["B/v"].clone()
    payload["B/v"][1, 1] = value
    return payload


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


GOOD = [reply(number) for number in range(3)]
BAD = {
    "NaN": ({"payload": set_at(9, math.nan)}, "B/v: NaN or infinite"),
    "infinity": ({"payload": set_at(9, -math.inf)}, "B/v: NaN or infinite"),
    "missing key": ({"payload": {"B/q": torch.ones(4, 2)}}, "expected 2 tensors, found 1, first difference 'B/v'"),
    "no key": ({"payload": {}}, "expected 2 tensors, found 0"),
    "extra key": ({"payload": update_of(9) | {"A/q": torch.ones(2, 5)}}, "found 3, first difference 'A/q'"),
    "other factor": ({"payload": {"A/q": torch.ones(2, 5), "A/v": torch.ones(2, 5)}}, "first difference 'A/q'"),
    "a core": ({"payload": update_of(9) | {"q": torch.eye(2)}}, "first difference 'q'"),
    "wrong shape": ({"payload": update_of(9) | {"B/q": torch.ones(2, 4)}}, r"expected shape (4, 2), found (2, 4)"),
    "would broadcast": ({"payload": update_of(9) | {"B/q": torch.ones(1, 2)}}, r"expected shape (4, 2)"),
    "scalar": ({"payload": update_of(9) | {"B/q": torch.tensor(1.0)}}, r"found ()"),
    "float64": ({"payload": {name: one.double() for name, one in update_of(9).items()}}, "found torch.float64"),
    "whole numbers": ({"payload": update_of(9) | {"B/q": torch.ones(4, 2, dtype=torch.int64)}}, "found torch.int64"),
    "complex": ({"payload": update_of(9) | {"B/q": torch.ones(4, 2, dtype=torch.complex64)}}, "found torch.complex64"),
    "stale": ({"round": -1}, "expected round 0, found -1"),
    "from the future": ({"round": 1}, "expected round 0, found 1"),
    "another federation": ({"federation": "f" * 32}, "of another federation"),
    "zero examples": ({"examples": 0}, "expected training examples, found 0"),
    "negative examples": ({"examples": -5}, "expected training examples, found -5"),
    "NaN examples": ({"examples": math.nan}, "expected training examples, found nan"),
    "missing": ({"missing": True, "payload": {}}, "lost a factor"),
}


@pytest.mark.parametrize("name", BAD)
def test_aggregate_drops_a_bad_reply_with_a_reason(name):
    changes, why = BAD[name]
    spec = spec_of()
    expected, _ = aggregate(STATE, GOOD, spec)
    found, report = aggregate(STATE, [*GOOD, reply(9, **changes)], spec)
    assert report.accepted == ["c0", "c1", "c2"]
    assert list(report.dropped) == ["c9"]
    assert why in report.dropped["c9"]
    assert not report.void
    assert same(found.shared, expected.shared)
    assert "c9" not in report.losses
    assert found.holders.get("c9", {}) == {}


@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("size", [1000.0, 1e18])
def test_aggregate_drops_outliers(others, size):
    found, report = aggregate(STATE, [*GOOD[:others], reply(9, size)], spec_of())
    expected, _ = aggregate(STATE, GOOD[:others], spec_of())
    assert "times the round's median" in report.dropped["c9"]
    assert same(found.shared, expected.shared)
    assert len(report.accepted) == others
    found, report = aggregate(STATE, [*GOOD, reply(9, 9.5)], spec_of())
    assert not report.dropped


@pytest.mark.parametrize("count", [2, 3, 4])
def test_updates_of_zeros_do_not_make_the_others_outliers(count):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in update_of(0).items()}
    replies = [*(reply(number, payload=zeros) for number in range(count - 1)), reply(9)]
    _, report = aggregate(STATE, replies, spec_of())
    assert set(report.accepted) | set(report.dropped) == {one.client for one in replies}
    _, report = aggregate(STATE, replies[:-1], spec_of())
    assert len(report.accepted) == count - 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_nan_and_infinite_losses_are_left_out(loss):
    cost = RoundCost(1, 1, 1.0)
    _, report = aggregate(STATE, [*GOOD, reply(9, loss=loss)], spec_of())
    records = round_records("run", 0, report, cost)
    assert {one.task for one in records if one.metric == "train_nll"} >= {"c0", "c1", "c2"}
    assert "nan" not in history_line(report, cost, 1)
    assert "inf" not in history_line(report, cost, 1)


def test_aggregate_drops_updates_above_max_norm():
    spec = spec_of(max_norm=1.5)
    _, report = aggregate(STATE, [*GOOD, reply(9, 1.6)], spec)
    assert report.dropped == {"c9": "norm 1.6, expected at most 1.5 (max_norm)"}


def test_aggregate_drops_updates_above_clip():
    spec = spec_of(clip=1.0, weights="uniform")
    _, report = aggregate(STATE, [*GOOD, reply(9, 1.01)], spec)
    assert report.dropped == {"c9": "norm 1.01, expected at most 1 (clip)"}


def test_private_sum_changes_by_at_most_clip_with_one_client_more():
    """The noise is for a sum that one client can change by `clip`; so no client may decide who else counts."""
    spec = spec_of(clip=1.0, weights="uniform")

    def total(sizes):
        sums = []

        def release(updates):
            sums.append({name: sum(one[name] for one in updates) for name in updates[0]})

        aggregate(STATE, [reply(number, size) for number, size in enumerate(sizes)], spec, release)
        return sums[0]

    few, more = total([0.05, 0.05, 1, 1]), total([0.05, 0.05, 1, 1, 1])
    assert update_norm({name: more[name] - few[name] for name in few}) <= 1.0001


@pytest.mark.parametrize("server", ["average", "momentum", "adam"])
def test_round_of_bad_replies_is_void_and_changes_nothing(server):
    spec = spec_of(server=server)
    state, _ = aggregate(STATE, GOOD, spec)
    state = replace(state, round=0)
    replies = [reply(number, **changes) for number, (changes, _) in enumerate(BAD.values())]
    found, report = aggregate(state, replies, spec)
    assert report.void
    assert not report.accepted
    assert len(report.dropped) == len(BAD)
    assert found.round == 1
    assert same(found.shared, state.shared)
    assert same(found.moments, state.moments)
    found, report = aggregate(state, [], spec)
    assert (report.void, found.round) == (True, 1)
    assert same(found.shared, state.shared)


def test_round_with_too_few_good_replies_is_void():
    bad = reply(9, payload={})
    found, report = aggregate(STATE, [*GOOD[:2], bad], spec_of(replies=3, clients=3))
    assert (report.void, report.accepted) == (True, ["c0", "c1"])
    assert same(found.shared, STATE.shared)
    _, report = aggregate(STATE, [*GOOD, bad], spec_of(replies=3, clients=3))
    assert not report.void


# ---- rules -------------------------------------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)
row = st.lists(numbers, min_size=6, max_size=6)
stacks = st.lists(row, min_size=1, max_size=7)


def combined(rows, rule, trim=0.25, weights=None):
    updates = [{"A/x": torch.tensor(row).view(2, 3), "B/x": torch.tensor(row[:2])[:, None]} for row in rows]
    found = combine(updates, weights or [1] * len(rows), rule, trim)
    torch.testing.assert_close(found["B/x"].flatten(), found["A/x"].flatten()[:2], rtol=1e-6, atol=1e-5)
    return found["A/x"].flatten().numpy()


@settings(max_examples=60, deadline=None)
@given(stacks, st.floats(0, 0.49))
def test_combine_median_and_trimmed_equal_numpy(rows, trim):
    stack = np.array(rows)
    np.testing.assert_allclose(combined(rows, "median"), np.median(stack, axis=0), rtol=1e-5, atol=1e-5)
    cut = math.floor(trim * len(rows))
    expected = np.sort(stack, axis=0)[cut : len(rows) - cut].mean(0)
    np.testing.assert_allclose(combined(rows, "trimmed", trim), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(combined(rows, "trimmed", 0.0), combined(rows, "mean"), rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(stacks, st.data())
def test_combine_mean_is_weighted(rows, data):
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=len(rows), max_size=len(rows)))
    expected = np.average(np.array(rows), axis=0, weights=weights)
    np.testing.assert_allclose(combined(rows, "mean", weights=weights), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=3, max_size=3), st.floats(-(2.0**100), 2.0**100, width=32))
def test_combine_robust_rules_stay_within_the_range_of_the_good_clients(rows, wild):
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    for rule in ("median", "trimmed"):
        found = combined([*rows, [wild] * 6], rule)
        assert (found >= low - 1e-4).all()
        assert (found <= high + 1e-4).all()


def test_robust_rules_limit_a_bad_client_within_the_norm_limit():
    state, _ = aggregate(STATE, GOOD, spec_of(rule="trimmed"))
    replies = [*GOOD, reply(9, 9.9)]
    for rule, least, most in (("mean", 2.0, 10.0), ("median", 0.0, 1.0), ("trimmed", 0.0, 1.0)):
        found, report = aggregate(STATE, replies, spec_of(rule=rule))
        assert len(report.accepted) == 4
        assert least < update_norm({name: found.shared[name] - state.shared[name] for name in state.shared}) < most


# ---- the server's optimiser --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["average", "momentum", "adam"])
def test_server_step_equals_the_formula_over_alternating_rounds(rule):
    generator = np.random.default_rng(0)
    shared = {name: generator.normal(size=(3, 2)) for name in ("A/x", "B/x")}
    m, v = (dict.fromkeys(shared, 0.0) for _ in range(2))
    ours, moments = {name: torch.tensor(value, dtype=torch.float32) for name, value in shared.items()}, {}
    for number in range(6):
        name = "BA"[number % 2] + "/x"
        u = generator.normal(size=(3, 2)).astype(np.float32)
        before, kept = dict(ours), dict(moments)
        ours, moments = server_step(ours, {name: torch.tensor(u)}, moments, rule, lr=0.3, beta1=0.8)
        assert all(before[key] is not ours[key] or key != name for key in before)
        assert all(torch.equal(kept[key], moments[key]) for key in kept if not key.endswith(name))
        if rule == "average":
            shared[name] = shared[name] + 0.3 * u
        elif rule == "momentum":
            m[name] = 0.8 * m[name] + u
            shared[name] = shared[name] + 0.3 * m[name]
        else:
            m[name] = 0.8 * m[name] + 0.2 * u
            v[name] = 0.99 * v[name] + 0.01 * u**2
            shared[name] = shared[name] + 0.3 * m[name] / (np.sqrt(v[name]) + 1e-3)
        for key, tensor in ours.items():
            np.testing.assert_allclose(tensor.numpy(), shared[key], rtol=1e-5, atol=1e-6)
    assert len(moments) == {"average": 0, "momentum": 2, "adam": 4}[rule]


def test_aggregate_uses_the_settings_of_the_server_optimiser():
    spec = spec_of(server="momentum", server_lr=0.5, server_momentum=0.25)
    state, _ = aggregate(STATE, [GOOD[0]], spec)
    state, _ = aggregate(replace(state, round=0), [GOOD[1]], spec)
    for name, first in update_of(0).items():
        second = update_of(1)[name]
        expected = STATE.shared[name] + 0.5 * first + 0.5 * (0.25 * first + second)
        torch.testing.assert_close(state.shared[name], expected, rtol=1e-6, atol=1e-7)
