"""States on disk and messages on the wire: they come back to the bit, and damaged or forged ones are refused."""

import json
import math
import os
import pickle
from contextlib import suppress
from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.common.locks import file_lock
from colora.errors import BaseMismatchError, CheckpointError, FederationError
from colora.federated.client import Client
from colora.federated.protocol import aggregate, broadcast, init
from colora.federated.state import Broadcast, ClientState, Reply, ServerState, digest
from colora.federated.storage import client_folder, load_client, load_server, save_client, save_server
from colora.federated.wire import broadcast_record, read_broadcast, read_name, read_reply, reply_record
from colora.tasks.schema import TaskSource
from colora.training.config import FederationConfig
from tests.helpers.run_files import save_base, write_task

FEDERATION = "0123456789abcdef" * 2
TENSORS = ("shared", "cores", "moments", "residual", "payload", "factors")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(seed=0):
    return {"A/m.q": random(2, 5, seed=seed), "B/m.q": random(4, 2, seed=seed + 1).t().contiguous().t()}


def client_state(number, seed=0):
    core = random(2, 2, seed=seed)
    moments = {"m/m.q": core / 7, "v/m.q": core.square()}
    return ClientState(number, {"m.q": core}, factors(seed), 3 * number, moments, 2 * number, {"B/m.q": random(4, 2)})


def server_state(number=3):
    shared, base = factors(), {"model_type": "toy", "shapes": {}}
    held = {"1": {"A": digest(shared, "A"), "B": "b"}, "2": {}}
    return ServerState(FEDERATION, number, shared, base, {"m/A/m.q": shared["A/m.q"]}, held)


