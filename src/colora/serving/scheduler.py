"""One thread that runs the model: requests wait in a bounded queue, tenants alternate, tasks share every step."""

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from colora.models.decoding.batch import Piece, Row
from colora.models.decoding.sampling import Sampling
from colora.serving.metrics import Metrics
from colora.serving.quotas import rows_of
from colora.serving.resident import NoRoomError
from colora.serving.tickets import BusyError, ClosedError, Deliver, Engine, ModelFailedError, Ticket

__all__ = ["BusyError", "ClosedError", "Engine", "ModelFailedError", "Scheduler", "Ticket"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
SHORT_PROMPT = 64  # tokens, that may be read at any time
PROMPT_TOKENS = 1024  # most that are read in one pass, so that rows that run do not wait long


class Scheduler:
    """The queue and the thread.

    Args:
        engine: model, tasks, and the cores that are on the device.
        queue: most requests that wait. One of several tenants may have half of them waiting, a single tenant all.
        metrics: counts requests, tokens and seconds.
        tenants: returns the number of tenants.
    """

    def __init__(self, engine: Engine, queue: int, metrics: Metrics, tenants: Callable[[], int] = lambda: 1) -> None:
        self.engine, self.metrics = engine, metrics
        self.most_waiting, self.tenants = queue, tenants
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()  # by tenant, the next one first
        self._running: dict[int, Ticket] = {}  # by id of the row
        self._calls: deque[tuple[Callable[[], Any], Future[Any], bool]] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._owed = 0.0  # seconds that reading prompts took from the rows that ran, and steps have not given back
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._change:
            return sum(len(tickets) for tickets in self._waiting.values())

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
        most_rows: int | None = None,
    ) -> Ticket:
        """Put a request into the queue; from any thread.

        Args:
            tenant: who asks.
            task: whose core is used.
            prompt: token ids.
            sampling: how it is continued.
            deliver: see `Ticket`.
            most_rows: of the batch that the tenant may have at once; None: see `Limits.rows`.

        Raises:
            BusyError: the queue is full, or this tenant's part of it.
            ClosedError: the server is shutting down.
            ConfigError: a prompt that the model cannot read, see `Batch.check`.
            TaskIdError: there is no such task.
        """
        rows = rows_of(most_rows, self.engine.batch.most_rows, self.tenants())
        ticket = Ticket(tenant, task, Row(prompt, 0, sampling), deliver, rows)
        self.engine.batch.check(ticket.row)
        store, resident = self.engine.store, self.engine.resident
        with self._change:
            self._check_room(tenant)
        if not resident.has(task, store.version(task)):
            ticket.core = (store, *store.read(task))  # not in the model's thread, where all would wait for it
        with self._change:
            self._check_room(tenant)
            self._waiting.setdefault(tenant, deque()).append(ticket)
            self._change.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this request any more: it leaves the queue or, at the next step, the batch."""
        with self._change:
            ticket.cancelled = True
            queue = self._waiting.get(ticket.tenant)
            if queue is not None and ticket in queue:  # at once: others may be refused for want of its place
                queue.remove(ticket)
                self.metrics.cancelled.inc()
                if not queue:
                    del self._waiting[ticket.tenant]
            self._change.notify()

    def call(self, function: Callable[[], T], alone: bool = False) -> "Future[T]":
        """Run a function in the model's thread, between two steps.

        Args:
            alone: wait until all rows have ended; requests in the queue wait meanwhile.
        """
        future: Future[T] = Future()
        with self._change:
            if self._closing:
                raise ClosedError("the server is going down")
            self._calls.append((function, future, alone))
            self._change.notify()
        return future

    def close(self, seconds: float) -> bool:
        """Refuse new requests and finish the others; whether all could be finished in time."""
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
                self._iterate()
            except BaseException:  # a defect or a device out of memory must not leave a request waiting for ever
                logger.exception("a step of the model failed")
                self.metrics.failures.inc()
                self._fail_running()

    def _iterate(self) -> None:
        self._leave_cancelled()
        draining = self._make_calls()
        if not draining and (tickets := self._admit()):
            began = time.monotonic()
            pieces = self.engine.batch.join([ticket.row for ticket in tickets])
            self._owed = time.monotonic() - began
            self.metrics.prefill_seconds.observe(self._owed)
            self.metrics.prompt_tokens.inc(sum(len(ticket.row.prompt) for ticket in tickets))
            self._deliver(pieces)
        if self._running:
            began = time.monotonic()
            pieces = self.engine.batch.step()
            self._owed -= time.monotonic() - began
            self.metrics.step_seconds.observe(time.monotonic() - began)
            self._deliver(pieces)

    def _make_calls(self) -> bool:
        """Make the calls that can be made now; whether one waits until all rows have ended."""
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

    def _admit(self) -> list[Ticket]:
        """Take the requests off the queue that join the batch now, and put their cores on the device."""
        tickets: list[Ticket] = []
        longest = 0
        while len(tickets) < self.engine.batch.room:
            ticket = self._next(longest, len(tickets))
            if ticket is None:
                break
            longest = max(longest, len(ticket.row.prompt))
            try:
                self.engine.batch.check(ticket.row)  # again: a newer bank may have come while it waited
                self._hold(ticket)
            except NoRoomError:
                with self._change:  # back to the front; rows that end make room
                    self._waiting.setdefault(ticket.tenant, deque()).appendleft(ticket)
                    self._waiting.move_to_end(ticket.tenant, last=False)
                break
            except Exception as error:
                self._tell(ticket, error)
                continue
            tickets.append(ticket)
            self._running[id(ticket.row)] = ticket
        return tickets

    def _next(self, longest: int, count: int) -> Ticket | None:
        """The next request, from the tenants in turn, or None.

        None means that nobody waits who may have a row more, or that reading the prompts would keep the running rows
        waiting too long.

        Args:
            longest: prompt of those that join already, in tokens.
            count: how many join already.
        """
        with self._change:
            running = Counter(ticket.tenant for ticket in self._running.values())
            free = (one for one in self._waiting.items() if self._may_join(one[1][0], running))
            tenant, queue = next(free, (None, None))
            if tenant is None or queue is None:
                return None
            longest = max(longest, len(queue[0].row.prompt))
            if count and longest * (count + 1) > PROMPT_TOKENS:
                return None
            ticket = queue.popleft()
            self._waiting.move_to_end(tenant)
            if not queue:
                del self._waiting[tenant]
            return ticket

    def _may_join(self, ticket: Ticket, running: Counter[str]) -> bool:
        """Whether the tenant may have a row more, by the numbers of rows that the tenants have, and whether the prompt
        is short, or those of other tenants that run have had as much time as reading the last prompts took from them.
        """
        if running[ticket.tenant] >= ticket.most_rows:
            return False
        others = running.total() > running[ticket.tenant]
        return self._owed <= 0 or not others or len(ticket.row.prompt) <= SHORT_PROMPT

    def _hold(self, ticket: Ticket) -> None:
        """Put the request's core on the device, or find it there."""
        store, resident = self.engine.store, self.engine.resident
        ticket.version = store.version(ticket.task)
        read_ahead = None
        if ticket.core is not None and ticket.core[:2] == (store, ticket.version):
            read_ahead = ticket.core[2]
        is_resident = resident.has(ticket.task, ticket.version)
        began = time.monotonic()
        ticket.row.task = resident.hold(
            ticket.task, ticket.version, lambda: store.read(ticket.task)[1] if read_ahead is None else read_ahead
        )
        ticket.core = None
        if is_resident:
            self.metrics.core_hits.inc()
        else:
            self.metrics.core_misses.inc()
            self.metrics.core_seconds.observe(time.monotonic() - began)

    def _deliver(self, pieces: list[Piece]) -> None:
        now = time.monotonic()
        self.metrics.output_tokens.inc(sum(piece.error is None for piece in pieces))
        for piece in pieces:
            ticket = self._running[id(piece.row)]
            if piece.error is not None:  # of this row alone: the others go on
                self.metrics.failures.inc()
                self._end(ticket)
                self._tell(ticket, piece.error)
                continue
            if ticket.began is None:
                ticket.began = now
                self.metrics.first_token_seconds.observe(now - ticket.arrived)
            if piece.finish is not None:
                self._end(ticket)
                self.metrics.request_seconds.observe(now - ticket.arrived)
            self._tell(ticket, piece)

    def _tell(self, ticket: Ticket, piece: Piece | Exception) -> None:
        """Deliver; somebody who cannot be reached any more is no matter of the others."""
        try:
            ticket.deliver(piece)
        except Exception:
            logger.exception("a piece of an output could not be delivered")
            ticket.cancelled = True

    def _end(self, ticket: Ticket) -> None:
        del self._running[id(ticket.row)]
        self.engine.resident.release(ticket.task, ticket.version)

    def _leave_cancelled(self) -> None:
        for ticket in [ticket for ticket in self._running.values() if ticket.cancelled]:
            self.engine.batch.leave(ticket.row)
            self._end(ticket)
            self.metrics.cancelled.inc()
        with self._change:
            for tenant, queue in list(self._waiting.items()):
                kept = deque(ticket for ticket in queue if not ticket.cancelled)
                self.metrics.cancelled.inc(len(queue) - len(kept))
                if kept:
                    self._waiting[tenant] = kept
                else:
                    del self._waiting[tenant]

    def _fail_running(self) -> None:
        for ticket in list(self._running.values()):
            if any(row is ticket.row for row in self.engine.batch.rows):
                self.engine.batch.leave(ticket.row)
            self._end(ticket)
            self._tell(ticket, ModelFailedError("the model failed at this request"))

    def check_room(self, tenant: str, count: int) -> None:
        """Refuse a request of so many outputs before anything is done for it. Raises BusyError, ClosedError."""
        with self._change:
            self._check_room(tenant, max(1, count - self.engine.batch.room))  # those that need not wait

    def _check_room(self, tenant: str, count: int = 1) -> None:
        if self._closing:
            raise ClosedError("the server is going down")
        of_tenant = len(self._waiting.get(tenant, ()))
        most_of_tenant = self.most_waiting if self.tenants() < 2 else max(1, self.most_waiting // 2)
        waiting = sum(len(tickets) for tickets in self._waiting.values())
        if waiting + count > self.most_waiting or of_tenant + count > most_of_tenant:
            self.metrics.refused.inc()
            asked = f", {count} outputs of this one would, of at most {most_of_tenant}" if count > 1 else ""
            raise BusyError(f"{waiting} requests are waiting{asked}; try again later")
