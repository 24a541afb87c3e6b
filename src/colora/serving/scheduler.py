"""One thread that runs the model: requests wait in a bounded queue, tenants take turns, tasks share every step."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from colora.errors import ColoraError
from colora.models.decoding.batch import Batch, Piece, Row
from colora.models.decoding.sampling import Sampling
from colora.serving.metrics import Metrics
from colora.serving.resident import NoRoomError, Resident
from colora.serving.store import Core, CoreStore

__all__ = ["BusyError", "ClosedError", "Engine", "ModelFailedError", "Scheduler", "Ticket"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
Deliver = Callable[[Piece | Exception], None]
PROMPT_TOKENS = 1024  # read in one pass, so that rows that run do not wait long


class BusyError(ColoraError):
    """The queue is full."""


class ClosedError(ColoraError):
    """The server is going down."""


class ModelFailedError(ColoraError):
    """A step of the model failed. Why is in the log: it may tell of the inside, or of others in the batch."""


@dataclass(frozen=True)
class Engine:
    """What the thread works with; replaced as a whole when a newer bank is taken up."""

    batch: Batch
    store: CoreStore
    resident: Resident


@dataclass(eq=False)
class Ticket:
    """A request on its way.

    Attributes:
        deliver: called in the model's thread with each piece of text, and with the error that ended it, if one did.
        core: read ahead for a task that was not on the device, with where it was read and its version.
    """

    tenant: str
    task: str
    row: Row
    deliver: Deliver
    core: tuple[CoreStore, int, Core] | None = None
    version: int = 0
    arrived: float = field(default_factory=time.monotonic)
    began: float | None = None
    cancelled: bool = False


class Scheduler:
    """The queue and the thread.

    Args:
        engine: model, tasks, and the cores that are on the device.
        queue: most requests that wait; one tenant may have half of them waiting, the only one all.
        metrics: what is counted.
        tenants: tells how many there are.
    """

    def __init__(self, engine: Engine, queue: int, metrics: Metrics, tenants: Callable[[], int] = lambda: 1) -> None:
        self.engine, self.metrics = engine, metrics
        self.most, self.tenants = queue, tenants
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()  # by tenant, whose turn it is first
        self._running: dict[int, Ticket] = {}  # by id of the row
        self._calls: deque[tuple[Callable[[], Any], Future[Any], bool]] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._change:
            return sum(len(one) for one in self._waiting.values())

    @property
    def running(self) -> int:
        """Rows in the batch."""
        return len(self._running)

    def submit(
        self,
        tenant: str,
        task: str,
        prompt: list[int],
        sampling: Sampling,
        deliver: Deliver,
    ) -> Ticket:
        """Put a request into the queue; from any thread.

        Raises:
            BusyError: the queue is full, or this tenant's part of it.
            ClosedError: the server is going down.
            TaskIdError: there is no such task.
        """
        ticket = Ticket(tenant, task, Row(prompt, 0, sampling), deliver)
        store, resident = self.engine.store, self.engine.resident
        with self._change:
            self._check_room(tenant)
        if not resident.has(task, store.version(task)):
            ticket.core = (store, *store.read(task))  # here, for in the model's thread all would wait for it
        with self._change:
            self._check_room(tenant)
            self._waiting.setdefault(tenant, deque()).append(ticket)
            self._change.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this one any more: it leaves the queue or, at the next step, the batch."""
        with self._change:
            ticket.cancelled = True
            self._change.notify()

    def call(self, function: Callable[[], T], alone: bool = False) -> "Future[T]":
        """Run a function in the model's thread, between two steps.

        Args:
            alone: once all rows have ended; what waits in the queue waits on.
        """
        future: Future[T] = Future()
        with self._change:
            if self._closing:
                raise ClosedError("the server is going down")
            self._calls.append((function, future, alone))
            self._change.notify()
        return future

    def close(self, seconds: float) -> bool:
        """Take no more requests and finish those that are there; whether all could be finished in time."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # ---- the model's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._calls or self._running or self._waiting):
                    if self._closing:
                        return
                    self._change.wait()
            try:
                self._turn()
            except Exception:  # a defect or a device out of memory must not leave anyone waiting for ever
                logger.exception("a step of the model failed")
                self.metrics.failures.inc()
                self._fail_running()

    def _turn(self) -> None:
        self._leave_cancelled()
        exclusive = self._make_calls()
        if not exclusive and (tickets := self._admitted()):
            began = time.monotonic()
            pieces = self.engine.batch.join([ticket.row for ticket in tickets])
            self.metrics.prefill_seconds.observe(time.monotonic() - began)
            self.metrics.prompt_tokens.inc(sum(len(ticket.row.prompt) for ticket in tickets))
            self._pass_on(pieces)
        if self._running:
            began = time.monotonic()
            pieces = self.engine.batch.step()
            self.metrics.step_seconds.observe(time.monotonic() - began)
            self._pass_on(pieces)

    def _make_calls(self) -> bool:
        """Make the calls whose time has come; whether one waits until all rows have ended."""
        while self._calls:
            function, future, alone = self._calls[0]
            if alone and self._running:
                return True
            self._calls.popleft()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        return False

    def _admitted(self) -> list[Ticket]:
        """The requests that join the batch now, one of each tenant in turn; their cores are on the device."""
        tickets: list[Ticket] = []
        longest = 0
        while len(tickets) < self.engine.batch.room:
            with self._change:
                if not self._waiting:
                    break
                tenant, queue = next(iter(self._waiting.items()))
                ticket = queue[0]
                longest = max(longest, len(ticket.row.prompt))
                if tickets and longest * (len(tickets) + 1) > PROMPT_TOKENS:
                    break
                queue.popleft()
                self._waiting.move_to_end(tenant)
                if not queue:
                    del self._waiting[tenant]
            try:
                self._hold(ticket)
            except NoRoomError:
                with self._change:  # back to the front; rows that end make room
                    self._waiting.setdefault(tenant, deque()).appendleft(ticket)
                    self._waiting.move_to_end(tenant, last=False)
                break
            except Exception as error:
                ticket.deliver(error)
                continue
            tickets.append(ticket)
            self._running[id(ticket.row)] = ticket
        return tickets

    def _hold(self, ticket: Ticket) -> None:
        store, resident = self.engine.store, self.engine.resident
        ticket.version = store.version(ticket.task)
        ahead = ticket.core
        ready = ahead[2] if ahead is not None and ahead[:2] == (store, ticket.version) else None
        there = resident.has(ticket.task, ticket.version)
        began = time.monotonic()
        ticket.row.task = resident.hold(
            ticket.task, ticket.version, lambda: ready if ready is not None else store.read(ticket.task)[1]
        )
        ticket.core = None
        if there:
            self.metrics.core_hits.inc()
        else:
            self.metrics.core_misses.inc()
            self.metrics.core_seconds.observe(time.monotonic() - began)

    def _pass_on(self, pieces: list[Piece]) -> None:
        now = time.monotonic()
        self.metrics.output_tokens.inc(len(pieces))
        for piece in pieces:
            ticket = self._running[id(piece.row)]
            if ticket.began is None:
                ticket.began = now
                self.metrics.first_token_seconds.observe(now - ticket.arrived)
            if piece.finish is not None:
                self._done(ticket)
                self.metrics.request_seconds.observe(now - ticket.arrived)
            ticket.deliver(piece)

    def _done(self, ticket: Ticket) -> None:
        del self._running[id(ticket.row)]
        self.engine.resident.release(ticket.task, ticket.version)

    def _leave_cancelled(self) -> None:
        for ticket in [one for one in self._running.values() if one.cancelled]:
            self.engine.batch.leave(ticket.row)
            self._done(ticket)
            self.metrics.cancelled.inc()
        with self._change:
            for tenant, queue in list(self._waiting.items()):
                kept = deque(one for one in queue if not one.cancelled)
                self.metrics.cancelled.inc(len(queue) - len(kept))
                if kept:
                    self._waiting[tenant] = kept
                else:
                    del self._waiting[tenant]

    def _fail_running(self) -> None:
        for ticket in list(self._running.values()):
            if any(row is ticket.row for row in self.engine.batch.rows):
                self.engine.batch.leave(ticket.row)
            self._done(ticket)
            ticket.deliver(ModelFailedError("the model failed at this request"))

    def _check_room(self, tenant: str) -> None:
        if self._closing:
            raise ClosedError("the server is going down")
        mine = len(self._waiting.get(tenant, ()))
        if self.waiting >= self.most or mine >= (self.most if self.tenants() < 2 else max(1, self.most // 2)):
            self.metrics.refused.inc()
            raise BusyError(f"{self.waiting} requests are waiting; try again later")
