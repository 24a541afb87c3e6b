"""Flower's ClientApp: what a client's owner said when starting it decides what is read and where the core is kept.

Flower starts a process for each message. The flags of the SuperNode, in its `--node-config`:

    task      the client's task file, all of whose examples it trains on, or a folder with train.* (required)
    state     folder for the core (required)
    base      its place of the base model, if another than the federation's
    name      what to be called in the server's records; by default its node's number
    share-loss    false keeps the training loss to itself
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from colora.common.threads import configure_threads
from colora.errors import ConfigError
from colora.federated.client import Member
from colora.federated.state import Reply
from colora.federated.wire import read_broadcast, reply_record
from colora.tasks.schema import TaskSource
from colora.training.config import FederationConfig

__all__ = ["app", "member"]

app = ClientApp()
logger = logging.getLogger("flwr")


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    client = _member(context)
    reply = client.take_part(read_broadcast(message.content))
    return Message(reply_record(reply, str(context.node_config.get("name", ""))), reply_to=message)


@app.train("finish")
def finish(message: Message, context: Context) -> Message:
    """The final factors."""
    client = _member(context)
    broadcast = read_broadcast(message.content)
    logger.info("bank: %s", client.complete(broadcast))
    done = Reply(client.data.name, broadcast.federation, broadcast.round, {}, len(client.data.rows))
    return Message(reply_record(done), reply_to=message)


def _member(context: Context) -> Member:
    return member(str(context.run_config["colora"]), tuple(sorted(context.node_config.items())))


@lru_cache(maxsize=1)
def member(config: str, flags: tuple[tuple[str, Any], ...]) -> Member:
    """The client that these flags describe; once a process, for reading model and task takes longest.

    Raises:
        ConfigError: a flag is missing.
    """
    given: Mapping[str, Any] = dict(flags)
    if missing := [flag for flag in ("task", "state") if not given.get(flag)]:
        raise ConfigError(f"started without {' and '.join(missing)}; see `colora federate client --help`")
    agreed = FederationConfig.model_validate_json(config)
    configure_threads(agreed.training.threads)
    return Member(
        agreed, TaskSource(path=str(given["task"]), val=0, test=0),
        Path(str(given["state"])), str(given.get("base") or "") or None, given.get("share-loss", True) is not False,
    )  # fmt: skip
