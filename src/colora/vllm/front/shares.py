"""How many requests of each tenant vLLM has at once; the others wait here, so that no tenant fills the batch."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from colora.serving.tickets import BusyError

__all__ = ["RowShares"]

MOST_WAITING = 256


class RowShares:
    """Counts the rows of each tenant; for one event loop.

    Args:
        most_waiting: requests of all tenants that wait; of one tenant half as many.
    """

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[int, int, asyncio.Future[None]]]] = {}

    @asynccontextmanager
    async def rows(self, tenant: str, count: int, most: int | None) -> AsyncIterator[None]:
        """As many rows as a request takes, for as long as the block lasts.

        Args:
            count: answers that the request asks for; one that asks for more than `most` runs alone.
            most: rows of the tenant at once; None: without a limit.

        Raises:
            BusyError: too many wait, of this tenant or of all.
        """
        count = count if most is None else min(count, most)
        await self._begin(tenant, count, most)
        try:
            yield
        finally:
            self._end(tenant, count)

    async def _begin(self, tenant: str, count: int, most: int | None) -> None:
        waiting = self._waiting.get(tenant)
        if most is None or (not waiting and self._running[tenant] + count <= most):
            self._running[tenant] += count
            return
        total, own = sum(map(len, self._waiting.values())), len(waiting or ())
        if total >= self.most_waiting or own >= max(1, self.most_waiting // 2):
            raise BusyError(f"{total} requests are waiting, {own} of this key; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (count, most, turn)
        self._waiting.setdefault(tenant, deque()).append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come
                self._end(tenant, count)
            else:
                self._leave(tenant, place)
            raise

    def _end(self, tenant: str, count: int) -> None:
        self._running[tenant] -= count
        self._next(tenant)
        if not self._running[tenant]:
            del self._running[tenant]

    def _leave(self, tenant: str, place: tuple[int, int, "asyncio.Future[None]"]) -> None:
        """Wait no more; those behind may have room."""
        if (waiting := self._waiting.get(tenant)) and place in waiting:
            waiting.remove(place)
        self._next(tenant)

    def _next(self, tenant: str) -> None:
        waiting = self._waiting.get(tenant, deque())
        while waiting:
            count, most, turn = waiting[0]
            if self._running[tenant] + count > most:
                break
            waiting.popleft()
            if not turn.done():
                self._running[tenant] += count
                turn.set_result(None)
        if not waiting:
            self._waiting.pop(tenant, None)
