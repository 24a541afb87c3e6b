"""A grid of Flower inside this process: the real ClientApp, with a folder for each client."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from colora.federated.client_app import app
from colora.training.config import FederationConfig

Fault = Callable[[Message, Message], Message | None]
NAMES = ("red", "blue", "green", "grey")


class LocalGrid(Grid):
    """Reaches the ClientApps of this process; `faults` change a client's replies, None is silence."""

    def __init__(self, config: FederationConfig, folder: Path, faults: dict[str, Fault] | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.config, self.folder, self.faults = config, folder, faults or {}
        self.nodes = dict(enumerate(NAMES, start=10))
        self.sent: list[Message] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent.append(message)
            name = self.nodes[message.metadata.dst_node_id]
            context = Context(
                node_id=message.metadata.dst_node_id,
                state=RecordDict(),
                run_id=1,
                node_config={
                    "task": str(self.folder / f"{name}.jsonl"),
                    "name": name,
                    "state": str(self.folder / "state" / name),
                },
                run_config={"colora": self.config.model_dump_json()},
            )
            try:
                reply: Message | None = app(message, context)
            except Exception as error:
                reply = Message(Error(0, f"Traceback\n{type(error).__name__}: {error}"), reply_to=message)
            if name in self.faults and message.metadata.message_type == "train" and reply is not None:
                reply = self.faults[name](message, reply)
            replies += [] if reply is None else [reply]
        return replies

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    push_messages = pull_messages = set_run = create_message
    run = None
