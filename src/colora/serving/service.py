"""A bank that answers, without HTTP: prompts to tokens and outputs, tasks that come and go, newer banks."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from colora.bank.tensors import SavedBank
from colora.common.device import base_dtype_on, cpu_multiplies_bfloat16, training_device
from colora.common.threads import configure_threads
from colora.errors import BaseMismatchError, ConfigError
from colora.models.base import load_base
from colora.models.decoding.batch import Batch, Piece
from colora.models.decoding.layout import lay_out_by_columns
from colora.models.decoding.sampling import Sampling
from colora.serving.access import LOCAL, Tenant
from colora.serving.logprobs import TokenBytes
from colora.serving.metrics import Metrics
from colora.serving.precision import suitable_base
from colora.serving.resident import Resident, attach_slots, detach_slots
from colora.serving.scheduler import Engine, Scheduler, Ticket
from colora.serving.store import CoreStore
from colora.tasks.prompting.prompts import conversation_ids
from colora.tasks.prompting.templates import parse_template
from colora.tasks.tokenizer import Tokenizer

__all__ = ["Options", "PromptTooLongError", "Service"]


class PromptTooLongError(ConfigError):
    """The prompt leaves no room for an output."""


@dataclass(frozen=True)
class Options:
    """How a server is set up.

    Attributes:
        bank: folder of a bank or of a run; read again by `reload`.
        base: another path or name of the same base model.
        state: folder for tasks that come while the server runs; None: they are lost when it ends.
        rows: most rows in the batch.
        queue: most requests that wait.
        resident: most cores on the device.
        max_length: longest prompt and output together in tokens, at most the model's own limit; memory for `rows` of
            them is allocated once one of them is as long.
        max_tokens: longest output of requests that do not set it.
        temperature: of requests that do not set it.
        dtype: "float32", "bfloat16" or "float16"; None: bfloat16, but float32 on a device that does not multiply it, or
            on a CPU where it would change the answers, see `colora.serving.precision`.
        threads: of torch on a CPU; None: one for each core but one, for the server itself.
    """

    bank: Path
    base: str | None = None
    state: Path | None = None
    rows: int = 16
    queue: int = 256
    resident: int = 1000
    max_length: int = 2048
    max_tokens: int = 256
    temperature: float = 1.0
    dtype: str | None = None
    threads: int | None = None


class Service:
    """A bank on its base model, and the thread that runs the model.

    Args:
        options: how the server is set up.
        tenants: returns the number of tenants.

    Raises:
        BankFileError: the folder has no bank, or a damaged one.
        BaseMismatchError: the base is another model.
        ConfigError: the model cannot be run with these options, see `Batch`.
    """

    def __init__(self, options: Options, tenants: Callable[[], int] = lambda: 1) -> None:
        # Torch's threads wait for each other in every product: one that shares its core with what receives and sends
        # holds up all of them. On two cores one thread gives 1.3 (float32) to 1.7 times (bfloat16) the tokens of two.
        configure_threads(options.threads, spare=1)
        self.options = options
        self.metrics = Metrics()
        store = self._read_store()
        base, self.tokenizer = self._load(store.saved)
        lay_out_by_columns(base)
        self.dtype: torch.dtype = base.dtype
        self.chat_template = store.saved.info.chat_template
        self.scheduler = Scheduler(self._engine(base, store), options.queue, self.metrics, tenants)
        self._encoding = threading.Lock()  # tokenizers are not safe to use from several threads
        self._reloading = threading.Lock()

    def _read_store(self) -> CoreStore:
        store = CoreStore(self.options.bank, self.options.state)
        store.reserved = frozenset({self.options.base or store.saved.info.base})
        return store

    def _load(self, saved: SavedBank) -> tuple[PreTrainedModel, Tokenizer]:
        name, device = self.options.base or saved.info.base, training_device("auto")
        on_cpu = torch.device(device or "cpu").type == "cpu"

        def load(dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
            return load_base(name, dtype, device, chat_template=saved.info.chat_template)

        if self.options.dtype is not None:
            return load(getattr(torch, self.options.dtype))
        if on_cpu and cpu_multiplies_bfloat16():
            return suitable_base(load, saved)
        return load(base_dtype_on(device))

    def _engine(self, base: PreTrainedModel, store: CoreStore) -> Engine:
        options = self.options
        slots = max(options.resident, options.rows)
        model = attach_slots(base, store.saved, slots)
        resident = Resident(model)
        with resident.sample(store.saved) as tasks:  # the model is checked with cores as they will run
            batch = Batch(model, self.tokenizer, options.rows, options.max_length, tasks)
        return Engine(batch, store, resident)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token stands for."""
        return TokenBytes(self.tokenizer)

    @property
    def store(self) -> CoreStore:
        """The tasks."""
        return self.scheduler.engine.store

    @property
    def positions(self) -> int:
        """Longest prompt and output together, in tokens."""
        return self.scheduler.engine.batch.positions

    # ---- requests ---------------------------------------------------------------------------------------------------

    def chat_prompt(self, task: str, instruction: str | None, turns: list[str]) -> list[int]:
        """The token ids after these turns, as the task's prompts are.

        Raises:
            TaskIdError: there is no such task (any more).
            ConfigError: the task's prompt has no place for the instruction, or for several turns.
            PromptTooLongError: they leave no room.
        """
        text = self.store.prompt_of(task)
        template = None if text is None else parse_template(text)
        with self._encoding:
            return self._checked(conversation_ids(instruction, turns, self.tokenizer, template))

    def plain_prompt(self, prompt: str | list[int]) -> list[int]:
        """The token ids of a text without a template, or the ids given. Raises ConfigError, PromptTooLongError."""
        if isinstance(prompt, str):
            with self._encoding:
                return self._checked(list(self.tokenizer(prompt, verbose=False)["input_ids"]))
        if unknown := [token for token in prompt if not 0 <= token < len(self.tokenizer)]:
            raise ConfigError(f"prompt: expected token ids from 0 to {len(self.tokenizer) - 1}, found {unknown[0]}")
        return self._checked(prompt)

    def _checked(self, prompt: list[int]) -> list[int]:
        if not prompt:
            raise ConfigError("expected a prompt of at least one token, found none")
        if len(prompt) >= self.positions:
            raise PromptTooLongError(
                f"expected a prompt of at most {self.positions - 1} tokens, found {len(prompt)}: shorten it"
            )
        return prompt

    async def open(self, tenant: Tenant, task: str, prompt: list[int], sampling: Sampling) -> "Stream":
        """Queue a request; the stream has its output as it comes. The caller closes the stream, ended or not.

        Raises:
            BusyError, ClosedError, TaskIdError: see `Scheduler.submit`.
        """
        stream = Stream(self.scheduler, asyncio.get_running_loop())
        submit, rows = self.scheduler.submit, tenant.limits.rows
        stream.ticket = await asyncio.to_thread(submit, tenant.name, task, prompt, sampling, stream.deliver, rows)
        return stream

    # ---- tasks ------------------------------------------------------------------------------------------------------

    def put(self, task: str, content: bytes, tenant: Tenant = LOCAL) -> bool:
        """Add a task or replace its core, see `CoreStore.put`; whether it is new. Rows that run keep the old core."""
        store = self.store
        new = task not in store
        store.put(task, content, tenant.name, tenant.limits)
        if not new:
            self._drop(task)
        return new

    def core_file(self, task: str) -> bytes:
        """A task's core as a file. Raises TaskIdError if there is no such task."""
        return self.store.core_file(task)

    def remove(self, task: str) -> None:
        """Remove a task: requests in the queue are refused, rows that run end. Raises TaskIdError if it is absent."""
        self.store.remove(task)
        self._drop(task)

    def _drop(self, task: str) -> None:
        self.scheduler.call(lambda: self.scheduler.engine.resident.drop(task)).result()

    def reload(self) -> None:
        """Load the bank's folder anew, once the rows that run have ended; requests in the queue wait meanwhile.

        Raises:
            BankFileError, BaseMismatchError, CheckpointError: the new bank cannot be used; the old one stays.
            ConfigError: the new bank has prompts of another form.
        """
        with self._reloading:
            store = self._read_store()
            info, old = store.saved.info, self.store.saved.info
            if self.options.base is None and info.base != old.base:
                raise BaseMismatchError(f"expected a bank on the base model {old.base}, found a bank on {info.base}")
            if info.chat_template != self.chat_template:
                raise ConfigError(
                    "expected a bank with the same setting of chat_template: restart the server to serve this bank"
                )
            self.scheduler.call(lambda: self._swap(store), alone=True).result()

    def _swap(self, store: CoreStore) -> None:
        before = self.scheduler.engine
        base = detach_slots(before.batch.peft_model)
        try:
            self.scheduler.engine = self._engine(base, store)
        except BaseException:
            self.scheduler.engine = self._engine(base, before.store)
            raise

    # ---- metrics ----------------------------------------------------------------------------------------------------

    def measure(self) -> bytes:
        """The metrics as they are now, in Prometheus' text format."""
        metrics = self.metrics
        metrics.waiting.set(self.scheduler.waiting)
        metrics.running.set(self.scheduler.running)
        metrics.resident.set(len(self.scheduler.engine.resident))
        metrics.tasks.set(len(self.store))
        return metrics.text()


class Stream:
    """The pieces of one output, from the model's thread to an event loop."""

    def __init__(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler, self.loop = scheduler, loop
        self.ticket: Ticket | None = None
        self.queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.ended = False

    @property
    def tokens(self) -> list[int]:
        """The token ids of the output so far."""
        return [] if self.ticket is None else self.ticket.row.tokens

    @property
    def with_logprobs(self) -> bool:
        """Whether the request asks for log probabilities."""
        return self.ticket is not None and self.ticket.row.sampling.logprobs is not None

    @property
    def finish(self) -> str:
        """Why the output has ended, "stop" or "length"; empty before the end."""
        return "" if self.ticket is None else self.ticket.row.finish or ""

    def deliver(self, piece: Piece | Exception) -> None:
        """Pass a piece, or the error that ended the output, to the event loop; called in the model's thread."""
        self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Piece:
        if self.ended:
            raise StopAsyncIteration
        piece = await self.queue.get()
        if isinstance(piece, Exception):
            self.ended = True
            raise piece
        self.ended = piece.finish is not None
        return piece

    def close(self) -> None:
        """Cancel the request unless its output has ended."""
        if not self.ended and self.ticket is not None:
            self.scheduler.cancel(self.ticket)
