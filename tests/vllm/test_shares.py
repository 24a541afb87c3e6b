"""What a tenant may have in vLLM's batch at once, and who waits."""

import asyncio
from contextlib import suppress

import pytest

from colora.serving.tickets import BusyError
from colora.vllm.front.shares import RowShares


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Office:
    """Requests that begin and end as a test says."""

    def __init__(self, **options):
        self.shares = RowShares(**options)
        self.begun, self.ends, self.tasks = [], {}, {}

    async def ask(self, name, tenant, most, count=1):
        async def run():
            async with self.shares.rows(tenant, count, most):
                self.begun.append(name)
                await self.ends[name].wait()

        self.ends[name], self.tasks[name] = asyncio.Event(), asyncio.create_task(run())
        await settle()
        return self.tasks[name]

    async def end(self, name):
        self.ends[name].set()
        await settle()


def test_those_beyond_a_tenants_rows_wait_in_turn_and_others_do_not():
    async def run():
        office = Office()
        for name in ("a", "b", "c", "d"):
            await office.ask(name, "many", 2)
        await office.ask("e", "few", 2)
        assert office.begun == ["a", "b", "e"]
        await office.end("b")
        await office.end("a")
        assert office.begun == ["a", "b", "e", "c", "d"]
        for name in ("c", "d", "e"):
            await office.end(name)
        assert not office.shares._running
        assert not office.shares._waiting

    asyncio.run(run())


def test_a_request_for_more_answers_than_rows_runs_alone_and_is_not_passed():
    async def run():
        office = Office()
        await office.ask("one", "acme", 3)
        await office.ask("five at once", "acme", 3, count=5)
        await office.ask("small", "acme", 3)
        assert office.begun == ["one"]
        await office.end("one")
        assert office.begun == ["one", "five at once"]
        await office.end("five at once")
        assert office.begun[-1] == "small"

    asyncio.run(run())


def test_without_a_limit_nobody_waits():
    async def run():
        office = Office()
        for number in range(1000):
            await office.ask(number, "local", None)
        assert len(office.begun) == 1000

    asyncio.run(run())


def test_a_queue_that_is_full_refuses():
    async def run():
        office = Office(most_waiting=4)
        for name in ("a", "b", "c"):
            await office.ask(name, "acme", 1)
        with pytest.raises(BusyError, match="2 requests are waiting, 2 of this key"):
            await (await office.ask("d", "acme", 1))
        for name in ("e", "f", "g"):
            await office.ask(name, "globex", 1)
        await office.ask("h", "third", 1)
        with pytest.raises(BusyError, match="4 requests are waiting, 0 of this key"):
            await (await office.ask("i", "third", 1))

    asyncio.run(run())


@pytest.mark.parametrize("has_turn", [False, True])
def test_one_that_gives_up_leaves_its_place_to_the_next(has_turn):
    async def run():
        office = Office()
        for name in ("a", "b", "c"):
            await office.ask(name, "acme", 1)
        if has_turn:  # its turn comes in the moment in which it gives up
            office.ends["a"].set()
            await asyncio.sleep(0)
        office.tasks["b"].cancel()
        with suppress(asyncio.CancelledError):
            await office.tasks["b"]
        await office.end("a")
        assert office.begun[-1] == "c"
        await office.end("c")
        assert not office.shares._running

    asyncio.run(run())
