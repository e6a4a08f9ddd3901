"""The PostgreSQL store while the server, the network or others get in its way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

import pytest
from tests.servers.postgres import Server, running

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Claim
from market_data_core.errors import FencedError, TransientError
from market_data_core.testing._store_owning import GROUP, T0, TOPIC, FakeGroup, S, batch, claimed
from market_data_store.backends.postgres import BACKEND, PostgresStore

Cut = Literal["before", "after", "late"]
Open = Callable[[str], PostgresStore]


@pytest.fixture(scope="module")
def own(postgres: Server) -> Iterator[Server]:
    """A server that may be stopped."""
    with running() as server:
        assert server is not None
        yield server


@pytest.fixture
async def open_store() -> AsyncIterator[Open]:
    opened: list[PostgresStore] = []

    def open_one(uri: str) -> PostgresStore:
        opened.append(BACKEND.create(uri, ManualClock(T0)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def ready(store: PostgresStore) -> FakeGroup:
    await store.migrate()
    return FakeGroup(await claimed(store))


async def until_done(store: PostgresStore, group: FakeGroup) -> int:
    """Commit as a writer does; returns how many times it had to be tried again."""
    for attempt in range(200):
        try:
            await store.commit([group], [])
        except TransientError:
            await asyncio.sleep(0.02)
            (row,) = await _status(store)
            if row == group.claim.sequence + 1:
                return attempt + 1
        else:
            return attempt
    pytest.fail("never committed")


async def _status(store: PostgresStore) -> list[int]:
    while True:
        try:
            return [row.sequence for row in await store.status(GROUP, TOPIC)]
        except TransientError:
            await asyncio.sleep(0.02)


# ---- the server ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_a_server_that_comes_back(own: Server, open_store: Open, how: str) -> None:
    """While it is away nothing can be done; then everything goes on, and is still there."""
    store = open_store(own.new_schema())
    group = replace(await ready(store), bars=[batch(("A", 0, 1.0, 1))])
    await store.commit([group], [])
    await asyncio.to_thread(own.stop, how)
    group = group.next(bars=[batch(("A", 1, 1.0, 1))])
    try:
        for call in (lambda: store.commit([group], []), store.bars, store.status, store.migrate):
            with pytest.raises(TransientError, match=r"127\.0\.0\.1"):
                await call()
    finally:
        await asyncio.to_thread(own.start)
    assert await until_done(store, group) <= 1
    assert len(await store.bars()) == 2


async def test_one_broken_connection_tells_of_the_others(
    postgres: Server, open_store: Open
) -> None:
    """After a restart not every connection has to fail once."""
    store = open_store(postgres.new_schema() + "&application_name=idle_ones")
    await store.migrate()
    await asyncio.gather(*(store.status() for _ in range(20)))
    mine = "FROM pg_stat_activity WHERE application_name = 'idle_ones'"
    assert postgres.query(f"SELECT count(*) {mine}")[0][0] > 1
    postgres.query(f"SELECT pg_terminate_backend(pid, 5000) {mine}")
    with pytest.raises(TransientError):
        await store.status()
    assert await store.status() == []


async def test_connections_that_are_cut_at_random(postgres: Server, open_store: Open) -> None:
    """Every bar is stored once, however often the server ends the connection."""
    uri = postgres.new_schema()
    store = open_store(uri + "&application_name=cut_me")
    group = await ready(store)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='cut_me'"
    rng, working = random.Random(7), True

    async def cut() -> None:
        while working:
            await asyncio.to_thread(postgres.query, kill)
            await asyncio.sleep(rng.uniform(0.0, 0.15))

    cutting = asyncio.create_task(cut())
    retries = 0
    try:
        for n in range(15):
            rows = [(f"S{i}", n, 1.0, 1) for i in range(300)]
            group.bars = [batch(*rows)]
            retries += await until_done(store, group)
            group = group.next()
    finally:
        working = False
        await cutting
    assert retries > 0
    assert await _status(store) == [15]
    assert len(await store.bars()) == 15 * 300


@pytest.mark.parametrize(
    ("parameters", "block"),
    [
        ("&options=-cdefault_transaction_read_only%3Don", ""),
        ("&lock_timeout_ms=50", "LOCK TABLE bars_ohlcv IN ACCESS EXCLUSIVE MODE"),
        ("&statement_timeout_ms=50", "LOCK TABLE partitions IN ACCESS EXCLUSIVE MODE"),
    ],
    ids=["read only", "lock timeout", "statement timeout"],
)
async def test_what_passes_is_waited_for(
    postgres: Server, open_store: Open, parameters: str, block: str
) -> None:
    uri = postgres.new_schema()
    writable = open_store(uri)
    group = await ready(writable)
    group.bars = [batch(("A", 0, 1.0, 1))]
    if parameters.startswith("&options"):
        uri, parameters = (
            uri.replace("options=", "options=-cdefault_transaction_read_only%3Don%20"),
            "",
        )
    store = open_store(uri + parameters)
    async with writable._link.transaction() as db:
        await db.execute(block.encode())
        with pytest.raises(TransientError):
            await store.commit([group], [])
    await writable.commit([group], [])


async def test_members_that_wake_up_together(postgres: Server) -> None:
    """Each finds the other silent for too long; neither waits for the other."""
    uri = postgres.new_schema()
    clock = ManualClock(T0)
    stores = [PostgresStore(uri, clock) for _ in range(4)]
    await stores[0].migrate()
    for _ in range(30):
        clock.advance(2 * S)
        await asyncio.gather(
            *(store.heartbeat(GROUP, TOPIC, f"m{i}", S, {}) for i, store in enumerate(stores))
        )
    assert len(await stores[0].heartbeat(GROUP, TOPIC, "m0", S, {})) == 4
    await asyncio.gather(*(store.close() for store in stores))


# ---- the answer to COMMIT ------------------------------------------------------------------


class Cutter:
    """A proxy that breaks the connection at the first COMMIT of a commit.

    Args:
        server: what it leads to.
        cut: ``before`` the server gets it, ``after`` it has answered, or ``late``: the client
            is cut off at once, and the server gets it later.
    """

    def __init__(self, server: Server, cut: Cut) -> None:
        self._server, self._cut = server, cut
        self.armed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        answers = asyncio.create_task(self._pass_on(there, writer))
        self._tasks.add(answers)
        try:
            while data := await reader.read(65_536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    await self._break(data, answers, writer, to_server)
                    return
                to_server.write(data)
                await to_server.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for one in (writer, to_server):
                one.close()

    async def _break(
        self,
        data: bytes,
        answers: asyncio.Task[None],
        writer: asyncio.StreamWriter,
        to_server: asyncio.StreamWriter,
    ) -> None:
        answers.cancel()
        if self._cut == "late":
            writer.close()
            await asyncio.sleep(0.3)
        if self._cut != "before":
            to_server.write(data)
            await to_server.drain()
            await asyncio.sleep(0.2)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


@pytest.mark.parametrize("cut", ["before", "after", "late"])
async def test_the_outcome_of_a_broken_commit(postgres: Server, open_store: Open, cut: Cut) -> None:
    """It is unknown when the connection breaks, and can be told from the partition's row after.

    Also where the server is still at it: asking too early would tell that nothing happened.
    """
    cutter = Cutter(postgres, cut)
    port = await cutter.start()
    try:
        uri = postgres.new_schema()
        store = open_store(uri.replace(f":{postgres.port}/", f":{port}/"))
        assert urlsplit(uri).port == postgres.port
        group = replace(await ready(store), bars=[batch(("A", 0, 1.0, 1))])
        cutter.armed = True
        with pytest.raises(TransientError):
            await store.commit([group], [])
        done = cut != "before"
        (row,) = await store.status(GROUP, TOPIC)
        assert row.sequence == int(done)
        assert len(await store.bars()) == int(done)
        if done:
            with pytest.raises(FencedError):
                await store.commit([group], [])
        else:
            await store.commit([group], [])
        assert len(await store.bars()) == 1
    finally:
        await cutter.stop()


async def test_a_cancelled_commit_leaves_nothing_behind(postgres: Server, open_store: Open) -> None:
    """Neither a row nor a lock; the connection can be used again."""
    store = open_store(postgres.new_schema())
    group = await ready(store)
    for pause_s in (0.0, 0.001, 0.003, 0.006, 0.01):
        group.bars = [batch(*((f"S{i}", int(pause_s * 1e3), 1.0, 1) for i in range(3_000)))]
        task = asyncio.create_task(store.commit([group], []))
        await asyncio.sleep(pause_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (row,) = await store.status(GROUP, TOPIC)
        if row.sequence > group.claim.sequence:
            group = group.next()
    claim = Claim(group.claim.key, group.claim.token, group.claim.sequence, None)
    await store.commit([FakeGroup(claim, [batch(("X", 0, 1.0, 1))])], [])
    assert await store.heartbeat(GROUP, TOPIC, "a", S, {0: claim.token}) == ["a"]
