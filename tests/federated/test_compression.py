"""Compressed uploads: their size, their error, error feedback, and malformed payloads."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.errors import FederationError
from colora.federated.aggregate import aggregate, update_norm
from colora.federated.compression import compress, decompress
from colora.federated.local import LocalData, LocalModel
from colora.federated.protocol import federate, init
from colora.federated.state import Reply, ServerState, message_bytes
from colora.tasks.encode import EncodedTasks
from colora.training.config import AdapterSpec, FederationSpec
from tests.helpers.tiny import tiny_llama

FEDERATION = "0123456789abcdef" * 2
KINDS = ["none", "int8", "topk"]


def update_of(seed, shape=(6, 20)):
    generator = torch.Generator().manual_seed(seed)
    rows = 10.0 ** (torch.arange(shape[0]) - shape[0] // 2)[:, None]  # rows of very different magnitudes
    return {f"{part}/x": rows * torch.randn(shape, generator=generator) for part in "AB"}


seeds = st.integers(0, 10**6)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 30))


@settings(max_examples=60, deadline=None)
@given(seeds, shapes)
def test_int8_error_is_at_most_half_a_step_of_the_row(seed, shape):
    update = update_of(seed, shape)
    payload, left = compress(update, {}, "int8", 0.1)
    found = decompress(payload, update, "int8")
    for name, tensor in update.items():
        step = tensor.abs().amax(1, keepdim=True) / 127
        assert ((found[name] - tensor).abs() <= 0.5001 * step).all()
        torch.testing.assert_close(found[name] + left[name], tensor, rtol=1e-6, atol=0)
        assert payload[f"{name}.int8"].dtype == torch.int8
        assert int(payload[f"{name}.int8"].abs().max()) == 127


def test_int8_keeps_zeros():
    update = {"A/x": torch.zeros(3, 4)}
    payload, left = compress(update, {}, "int8", 0.1)
    assert torch.equal(decompress(payload, update, "int8")["A/x"], update["A/x"])
    assert torch.equal(left["A/x"], update["A/x"])


@settings(max_examples=60, deadline=None)
@given(seeds, shapes, st.floats(0.01, 1))
def test_topk_sends_the_largest_magnitudes_exactly(seed, shape, keep):
    update = update_of(seed, shape)
    payload, left = compress(update, {}, "topk", keep)
    found = decompress(payload, update, "topk")
    for name, tensor in update.items():
        count = max(1, round(keep * tensor.numel()))
        sent = found[name] != 0
        assert int(sent.sum()) == len(payload[f"{name}.value"]) == count
        assert torch.equal(found[name][sent], tensor[sent])
        assert torch.equal(found[name] + left[name], tensor)
        if count < tensor.numel():
            assert tensor[sent].abs().min() >= tensor[~sent].abs().max()


def test_none_sends_the_update_itself():
    update = update_of(0)
    payload, left = compress(update, {}, "none", 0.1)
    assert left == {}
    assert all(torch.equal(decompress(payload, update, "none")[name], update[name]) for name in update)


@pytest.mark.parametrize("kind", ["int8", "topk"])
def test_error_feedback_loses_only_the_last_residual(kind):
    generator = torch.Generator().manual_seed(0)
    total, sent, residual, largest = 0.0, 0.0, {}, []
    for _ in range(100):
        update = {"A/x": torch.randn(5, 40, generator=generator)}
        payload, residual = compress(update, residual, kind, 0.1)
        total = total + update["A/x"].double()
        sent = sent + decompress(payload, update, kind)["A/x"].double()
        largest.append(float(residual["A/x"].abs().max()))
    torch.testing.assert_close(sent + residual["A/x"], total, rtol=0, atol=1e-4)
    assert (total - sent).abs().max() > 1e-4, "compression was exact: there is nothing to feed back"
    assert max(largest) < 20, "the residual grows without bound"
    without_feedback = sum(
        decompress(compress({"A/x": update}, {}, kind, 0.1)[0], {"A/x": update}, kind)["A/x"] - update
        for update in torch.randn(100, 5, 40, generator=torch.Generator().manual_seed(0))
    )
    if kind == "topk":
        assert without_feedback.norm() > 2 * (sent - total).norm(), "feedback gains nothing"


def test_message_bytes_of_each_kind():
    update = {f"B/{layer}": torch.randn(576, 8) for layer in range(20)}
    whole = message_bytes(compress(update, {}, "none", 0.1)[0])
    assert whole == pytest.approx(4 * 20 * 576 * 8, rel=0.01)
    # A scale for each row: with rows of r numbers, 1/4 and 1/r; with rows of d_in, 1/4.
    assert message_bytes(compress(update, {}, "int8", 0.1)[0]) / whole == pytest.approx(1 / 4 + 1 / 8, abs=0.01)
    wide = {f"A/{layer}": torch.randn(8, 576) for layer in range(20)}
    assert message_bytes(compress(wide, {}, "int8", 0.1)[0]) / whole == pytest.approx(1 / 4, abs=0.01)
    assert message_bytes(compress(update, {}, "topk", 0.1)[0]) / whole == pytest.approx(0.2, abs=0.01)


# ---- malformed payloads ------------------------------------------------------------------------------------------

LIKE = {"B/x": torch.zeros(4, 2)}
INT8 = {"B/x.int8": torch.ones(4, 2, dtype=torch.int8), "B/x.scale": torch.ones(4)}
TOPK = {"B/x.index": torch.tensor([1, 5], dtype=torch.int32), "B/x.value": torch.ones(2)}


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("topk", {"B/x.index": int32(1, 8)}, "different indices from 0 to 7"),
        ("topk", {"B/x.index": int32(-1, 1)}, "different indices from 0 to 7"),
        ("topk", {"B/x.index": int32(-(2**31), 2**31 - 1)}, "different indices from 0 to 7"),
        ("topk", {"B/x.index": int32(3, 3)}, "different indices from 0 to 7"),
        ("topk", {"B/x.index": torch.tensor([1, 5])}, "expected torch.int32, found torch.int64"),
        ("topk", {"B/x.index": torch.tensor([1.0, 5.0])}, "expected torch.int32, found torch.float32"),
        ("topk", {"B/x.value": torch.ones(2).double()}, "expected torch.float32, found torch.float64"),
        ("topk", {"B/x.value": torch.ones(3)}, "as many indices as values"),
        ("topk", {"B/x.index": int32(1), "B/x.value": torch.ones(1, 1)}, "as many indices as values"),
        ("topk", {"B/x.index": int32(), "B/x.value": torch.ones(0)}, "as many indices as values"),
        ("topk", {"B/x.index": torch.tensor(1, dtype=torch.int32), "B/x.value": torch.tensor(1.0)}, "as many indices"),
        ("topk", {"B/x.index": None}, "first difference 'B/x.index'"),
        ("topk", {"A/x.index": int32(1)}, "first difference 'A/x.index'"),
        ("int8", {"B/x.scale": None}, "first difference 'B/x.scale'"),
        ("int8", {"B/x.scale": torch.ones(3)}, r"expected shape \(4,\), found \(3,\)"),
        ("int8", {"B/x.scale": torch.ones(4, 1)}, r"expected shape \(4,\), found \(4, 1\)"),
        ("int8", {"B/x.scale": torch.ones(4).half()}, "expected torch.float32, found torch.float16"),
        ("int8", {"B/x.int8": torch.ones(4, 2)}, "expected torch.int8, found torch.float32"),
        ("int8", {"B/x.int8": torch.ones(4, 2, dtype=torch.uint8)}, "expected torch.int8, found torch.uint8"),
        ("int8", {"B/x.int8": torch.ones(2, 4, dtype=torch.int8)}, r"expected shape \(4, 2\), found \(2, 4\)"),
        ("int8", {"B/x": torch.ones(4, 2)}, "first difference 'B/x'"),
        ("none", {"B/x.int8": None, "B/x.scale": None, "B/x": torch.ones(4, 3)}, r"expected shape \(4, 2\)"),
    ],
)
def test_decompress_refuses_malformed_payloads(kind, changes, why):
    payload = (TOPK if kind == "topk" else INT8) | changes
    payload = {name: tensor for name, tensor in payload.items() if tensor is not None}
    with pytest.raises(FederationError, match=why):
        decompress(payload, LIKE, kind)
    decompress({"none": {"B/x": torch.ones(4, 2)}, "int8": INT8, "topk": TOPK}[kind], LIKE, kind)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("int8", INT8 | {"B/x.scale": torch.tensor([1, math.nan, 1, 1])}),
        ("int8", INT8 | {"B/x.scale": torch.tensor([1, math.inf, 1, 1])}),
        ("int8", INT8 | {"B/x.int8": 2 * INT8["B/x.int8"], "B/x.scale": torch.full((4,), 3e38)}),
        ("topk", TOPK | {"B/x.value": torch.tensor([1, math.nan])}),
    ],
)
def test_aggregate_drops_payloads_that_decompress_to_nan_or_infinity(kind, payload):
    state = ServerState(FEDERATION, 0, {"A/x": torch.ones(2, 3), "B/x": torch.zeros(4, 2)}, {})
    good = Reply("good", FEDERATION, 0, INT8 if kind == "int8" else TOPK, 1)
    spec = FederationSpec(schedule="alternating", compression=kind)
    found, report = aggregate(state, [good, replace(good, client="bad", payload=payload)], spec)
    assert report.dropped == {"bad": "B/x: NaN or infinite"}
    assert torch.equal(found.shared["B/x"], decompress(good.payload, LIKE, kind)["B/x"])


# ---- a whole federation ------------------------------------------------------------------------------------------


def data_of(name, low):
    items = []
    for index in range(6):
        ids = [low + index % 3, low + 5, low + index % 3, low + 7, 2]
        items.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "task_ids": 0})
    return LocalData(name, EncodedTasks(items, [6], []))


def test_federate_with_compression_ends_near_the_result_without():
    local = LocalModel(tiny_llama(hidden=16, layers=1), AdapterSpec(r=2, lora_alpha=2.0), 0, 0, 0.02, 0.05)
    data = {name: data_of(name, low) for name, low in (("ann", 20), ("bob", 40), ("cy", 60))}
    ends, losses, up = {}, {}, {}
    for kind in KINDS:
        sizes, means = [], []

        def record(state, report, messages, replies, sizes=sizes, means=means):
            sizes.append(sum(message_bytes(reply.payload) for reply in replies))
            means.append(sum(report.losses.values()) / 3)
            assert not report.dropped

        spec = FederationSpec(
            schedule="alternating",
            rounds=12,
            order="core_first",
            core_steps=2,
            local_steps=3,
            rows=2,
            compression=kind,
            keep=0.25,
        )
        clients = {name: local.initial_state() for name in data}
        ends[kind] = federate(init(FEDERATION, local), clients, data, local, spec, 0, record).shared
        losses[kind], up[kind] = means, sum(sizes)
    moved = update_norm({name: tensor - local.start[name] for name, tensor in ends["none"].items()})
    apart = {
        kind: update_norm({name: tensor - ends["none"][name] for name, tensor in ends[kind].items()}) for kind in KINDS
    }
    assert apart["int8"] < 0.2 * moved
    assert apart["topk"] < 0.8 * moved
    assert losses["none"][-1] < losses["none"][0] - 0.1
    assert losses["int8"][-1] == pytest.approx(losses["none"][-1], abs=0.02)
