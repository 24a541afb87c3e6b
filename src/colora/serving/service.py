"""What a server does, whoever asks it in whatever form: prompts to tickets, tasks that come and go, newer banks."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from colora.bank.core_file import CoreHeader, core_bytes
from colora.common.device import training_device
from colora.common.threads import configure_threads
from colora.errors import BaseMismatchError, ConfigError
from colora.models.base import load_base
from colora.models.decoding.batch import Batch, Piece
from colora.models.decoding.layout import lay_out_by_columns
from colora.models.decoding.sampling import Sampling
from colora.serving.metrics import Metrics
from colora.serving.resident import Resident, attach_slots, detach_slots
from colora.serving.scheduler import Engine, Scheduler, Ticket
from colora.serving.store import CoreStore
from colora.tasks.prompts import conversation_ids

__all__ = ["Options", "PromptTooLongError", "Service"]


class PromptTooLongError(ConfigError):
    """A prompt that leaves no room for an output."""


@dataclass(frozen=True)
class Options:
    """How a server is set up.

    Attributes:
        bank: folder of a bank or of a run; read again by `reload`.
        base: another place of the same base model.
        state: folder for tasks that come while it runs; None: they are gone when it ends.
        rows: most rows in the batch.
        queue: most requests that wait.
        resident: most cores on the device.
        max_length: longest prompt and output together in tokens, at most what the model can; room for `rows` of them
            is taken once one of them is as long.
        max_tokens: longest output where a request says nothing.
        temperature: where a request says nothing.
        dtype: "float32", "bfloat16" or "float16"; None: float32 on a CPU, else bfloat16.
        threads: of torch on a CPU; None: one for each core.
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
    """A bank that answers.

    Raises:
        BankFileError: no bank there, or a damaged one.
        BaseMismatchError: the base is another model.
        ConfigError: a model that cannot be run so, see `Batch`.
    """

    def __init__(self, options: Options, tenants: Callable[[], int] = lambda: 1) -> None:
        configure_threads(options.threads)
        self.options = options
        self.metrics = Metrics()
        store = CoreStore(options.bank, options.state)
        info = store.saved.info
        device = training_device("auto")
        kind = options.dtype or ("float32" if torch.device(device or "cpu").type == "cpu" else "bfloat16")
        base, self.tokenizer = load_base(
            options.base or info.base, getattr(torch, kind), device, chat_template=info.chat_template
        )
        lay_out_by_columns(base)
        self.chat_template = info.chat_template
        self.scheduler = Scheduler(self._engine(base, store), options.queue, self.metrics, tenants)
        self._encoding = threading.Lock()
        self._reloading = threading.Lock()

    def _engine(self, base: Any, store: CoreStore) -> Engine:
        options = self.options
        slots = max(options.resident, options.rows)
        model = attach_slots(base, store.saved, slots)
        return Engine(Batch(model, self.tokenizer, options.rows, options.max_length), store, Resident(model))

    @property
    def store(self) -> CoreStore:
        """The tasks."""
        return self.scheduler.engine.store

    @property
    def positions(self) -> int:
        """Longest prompt and output together, in tokens."""
        return self.scheduler.engine.batch.positions

    # ---- requests ---------------------------------------------------------------------------------------------------

    def chat_prompt(self, instruction: str | None, turns: list[str]) -> list[int]:
        """The token ids after these turns. Raises ConfigError, PromptTooLongError."""
        with self._encoding:
            return self._fitting(conversation_ids(instruction, turns, self.tokenizer))

    def plain_prompt(self, prompt: str | list[int]) -> list[int]:
        """The token ids of a text as it is, or ids as they are. Raises ConfigError, PromptTooLongError."""
        if isinstance(prompt, str):
            with self._encoding:
                return self._fitting(list(self.tokenizer(prompt, verbose=False)["input_ids"]))
        if faults := [one for one in prompt if not 0 <= one < len(self.tokenizer)]:
            raise ConfigError(f"prompt: expected token ids from 0 to {len(self.tokenizer) - 1}, found {faults[0]}")
        return self._fitting(prompt)

    def _fitting(self, prompt: list[int]) -> list[int]:
        if not prompt:
            raise ConfigError("expected a prompt of at least one token, found none")
        if len(prompt) >= self.positions:
            raise PromptTooLongError(
                f"expected a prompt of at most {self.positions - 1} tokens, found {len(prompt)}: shorten it"
            )
        return prompt

    async def open(self, tenant: str, task: str, prompt: list[int], sampling: Sampling) -> "Stream":
        """The output as it comes. The caller closes the stream, whether it has ended or nobody listens any more.

        Raises:
            BusyError, ClosedError, TaskIdError: see `Scheduler.submit`.
        """
        stream = Stream(self.scheduler, asyncio.get_running_loop())
        stream.ticket = await asyncio.to_thread(self.scheduler.submit, tenant, task, prompt, sampling, stream.deliver)
        return stream

    # ---- tasks ------------------------------------------------------------------------------------------------------

    def put(self, task: str, content: bytes) -> bool:
        """Take in a core file, see `CoreStore.put`; whether the task is new. Rows that run keep the core they have."""
        store = self.store
        new = task not in store
        store.put(task, content)
        if not new:
            self._drop(task)
        return new

    def core_file(self, task: str) -> bytes:
        """A task's core as a file. Raises TaskIdError if there is no such task."""
        store = self.store
        _, core = store.read(task)
        return core_bytes(core, CoreHeader(task, store.saved.info.base, store.shared))

    def remove(self, task: str) -> None:
        """Forget a task. Raises TaskIdError if there is none. What waits for it is refused, what runs ends."""
        self.store.remove(task)
        self._drop(task)

    def _drop(self, task: str) -> None:
        self.scheduler.call(lambda: self.scheduler.engine.resident.drop(task)).result()

    def reload(self) -> None:
        """Take up the bank's folder as it is now, once the rows that run have ended; what waits in the queue waits on.

        Raises:
            BankFileError, BaseMismatchError, CheckpointError: the bank there cannot be used; the old one serves on.
            ConfigError: it wants prompts of another form.
        """
        with self._reloading:
            store = CoreStore(self.options.bank, self.options.state)
            info, old = store.saved.info, self.store.saved.info
            if self.options.base is None and info.base != old.base:
                raise BaseMismatchError(f"expected a bank of {old.base}, found one of {info.base}")
            if info.chat_template != self.chat_template:
                raise ConfigError("expected a bank with prompts of the same form (chat_template)")
            self.scheduler.call(lambda: self._swap(store), alone=True).result()

    def _swap(self, store: CoreStore) -> None:
        before = self.scheduler.engine
        model = before.batch.peft_model
        base = detach_slots(model)
        try:
            self.scheduler.engine = self._engine(base, store)
        except BaseException:
            self.scheduler.engine = self._engine(base, before.store)
            raise

    # ---- life -------------------------------------------------------------------------------------------------------

    def measure(self) -> bytes:
        """The metrics now."""
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
        """Of the output so far."""
        return [] if self.ticket is None else self.ticket.row.tokens

    @property
    def finish(self) -> str:
        """Why the output has ended, "stop" or "length"; empty before."""
        return "" if self.ticket is None else self.ticket.row.finish or ""

    def deliver(self, piece: Piece | Exception) -> None:
        """Called in the model's thread."""
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
        """Nobody listens any more."""
        if not self.ended and self.ticket is not None:
            self.scheduler.cancel(self.ticket)
