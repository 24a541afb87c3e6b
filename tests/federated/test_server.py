"""The server of a federation against clients that fail, over a grid inside this process.

The clients are the real ClientApp with a folder each; the faults change their replies.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from colora.common.locks import file_lock
from colora.errors import ConfigError, FederationError
from colora.evaluation.records import read_records
from colora.federated import client_app, protocol
from colora.federated import state as federated_state
from colora.federated.client import Client
from colora.federated.client_app import make_client
from colora.federated.protocol import broadcast, init
from colora.federated.server import serve
from colora.federated.storage import load_server
from colora.tasks.schema import TaskSource
from colora.training.config import FederationConfig
from tests.helpers.local_grid import NAMES, Fault, LocalGrid
from tests.helpers.run_files import save_base, write_task


def with_payload(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Fault:
    """A client whose payload is changed."""

    def fault(message: Message, reply: Message) -> Message:
        content = reply.content.array_records["payload"]["safetensors"].numpy().tobytes()
        new_content = safetensors.torch.save(change(safetensors.torch.load(content)))
        reply.content["payload"] = ArrayRecord({"safetensors": Array(np.frombuffer(new_content, np.uint8))})
        return reply

    return fault


def with_round(number: int) -> Fault:
    """A client that answers another round."""

    def fault(message: Message, reply: Message) -> Message:
        reply.content.config_records["reply"]["round"] = number
        return reply

    return fault


def with_first(
    payload: dict[str, torch.Tensor], new: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    name = next(iter(payload))
    return payload | {name: new(payload[name])}


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (
        lambda m, r: Message(Error(0, "Traceback\nKeyError: 'x'"), reply_to=m),
        "failed: Traceback KeyError: 'x'",
    ),
    "silent": (lambda m, r: None, "no reply by the deadline"),
    "NaN": (with_payload(lambda p: with_first(p, lambda t: t * float("nan"))), "NaN or infinite"),
    "infinite": (with_payload(lambda p: with_first(p, lambda t: t + float("inf"))), "NaN or infinite"),
    "shape": (with_payload(lambda p: with_first(p, lambda t: t[:1])), "expected shape"),
    "type": (with_payload(lambda p: with_first(p, lambda t: t.double())), "expected torch.float32"),
    "key": (with_payload(lambda p: dict(list(p.items())[1:])), "first difference"),
    "large": (with_payload(lambda p: {name: 1000 * t for name, t in p.items()}), "times the round's median"),
    "round": (with_round(99), "expected round"),
    "empty": (lambda m, r: Message(RecordDict(), reply_to=m), "not a message of a CoLoRA client"),
}


@pytest.fixture
def config(tmp_path: Path) -> FederationConfig:
    make_client.cache_clear()
    for name in NAMES:
        write_task(tmp_path, name)
    return FederationConfig.model_validate(
        {
            "base": save_base(tmp_path / "base"),
            "adapter": {"r": 4, "lora_alpha": 4},
            "training": {"max_length": 96, "threads": 1},
            "federation": {"rounds": 2, "rows": 2, "wait": 0.1, "clients": 2, "void_rounds": 2},
        }
    )


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", FAULTS)
def test_serve_drops_and_records_a_bad_client(tmp_path: Path, config: FederationConfig, name: str):
    fault, why = FAULTS[name]
    lines: list[str] = []
    state = serve(LocalGrid(config, tmp_path, {"grey": fault}), config, tmp_path / "out", lines.append)
    assert state.round == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.shared.values())
    records = read_records(tmp_path / "out" / "rounds.jsonl")
    for number in range(2):
        metrics = {record.metric: record for record in records if record.split == f"round {number}"}
        assert (metrics["accepted"].value, metrics["dropped"].value) == (3, 1)
        (reason,) = [metric for metric in metrics if metric.startswith("dropped: ")]
        assert why in reason
    assert sum(why in line for line in lines) == 2


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed"])
def test_serve_with_a_dropped_client_equals_a_run_without_it(tmp_path: Path, config: FederationConfig, rule: str):
    config = config.model_copy(update={"federation": config.federation.model_copy(update={"rule": rule})})
    with_bad = serve(LocalGrid(config, tmp_path, {"grey": FAULTS["NaN"][0]}), config, tmp_path / "bad", quiet)
    grid = LocalGrid(config, tmp_path / "again")
    (tmp_path / "again").mkdir()
    for name in NAMES:
        write_task(tmp_path / "again", name)
    grid.nodes = {number: name for number, name in grid.nodes.items() if name != "grey"}
    without = serve(grid, config, tmp_path / "good", quiet)
    for name, tensor in without.shared.items():
        torch.testing.assert_close(with_bad.shared[name], tensor, rtol=1e-5, atol=1e-7)


def test_serve_ends_after_void_rounds_with_the_reason(tmp_path: Path, config: FederationConfig):
    grid = LocalGrid(config, tmp_path, {name: lambda message, reply: None for name in NAMES})
    with pytest.raises(FederationError, match=r"2 rounds in a row did not count; the last: .*no reply by the deadline"):
        serve(grid, config, tmp_path / "out", quiet)
    state = load_server(tmp_path / "out")
    assert state is not None
    assert state.round == 2


def test_serve_ends_if_too_few_clients_connect(tmp_path: Path, config: FederationConfig):
    grid = LocalGrid(config, tmp_path)
    grid.nodes = {}
    with pytest.raises(FederationError, match=r"expected 2 clients within 0\.1 seconds, found 0"):
        serve(grid, config, tmp_path / "out", quiet)


def test_serve_resumes_after_a_crash_to_the_same_factors(tmp_path: Path, config: FederationConfig):
    whole = serve(LocalGrid(config, tmp_path), config, tmp_path / "whole", quiet)

    class Killed(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            if self.sent[-1].content.config_records["round"]["round"] == 1:
                raise SystemExit  # the clients have trained for round 1, and the server has no reply
            return replies

    (tmp_path / "second").mkdir()
    for name in NAMES:
        write_task(tmp_path / "second", name)
    with pytest.raises(SystemExit):
        serve(Killed(config, tmp_path / "second"), config, tmp_path / "out", quiet)
    lines: list[str] = []
    after = serve(LocalGrid(config, tmp_path / "second"), config, tmp_path / "out", lines.append)
    assert lines[0] == "going on after round 1 of 2"
    for name, tensor in whole.shared.items():
        assert torch.equal(after.shared[name], tensor)
    rounds = [one.split for one in read_records(tmp_path / "out" / "rounds.jsonl") if one.metric == "accepted"]
    assert rounds == ["round 0", "round 1"]


def test_serve_refuses_a_locked_folder(tmp_path: Path, config: FederationConfig):
    with file_lock(tmp_path / "out" / "lock") as locked:
        assert locked
        with pytest.raises(FederationError, match="another process serves this federation"):
            serve(LocalGrid(config, tmp_path), config, tmp_path / "out", quiet)


def test_client_on_another_base_is_dropped(tmp_path: Path, config: FederationConfig, monkeypatch):
    from tests.helpers.tiny import tiny_llama

    other = save_base(tmp_path / "other", tiny_llama(seed=5))

    def with_other_base(agreed: str, flags: Any) -> Any:
        named = dict(flags)["name"]
        return make_client(agreed, tuple(sorted((dict(flags) | ({"base": other} if named == "grey" else {})).items())))

    monkeypatch.setattr(client_app, "make_client", with_other_base)
    serve(LocalGrid(config, tmp_path), config, tmp_path / "out", quiet)
    records = read_records(tmp_path / "out" / "rounds.jsonl")
    (dropped,) = {one.metric for one in records if one.metric.startswith("dropped: ")}
    assert "BaseMismatchError: the federation's base model is not this client's" in dropped


def test_every_client_writes_a_bank_of_its_own_task_alone(tmp_path: Path, config: FederationConfig):
    serve(LocalGrid(config, tmp_path), config, tmp_path / "out", quiet)
    for name in NAMES:
        (bank,) = (tmp_path / "state" / name).glob("*/bank")
        assert json.loads((bank / "adapter_config.json").read_text())["tasks"] == [name]


@pytest.mark.parametrize("name", ["11", "all clients", "a\nb"])
def test_names_of_nodes_or_of_all_clients_are_not_taken(tmp_path: Path, config: FederationConfig, name: str):
    def renamed(message: Message, reply: Message) -> Message:
        reply.content.config_records["reply"]["name"] = name
        return reply

    grid = LocalGrid(config, tmp_path, {"red": renamed})
    serve(grid, config, tmp_path / "out", quiet)
    records = read_records(tmp_path / "out" / "rounds.jsonl")
    names = [record.task for record in records if record.metric == "train_nll"]
    (node,) = (str(number) for number, client in grid.nodes.items() if client == "red")
    assert sorted(names) == sorted(2 * [node, "blue", "green", "grey"])


@pytest.mark.parametrize(("field", "value"), [("precision", "bf16"), ("core_weight_decay", 0.1), ("warmup_steps", 5)])
def test_serve_refuses_fields_that_clients_do_not_implement(
    tmp_path: Path, config: FederationConfig, field: str, value: Any
):
    training = config.training.model_copy(update={field: value})
    with pytest.raises(ConfigError, match=rf"training\.{field} cannot be used"):
        serve(LocalGrid(config, tmp_path), config.model_copy(update={"training": training}), tmp_path / "out", quiet)


@pytest.mark.parametrize("name", ["A/evil", None])
def test_client_refuses_a_factor_of_another_model(tmp_path: Path, config: FederationConfig, name: str):
    source = TaskSource(path=str(tmp_path / "red.jsonl"), val=0, test=0)
    client = Client(config, source, tmp_path / "state")
    state = init("0" * 32, client.local)
    factor = next(iter(state.shared))
    bad = replace(broadcast(state, "red", client.local.start_digests), factors={name or factor: torch.zeros(3, 3)})
    with pytest.raises(FederationError, match="expected"):
        client.train_round(bad)
    assert not list((tmp_path / "state").rglob("before-round-*"))


def test_client_refuses_a_server_restored_from_long_before(tmp_path: Path, config: FederationConfig):
    source = TaskSource(path=str(tmp_path / "red.jsonl"), val=0, test=0)
    client = Client(config, source, tmp_path / "state")
    state = init("0" * 32, client.local)
    start = client.local.start_digests
    for number in range(4):
        client.train_round(broadcast(replace(state, round=number), "red", start))
    kept = {path.name for path in (tmp_path / "state").rglob("before-round-*")}
    assert kept == {"before-round-3.safetensors", "before-round-4.safetensors"}
    with pytest.raises(FederationError, match="has the cores from round 3 on, but the server asks for round 1"):
        client.train_round(broadcast(replace(state, round=1), "red", start))
    assert {path.name for path in (tmp_path / "state").rglob("before-round-*")} == kept


def test_hashes_of_networked_rounds(tmp_path: Path, config: FederationConfig, monkeypatch: pytest.MonkeyPatch):
    """The server hashes A and B once a round for all clients, each client once what it received or read from disk."""
    hashed: list[tuple[int, str]] = []
    hash_part = federated_state.digest
    grid = LocalGrid(config, tmp_path)

    def counted(shared: dict[str, torch.Tensor], part: str) -> str:
        hashed.append((len(grid.sent), part))
        return hash_part(shared, part)

    for module in (federated_state, protocol):
        monkeypatch.setattr(module, "digest", counted)
    serve(grid, config, tmp_path / "out", quiet)
    by_message = [sorted(part for sent, part in hashed if sent == number) for number in range(len(grid.sent) + 1)]
    # Before the first message the server hashes the factors that clients start with, and its own. What the server
    # hashes for the next round comes after the last client of the round before.
    assert by_message[0] == ["A", "A", "B", "B"]
    for round_number in range(3):
        *others, last = by_message[1 + 4 * round_number : 5 + 4 * round_number]
        assert others == [["A", "B"]] * 3
        assert last == (["A", "A", "B", "B"] if round_number < 2 else ["A", "B"])
