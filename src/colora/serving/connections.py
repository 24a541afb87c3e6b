"""Connections: one that says nothing, or does not read its answer, is closed; there are only so many.

Without that, whoever opens many connections, or sends headers byte by byte, takes all that the system gives.
"""

import asyncio
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["MOST_CONNECTIONS", "Connection", "allow_files"]

MOST_CONNECTIONS = 1000
IDLE_SECONDS = 20.0  # from the connection, or the last answer, to the end of the next request's headers
STUCK_SECONDS = 60.0  # in which a client reads nothing of an answer that waits for it
CHECK_SECONDS = 2.0
LINGER_SECONDS = 1.0  # from an answer that came before the end of the request, until that has to be there


class Connection(H11Protocol):
    """uvicorn's connection, watched."""

    most = MOST_CONNECTIONS
    idle_seconds, stuck_seconds, check_seconds = IDLE_SECONDS, STUCK_SECONDS, CHECK_SECONDS
    idle_since: float
    stuck_since: float | None = None
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        if len(self.connections) > self.most:
            others = [one for one in self.connections if one is not self and isinstance(one, Connection) and one.idle]
            # Who has said nothing for longest makes room, those first that never said anything; if all are at work, the
            # new one goes.
            min(others, key=lambda one: (one.cycle is not None, one.idle_since), default=self).transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # the answer came before the end of the request: a refusal
            self.loop.call_later(LINGER_SECONDS, self._abort_unfinished, self.cycle)

    def _abort_unfinished(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        now = self.loop.time()
        if self.transport.is_closing():
            return
        if not self.flow.write_paused:
            self.stuck_since = None
        elif self.stuck_since is None:
            self.stuck_since = now
        silent = self.idle and now - self.idle_since >= self.idle_seconds
        if silent or (self.stuck_since is not None and now - self.stuck_since >= self.stuck_seconds):
            self.transport.abort()
            return
        self.timer = self.loop.call_later(self.check_seconds, self._watch)


def allow_files() -> None:
    """Raise this process' limit of open files, as far as it may, to what the connections need."""
    with suppress(ImportError):  # not on Windows, which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted: Any = 2 * MOST_CONNECTIONS + 512
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
