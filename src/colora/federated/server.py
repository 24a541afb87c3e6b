"""The server of a networked federation: rounds over Flower's grid, and a checkpoint after each."""

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from colora.adapter.identity import check_base
from colora.common.files import write_json
from colora.common.locks import file_lock
from colora.common.provenance import environment
from colora.errors import FederationError
from colora.federated.aggregate import RoundReport, aggregate
from colora.federated.client import local_model
from colora.federated.history import history_line, round_cost, round_records, write_round
from colora.federated.local import LocalModel
from colora.federated.privacy import PrivateMean
from colora.federated.protocol import broadcast, init, sample
from colora.federated.state import Broadcast, Reply, ServerState
from colora.federated.storage import load_server, save_server
from colora.federated.wire import broadcast_record, read_name, read_reply
from colora.training.config import FederationConfig

__all__ = ["FINISH", "TRAIN", "serve"]

TRAIN, FINISH = "train", "train.finish"
POLL_SECONDS = 1.0
MOST_CHARACTERS = 300  # of a client's error in log and records


def serve(grid: Grid, config: FederationConfig, folder: Path, log: Callable[[str], None]) -> ServerState:
    """Run the rounds that are left, then send every client the final factors.

    Args:
        grid: reaches the clients.
        config: what the federation agrees on.
        folder: of this federation, for checkpoint and records; a folder that holds a checkpoint is resumed.
        log: takes lines for the user.

    Raises:
        FederationError: another process serves this folder; too few clients for `federation.wait` seconds; or
            `federation.void_rounds` rounds in a row that did not count.
    """
    with file_lock(folder / "lock") as locked:
        if not locked:
            raise FederationError(f"{folder}: another process serves this federation")
        return _serve(grid, config, folder, log)


def _serve(grid: Grid, config: FederationConfig, folder: Path, log: Callable[[str], None]) -> ServerState:
    spec = config.federation
    local, _ = local_model(config)
    state = _resume(folder, config, local, log)
    write_json(folder / "environment.json", environment())
    private = None if spec.clip is None else PrivateMean(spec, folder / "privacy.json")
    names: dict[str, str] = {}
    void_rounds = 0
    while state.round < spec.rounds:
        began = time.monotonic()
        clients = sample(_connected(grid, spec.clients, spec.wait, log), spec, state.round, config.seed)
        messages = {client: broadcast(state, client, local.start_digests) for client in clients}
        received = _exchange(grid, messages, TRAIN, spec.deadline)
        replies, failures = _read_replies(received, clients)
        _learn_names(names, received)
        state, report = aggregate(state, replies, spec, private)
        # A client that was not heard of may have lost its disk.
        state = replace(state, holders={name: held for name, held in state.holders.items() if name not in failures})
        report = _with_names(replace(report, dropped=report.dropped | failures), names)
        save_server(folder, state)
        epsilon = None if private is None else private.epsilon
        cost = round_cost(messages.values(), replies, time.monotonic() - began, epsilon)
        write_round(folder / "rounds.jsonl", round_records(folder.resolve().name, config.seed, report, cost))
        log(history_line(report, cost, spec.rounds))
        void_rounds = void_rounds + 1 if report.void else 0
        if void_rounds >= spec.void_rounds:
            raise FederationError(f"{void_rounds} rounds in a row did not count; the last: {_reasons(report)}")
    _finish(grid, state, local.start_digests, spec.deadline, log)
    return state


def _resume(folder: Path, config: FederationConfig, local: LocalModel, log: Callable[[str], None]) -> ServerState:
    """The state of the folder's checkpoint; a new one is saved if there is none."""
    state = load_server(folder)
    if state is None:
        state = init(uuid.uuid4().hex, local)
        save_server(folder, state)
    else:
        check_base(dict(state.base), local.peft.get_base_model(), config.base)
        log(f"going on after round {state.round} of {config.federation.rounds}")
    return state


def _finish(
    grid: Grid, state: ServerState, start: Mapping[str, str], deadline: float, log: Callable[[str], None]
) -> None:
    """Send every connected client the final factors; each writes its own bank."""
    messages = {str(node): broadcast(state, str(node), start) for node in grid.get_node_ids()}
    done = 0
    for message in _exchange(grid, messages, FINISH, deadline):
        if message.has_error():
            log(f"client {message.metadata.src_node_id} did not finish: {message.error.reason}")
        else:
            done += 1
    log(f"{done} of {len(messages)} clients have the final factors")


def _connected(grid: Grid, least: int, seconds: float, log: Callable[[str], None]) -> list[str]:
    """The clients that are connected, once they are at least `least`."""
    end = time.monotonic() + seconds
    logged = -1
    while len(nodes := [str(node) for node in grid.get_node_ids()]) < least:
        if len(nodes) != logged:
            log(f"waiting for clients: {len(nodes)} of {least} are there")
            logged = len(nodes)
        if time.monotonic() > end:
            raise FederationError(f"expected {least} clients within {seconds:g} seconds, found {len(nodes)}")
        time.sleep(POLL_SECONDS)
    return nodes


def _exchange(grid: Grid, messages: Mapping[str, Broadcast], kind: str, deadline: float) -> list[Message]:
    """Send each client its message, and return what came back by the deadline."""
    sent = [
        Message(broadcast_record(message), dst_node_id=int(client), message_type=kind, ttl=deadline)
        for client, message in messages.items()
    ]
    return list(grid.send_and_receive(sent, timeout=deadline))


def _read_replies(messages: Iterable[Message], clients: Collection[str]) -> tuple[list[Reply], dict[str, str]]:
    """The replies that can be read, and for each other client why there is none."""
    replies: dict[str, Reply] = {}
    failures = dict.fromkeys(clients, "no reply by the deadline")
    for message in messages:
        client = str(message.metadata.src_node_id)
        if client not in clients:
            continue  # for a client that is gone or late Flower itself replies, as node 1
        if message.has_error():
            failures[client] = f"failed: {_one_line(message.error.reason)}"
            continue
        try:
            replies[client] = read_reply(message.content, client)
        except FederationError as error:
            failures[client] = str(error)
    return list(replies.values()), {client: why for client, why in failures.items() if client not in replies}


def _learn_names(names: dict[str, str], messages: Iterable[Message]) -> None:
    """Add the names that clients ask for in records, by node; a name that is taken is not given again."""
    for message in messages:
        name = None if message.has_error() else read_name(message.content)
        if name is not None and name not in names.values():
            names[str(message.metadata.src_node_id)] = name


def _with_names(report: RoundReport, names: Mapping[str, str]) -> RoundReport:
    """The report with the names of clients in place of the numbers of their nodes."""
    return replace(
        report,
        accepted=[names.get(client, client) for client in report.accepted],
        dropped={names.get(client, client): why for client, why in report.dropped.items()},
        losses={names.get(client, client): loss for client, loss in report.losses.items()},
    )


def _one_line(text: str | None) -> str:
    return " ".join(str(text).split())[:MOST_CHARACTERS] or "no reason given"


def _reasons(report: RoundReport) -> str:
    return "; ".join(f"{client}: {why}" for client, why in report.dropped.items()) or "too few replies"
