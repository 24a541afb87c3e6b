"""Flower's ClientApp. The flags with which a client's owner started it say what is read and where the core is kept.

Flower starts a process for each message. The flags of the SuperNode, in its `--node-config`:

    task      the client's task file, all of whose examples it trains on, or a folder with train.* (required)
    state     folder for the core (required)
    base      path or name of the base model here, if another than the federation's
    name      the client's name in the server's records; by default the number of its node
    share-loss    false keeps the training loss from the server
"""

import logging
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from colora.common.threads import configure_threads
from colora.errors import ConfigError
from colora.federated.client import Client
from colora.federated.state import Reply
from colora.federated.wire import read_broadcast, reply_record
from colora.tasks.schema import TaskSource
from colora.training.config import FederationConfig

__all__ = ["Flags", "app", "make_client"]

app = ClientApp()
logger = logging.getLogger("flwr")
Flags = tuple[tuple[str, bool | int | float | str], ...]


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    reply = _client(context).train_round(read_broadcast(message.content))
    return Message(reply_record(reply, str(context.node_config.get("name", ""))), reply_to=message)


@app.train("finish")
def finish(message: Message, context: Context) -> Message:
    """The final factors."""
    client = _client(context)
    broadcast = read_broadcast(message.content)
    logger.info("bank: %s", client.finish(broadcast))
    reply = Reply(client.data.name, broadcast.federation, broadcast.round, {}, len(client.data.rows))
    return Message(reply_record(reply), reply_to=message)


def _client(context: Context) -> Client:
    return make_client(str(context.run_config["colora"]), tuple(sorted(context.node_config.items())))


@lru_cache(maxsize=1)
def make_client(config: str, flags: Flags) -> Client:
    """The client that these flags describe; once a process, since reading model and task takes longest.

    Args:
        config: a `FederationConfig` as JSON.
        flags: of the SuperNode, sorted by name.

    Raises:
        ConfigError: a flag is missing.
    """
    values = dict(flags)
    if missing := [flag for flag in ("task", "state") if not values.get(flag)]:
        raise ConfigError(f"started without {' and '.join(missing)}; see `colora federate client --help`")
    agreed = FederationConfig.model_validate_json(config)
    configure_threads(agreed.training.threads)
    return Client(
        agreed,
        TaskSource(path=str(values["task"]), val=0, test=0),
        Path(str(values["state"])),
        base=str(values.get("base") or "") or None,
        tell_loss=values.get("share-loss", True) is not False,
    )
