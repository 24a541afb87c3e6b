"""The server of a real federation: rounds over Flower's grid, a checkpoint after each, and an end when nobody comes."""

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from colora.adapter.identity import check_base
from colora.common.files import write_json
from colora.common.locks import claimed
from colora.common.provenance import environment
from colora.errors import FederationError
from colora.federated.client import local_model
from colora.federated.history import RoundCost, history_line, round_records, write_round
from colora.federated.privacy import PrivateMean
from colora.federated.protocol import RoundReport, aggregate, broadcast, init, sample
from colora.federated.state import Reply, ServerState, digests
from colora.federated.storage import load_server, message_bytes, save_server
from colora.federated.wire import broadcast_record, read_name, read_reply
from colora.training.config import FederationConfig

__all__ = ["FINISH", "TRAIN", "serve"]

TRAIN, FINISH = "train", "train.finish"
POLL_SECONDS = 1.0


def serve(grid: Grid, config: FederationConfig, folder: Path, log: Callable[[str], None]) -> ServerState:
    """Run the rounds that are left, then send every client the final factors.

    Args:
        grid: reaches the clients.
        folder: of this federation: checkpoint and records; one that holds a checkpoint is taken up again.
        log: takes lines for the user.

    Raises:
        FederationError: another process serves this folder; too few clients for `federation.wait` seconds; or
            `federation.void_rounds` rounds in a row that did not count.
    """
    with claimed(folder / "lock") as mine:
        if not mine:
            raise FederationError(f"{folder}: another process serves this federation")
        return _serve(grid, config, folder, log)


def _serve(grid: Grid, config: FederationConfig, folder: Path, log: Callable[[str], None]) -> ServerState:
    spec, seed = config.federation, config.seed
    local, _ = local_model(config)
    start = digests(local.start)
    state = load_server(folder)
    if state is None:
        state = init(uuid.uuid4().hex, local)
        save_server(folder, state)
    else:
        check_base(dict(state.base), local.peft.get_base_model(), config.base)
        log(f"going on after round {state.round} of {spec.rounds}")
    write_json(folder / "environment.json", environment())
    private = None if spec.clip is None else PrivateMean(spec, folder / "privacy.json")
    names: dict[str, str] = {}
    void = 0
    while state.round < spec.rounds:
        began = time.monotonic()
        nodes = _present(grid, spec.clients, spec.wait, log)
        chosen = sample(nodes, spec, state.round, seed)
        messages = {client: broadcast(state, client, start) for client in chosen}
        down = sum(message_bytes(message.factors) for message in messages.values())
        sent = [
            Message(broadcast_record(message), dst_node_id=int(client), message_type=TRAIN, ttl=spec.deadline)
            for client, message in messages.items()
        ]
        received = list(grid.send_and_receive(sent, timeout=spec.deadline))
        replies, refused = _receive(received, chosen)
        _learn_names(names, received)
        silent = dict.fromkeys(chosen, "no reply by the deadline") | refused
        up = sum(message_bytes(reply.payload) for reply in replies)
        state, report = aggregate(state, replies, spec, private)
        heard = {reply.client for reply in replies}
        late = {client: why for client, why in silent.items() if client not in heard}
        # Who was not heard of may have lost its disk.
        state = replace(state, holders={client: held for client, held in state.holders.items() if client not in late})
        report = replace(report, dropped=report.dropped | late)
        save_server(folder, state)
        report = _named(report, names)
        cost = RoundCost(up, down, time.monotonic() - began, None if private is None else private.epsilon)
        write_round(folder / "rounds.jsonl", round_records(folder.resolve().name, seed, report, cost))
        log(history_line(report, cost, spec.rounds))
        void = void + 1 if report.void else 0
        if void >= spec.void_rounds:
            raise FederationError(f"{void} rounds in a row did not count; the last: {_why(report)}")
    _finish(grid, state, config, start, log)
    return state


def _finish(
    grid: Grid, state: ServerState, config: FederationConfig, start: dict[str, str], log: Callable[[str], None]
) -> None:
    """Send every client that is there the final factors; each writes its own bank."""
    messages = [
        Message(
            broadcast_record(broadcast(state, str(client), start)), dst_node_id=client, message_type=FINISH,
            ttl=config.federation.deadline,
        )
        for client in grid.get_node_ids()
    ]  # fmt: skip
    done = 0
    for message in grid.send_and_receive(messages, timeout=config.federation.deadline):
        if message.has_error():
            log(f"client {message.metadata.src_node_id} did not finish: {message.error.reason}")
        else:
            done += 1
    log(f"{done} of {len(messages)} clients have the final factors")


def _present(grid: Grid, least: int, seconds: float, log: Callable[[str], None]) -> list[str]:
    """The clients that are there, once they are enough."""
    end = time.monotonic() + seconds
    told = -1
    while len(nodes := [str(node) for node in grid.get_node_ids()]) < least:
        if len(nodes) != told:
            log(f"waiting for clients: {len(nodes)} of {least} are there")
            told = len(nodes)
        if time.monotonic() > end:
            raise FederationError(f"expected {least} clients within {seconds:g} seconds, found {len(nodes)}")
        time.sleep(POLL_SECONDS)
    return nodes


def _receive(messages: Iterable[Message], clients: Collection[str]) -> tuple[list[Reply], dict[str, str]]:
    """The replies that can be read, by whom they came from; and why the others cannot."""
    replies: dict[str, Reply] = {}
    refused = {}
    for message in messages:
        client = str(message.metadata.src_node_id)
        if client not in clients:
            continue  # of a client that is gone or late Flower tells by itself, as node 1
        if message.has_error():
            refused[client] = f"failed: {_short(message.error.reason)}"
            continue
        try:
            replies[client] = read_reply(message.content, client)
        except FederationError as error:
            refused[client] = str(error)
    return list(replies.values()), refused


def _learn_names(names: dict[str, str], messages: Iterable[Message]) -> None:
    """What clients want to be called in records; a name that another has is not taken over."""
    for message in messages:
        name = None if message.has_error() else read_name(message.content)
        if name is not None and name not in names.values():
            names[str(message.metadata.src_node_id)] = name


def _named(report: RoundReport, names: Mapping[str, str]) -> RoundReport:
    return replace(
        report,
        accepted=[names.get(client, client) for client in report.accepted],
        dropped={names.get(client, client): why for client, why in report.dropped.items()},
        losses={names.get(client, client): loss for client, loss in report.losses.items()},
    )


def _short(text: Any) -> str:
    return " ".join(str(text).split())[:300] or "no reason given"


def _why(report: RoundReport) -> str:
    return "; ".join(f"{client}: {why}" for client, why in report.dropped.items()) or "too few replies"
