"""A client with a disk: what it keeps between rounds, so that it can be killed, come back, or be asked twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colora.adapter.identity import check_base
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.device import DTYPES, training_device
from colora.common.locks import file_lock
from colora.errors import BaseMismatchError, ColoraError, ConfigError, FederationError
from colora.federated.local import LocalData, LocalModel
from colora.federated.protocol import client_update, finish
from colora.federated.state import Broadcast, ClientState, Reply
from colora.federated.storage import client_folder, load_client, save_client
from colora.models.base import load_base
from colora.models.positions import check_positions
from colora.tasks.encode import encode_tasks
from colora.tasks.prompting.templates import template_of
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import FederationConfig
from colora.training.prompts import check_chat, unplaced_text
from colora.training.run_folder import EARLIER

__all__ = ["Client", "agreed_prompt", "local_data", "local_model"]


UNUSED = ("precision", "core_weight_decay", "warmup_steps", "beta2", "gradient_checkpointing", "shard")
"""Fields of `training` that would change what is trained and that clients do not implement: refused, not ignored."""


def local_model(config: FederationConfig, base: str | None = None) -> tuple[LocalModel, Tokenizer]:
    """The model that a client trains, or the server reads the shapes of, and its tokenizer.

    Args:
        config: what the federation agrees on.
        base: another path or name of the same base model.

    Raises:
        ConfigError: if `training` says something that a federation cannot do, or the prompt is a chat template that the
            base does not have.
    """
    spec = config.training
    fields, earlier = type(spec).model_fields, EARLIER["training"]
    unchanged = {name: (fields[name].default, earlier.get(name)) for name in UNUSED}
    if changed := [f"training.{name}" for name, values in unchanged.items() if getattr(spec, name) not in values]:
        raise ConfigError(f"in a federation {', '.join(changed)} cannot be used: leave the default")
    device = training_device(spec.device)
    model, tokenizer = load_base(
        base or config.base, DTYPES[spec.base_dtype], device, chat_template=config.chat_template
    )
    check_chat([config.prompt], model, tokenizer)
    check_positions(model, spec.max_length)
    adapter = config.adapter
    if not config.federation.core_steps:  # cores that never move are the identity: one LoRA for all
        adapter = adapter.model_copy(update={"init_rotation": 0.0})
    settings = (spec.lr, spec.core_lr, spec.max_grad_norm, spec.weight_decay or 0.0)
    local = LocalModel(model, adapter, tokenizer.pad_token_id, config.seed, *settings)
    return local, tokenizer


def local_data(task: Task, tokenizer: Tokenizer, local: LocalModel, max_length: int) -> LocalData:
    """A client's training examples in tokens.

    Args:
        task: the client's task, with its prompt.
        tokenizer: of the base model.
        local: the model that will be trained.
        max_length: most tokens of an example.

    Raises:
        TaskFileError: listing every example that is too long.
        ConfigError: if there are none.
    """
    rows = encode_tasks([task], tokenizer, "train", max_length, local.encoder_decoder, {task.name: 0})
    if not len(rows):
        raise ConfigError(f"{task.source}: no training examples for {task.name!r}")
    return LocalData(task.name, rows)


def agreed_prompt(config: FederationConfig, task: Task) -> Task:
    """A client's task with the prompt of the federation.

    Raises:
        ConfigError: its texts have no place in that prompt.
    """
    if config.prompt is None:
        return task
    template = template_of(config.prompt)
    if fault := unplaced_text(task, template):
        raise ConfigError(f"prompt: task {task.name!r}, {fault}")
    return prompted(task, template)


@dataclass
class Client:
    """A client of a federation.

    Args:
        config: what the federation agrees on.
        source: the client's task. Read here, and sent nowhere.
        root: folder in which the client keeps its core.
        base: path or name of the base model here, if another than the federation's.
        tell_loss: whether the server may know the training loss.
    """

    config: FederationConfig
    source: TaskSource
    root: Path
    base: str | None = None
    tell_loss: bool = True

    def __post_init__(self) -> None:
        self.task = agreed_prompt(self.config, read_tasks([self.source], self.config.seed)[0])
        self.local, self.tokenizer = local_model(self.config, self.base)
        self.data = local_data(self.task, self.tokenizer, self.local, self.config.training.max_length)

    def train_round(self, message: Broadcast) -> Reply:
        """Train for one round; the new core is on disk before the reply is returned.

        Raises:
            BaseMismatchError: the federation is on another base model than this client has.
            FederationError: another process works on the same core.
        """
        with self._locked_state(message) as (folder, state):
            spec, seed = self.config.federation, self.config.seed
            reply, after = client_update(state, message, self.local, self.data, spec, seed, self.tell_loss)
            if not reply.missing:
                save_client(folder, after)
        return reply

    def finish(self, message: Broadcast) -> Path:
        """Take the final factors, fit the core to them, and write the client's own bank.

        Returns:
            the bank's folder.

        Raises:
            BaseMismatchError, FederationError: as in `train_round`.
        """
        with self._locked_state(message) as (folder, state):
            spec, seed = self.config.federation, self.config.seed
            state = finish(state, message, self.local, self.data, spec, seed)
            save_client(folder, state)
            info = BankInfo(
                base=self.base or self.config.base,
                chat_template=self.config.chat_template,
                prompt=self.config.prompt,
                max_length=self.config.training.max_length,
                examples={self.task.name: len(self.data.rows)},
                seen={self.task.name: state.position * spec.rows},
            )
            save_bank(self.local.bank(state.shared, {self.task.name: state.cores}), folder / "bank", info)
        return folder / "bank"

    @contextmanager
    def _locked_state(self, message: Broadcast) -> Iterator[tuple[Path, ClientState]]:
        """The folder of the message's federation, locked, and the client's state in it."""
        folder = client_folder(self.root, message.federation)
        try:
            check_base(dict(message.base), self.local.peft.get_base_model(), self.base or self.config.base)
        except ColoraError as error:
            raise BaseMismatchError(f"the federation's base model is not this client's: {error}") from error
        with file_lock(folder / "lock") as locked:
            if not locked:
                raise FederationError(f"{folder}: another process works on this client's core")
            yield folder, load_client(folder, message.round) or self.local.initial_state(self.task.name)