def same(one, other):
    """Whether two dataclasses of one kind agree to the bit."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in TENSORS:
            if a.keys() != b.keys() or not all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a):
                return False
        elif a != b:
            return False
    return True


# ---- files -------------------------------------------------------------------------------------------------------


def test_server_state_comes_back_to_the_bit(tmp_path):
    assert load_server(tmp_path) is None
    save_server(tmp_path, server_state())
    assert same(load_server(tmp_path), server_state())
    save_server(tmp_path, new := replace(server_state(4), moments={}, holders={}))
    assert same(load_server(tmp_path), new)
    assert [path.name for path in tmp_path.iterdir()] == ["server.safetensors"]


def test_client_state_comes_back_to_the_bit(tmp_path):
    assert load_client(tmp_path, 9) is None
    state = client_state(2)
    save_client(tmp_path, state)
    assert same(load_client(tmp_path, 2), state)
    alone = tmp_path / "alone"
    save_client(alone, state, with_shared=False)
    assert same(load_client(alone, 2), replace(state, shared={}))
    assert same(load_client(alone, 2, factors(5)), replace(state, shared=factors(5)))


def test_load_client_takes_the_latest_state_and_two_are_kept(tmp_path):
    for number in (1, 2, 5, 11):
        save_client(tmp_path, client_state(number, seed=number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "before-round-11.safetensors",
        "before-round-5.safetensors",
    ]
    with pytest.raises(FederationError, match="has the cores from round 5 on"):
        load_client(tmp_path, 4)  # a new state in their place would replace these
    assert [load_client(tmp_path, asked).round for asked in (5, 10, 11, 99)] == [5, 5, 11, 11]
    assert same(load_client(tmp_path, 10), client_state(5, seed=5))


def test_save_client_removes_states_of_later_rounds(tmp_path):
    for number in (6, 7):
        save_client(tmp_path, client_state(number))
    save_client(tmp_path, client_state(6, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["before-round-6.safetensors"]
    assert same(load_client(tmp_path, 99), client_state(6, seed=1))


@pytest.mark.parametrize("keep", [0, 4, 100, -1, None])
def test_load_names_a_damaged_file(tmp_path, keep):
    save_server(tmp_path, server_state())
    save_client(tmp_path, client_state(2))
    for file, load in (("server", lambda: load_server(tmp_path)), ("before-round-2", lambda: load_client(tmp_path, 2))):
        path = tmp_path / f"{file}.safetensors"
        path.write_bytes(WHOLE if keep is None else path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=rf"{file}\.safetensors: damaged"):
            load()


def test_interrupted_write_leaves_the_old_state(tmp_path, monkeypatch):
    save_server(tmp_path, server_state())
    save_client(tmp_path, client_state(2))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_server(tmp_path, server_state(4))
        for number in (2, 3):
            with pytest.raises(CheckpointError, match="No space left"):
                save_client(tmp_path, client_state(number, seed=1))
    assert same(load_server(tmp_path), server_state())
    assert same(load_client(tmp_path, 9), client_state(2))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name",
    ["../" + "a" * 29, "/etc", "..", "", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "a" * 31 + "/", "é" * 32],
)
def test_client_folder_refuses_names_that_are_paths(tmp_path, name):
    with pytest.raises(FederationError, match="32 hexadecimal digits"):
        client_folder(tmp_path, name)
    assert client_folder(tmp_path, FEDERATION) == tmp_path / FEDERATION


# ---- a client on disk --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    write_task(folder, "red")
    federation = {"rounds": 3, "rows": 2, "core_steps": 1, "local_steps": 2, "compression": "int8"}
    config = FederationConfig(
        base=save_base(folder / "base"),
        adapter={"r": 4, "lora_alpha": 4},
        federation=federation,
        training={"max_length": 96, "threads": 1},
    )
    return Client(config, TaskSource(path=str(folder / "red.jsonl")), folder)


@pytest.fixture
def client(shared_client, tmp_path):
    """The client of this module, with a new folder."""
    shared_client.root = tmp_path
    return shared_client


def test_client_that_is_asked_twice_answers_the_same_bits(client, tmp_path):
    spec = client.config.federation
    state = init(FEDERATION, client.local)
    start = client.local.start_digests
    for _ in range(3):
        message = broadcast(state, "1", start)
        once, again = client.train_round(message), client.train_round(message)
        assert same(once, again)
        state, report = aggregate(state, [replace(once, client="1")], spec)
        assert report.accepted == ["1"]
    folder = tmp_path / FEDERATION
    assert sorted(path.name for path in folder.iterdir()) == [
        "before-round-2.safetensors",
        "before-round-3.safetensors",
    ]
    assert (load_client(folder, 2).round, load_client(folder, 3).position) == (2, 9)


def test_client_separates_federations_and_locks_its_state(client, tmp_path):
    start = client.local.start_digests
    message = broadcast(init(FEDERATION, client.local), "1", start)
    first = client.train_round(message)
    other = client.train_round(replace(message, federation="f" * 32))
    assert same(replace(other, federation=FEDERATION), first)
    with pytest.raises(FederationError, match="32 hexadecimal"):
        client.train_round(replace(message, federation="../" + FEDERATION[3:]))
    with file_lock(tmp_path / FEDERATION / "lock"), pytest.raises(FederationError, match="another process works"):
        client.train_round(message)
    identity = {**message.base, "shapes": {"model.layers.*.mlp.up_proj": "7 x 7"}}
    with pytest.raises(BaseMismatchError, match="not this client's"):
        client.train_round(replace(message, base=identity))


# ---- the wire ----------------------------------------------------------------------------------------------------

REPLY = Reply("7", FEDERATION, 2, {"B/m.q": random(4, 2), "A/m.q.int8": torch.ones(2, 5, dtype=torch.int8)}, 12, 1.25)
MESSAGE = Broadcast(FEDERATION, 2, {"model_type": "toy", "shapes": {"é": "2 x 3"}}, {"A": "a", "B": "b"}, factors())


def test_messages_come_back_to_the_bit():
    for reply in (REPLY, replace(REPLY, loss=None), replace(REPLY, payload={}, missing=True)):
        assert same(read_reply(reply_record(reply), "7"), reply)
    halves = {name: tensor.half() for name, tensor in factors().items()}
    for message in (MESSAGE, replace(MESSAGE, factors={}), replace(MESSAGE, factors=halves)):
        assert same(read_broadcast(broadcast_record(message)), message)
    assert read_name(reply_record(REPLY, "clinic 3")) == "clinic 3"
    assert [read_name(one) for one in (reply_record(REPLY), reply_record(REPLY, "../x\n"), RecordDict())] == [None] * 3


def reply_with(metrics=(), about=(), payload=None, without=None):
    """The record of a reply with other values; None removes a value."""
    record = reply_record(REPLY)
    changed = [{**record.metric_records["metrics"], **dict(metrics)}, {**record.config_records["reply"], **dict(about)}]
    metrics, about = ({key: value for key, value in values.items() if value is not None} for values in changed)
    payload = record.array_records["payload"] if payload is None else payload
    parts = {"metrics": MetricRecord(metrics), "reply": ConfigRecord(about), "payload": payload}
    return RecordDict({name: part for name, part in parts.items() if name != without})


MALFORMED = {
    "nothing": RecordDict(),
    "records swapped": RecordDict({"payload": ConfigRecord(), "metrics": ArrayRecord(), "reply": MetricRecord()}),
    "empty payload": reply_with(payload=ArrayRecord()),
    **{f"no {part}": reply_with(without=part) for part in ("payload", "metrics", "reply")},
    **{f"round is {value!r}": reply_with(about={"round": value}) for value in ("2", None, 2.0, [2])},
    **{f"examples are {value!r}": reply_with({"num-examples": value}) for value in (math.nan, [12], None)},
    "missing is missing": reply_with({"missing": None}),
    "federation is missing": reply_with(about={"federation": None}),
    "loss is a list": reply_with({"loss": [1.0]}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_read_reply_refuses_malformed_replies(name):
    with pytest.raises(FederationError, match=r"not a message of a CoLoRA client|expected"):
        read_reply(MALFORMED[name], "7")


def npy(header, body=b""):
    """A .npy file with any header."""
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def bytes_array(content):
    buffer = BytesIO()
    np.save(buffer, np.frombuffer(content, np.uint8))
    return buffer.getvalue()


def archive():
    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def tensor_file(kind, shape, end):
    header = json.dumps({"B/m.q": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}).encode()
    return bytes_array(len(header).to_bytes(8, "little") + header + bytes(min(end, 64)))


HEAD = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }"
WHOLE = safetensors.torch.save(REPLY.payload)
FORGED = {
    "empty": b"",
    "text": b"hello",
    "zip": archive(),
    "no zip": b"PK\x03\x04abc",
    "pickle": pickle.dumps(["x"]),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(["x"])),
    "huge": npy(HEAD % (1 << 47)),
    "larger than numbers go": npy(HEAD % (1 << 70)),
    "negative": npy(HEAD % -1),
    "deep": npy("-" * 9000 + "1"),
    "brackets": npy("(" * 9000),
    "open quote": npy("{'descr': '''"),
    "cut off": bytes_array(WHOLE)[:-3],
    "safetensors cut off": bytes_array(WHOLE[:-3]),
    "safetensors with a wild length": bytes_array(b"\xff" * 40),
    "unknown kind": tensor_file("F4", [2], 1),
    "past the end": tensor_file("F32", [1 << 40], 1 << 42),
}


def forged(content, dtype="uint8", stype="numpy.ndarray"):
    return ArrayRecord({"safetensors": Array(dtype, (len(content),), stype, content)})


@pytest.mark.parametrize("name", FORGED)
def test_forged_bytes_are_refused(name):
    with pytest.raises(FederationError):
        read_reply(reply_with(payload=forged(FORGED[name])), "7")
    record = broadcast_record(MESSAGE)
    with pytest.raises(FederationError):
        read_broadcast(RecordDict({"factors": forged(FORGED[name]), "round": record.config_records["round"]}))


def test_read_reply_refuses_other_kinds_of_arrays():
    good = bytes_array(WHOLE)
    assert same(read_reply(reply_with(payload=forged(good)), "7"), REPLY)
    for payload in (forged(good, stype="pickle"), forged(good, dtype="object"), ArrayRecord([np.ones(3)])):
        with pytest.raises(FederationError):
            read_reply(reply_with(payload=payload), "7")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_read_reply_of_random_bytes_raises_only_federation_errors(data):
    content = bytearray(bytes_array(WHOLE))
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, min(len(content) - 1, 400)))
        content[index] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(FederationError):
        read_reply(reply_with(payload=forged(content)), "7")


@pytest.mark.parametrize(
    "changes",
    [
        {"round": "2"},
        {"round": None},
        {"base": "{"},
        {"base": None},
        {"base": "3"},
        {"base": "null"},
        {"base": "[1]"},
        {"base": "[" * 100000},
        {"base": b"\xff"},
        {"digest-A": None},
        {"federation": None},
    ],
    ids=lambda changes: str(changes)[:20],
)
def test_read_broadcast_refuses_malformed_broadcasts(changes):
    record = broadcast_record(MESSAGE)
    values = {**record.config_records["round"], **changes}
    header = ConfigRecord({key: value for key, value in values.items() if value is not None})
    with pytest.raises(FederationError):
        read_broadcast(RecordDict({"factors": record.array_records["factors"], "round": header}))
