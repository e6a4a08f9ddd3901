"""The write coordinator in front of a PostgreSQL server that dies, refuses, fills up or lies.

Whatever happens, every bar that was submitted is stored once or is a dead letter, and writing goes
on soon after the server is back.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.servers.postgres import Server, running

from market_data_core.bars import BarBatch
from market_data_core.feedback import FeedbackEvent
from market_data_store.coordinator import (
    CircuitBreaker,
    DeadLetterQueue,
    FeedbackBus,
    RetryPolicy,
    WriteCoordinator,
)
from market_data_store.sinks import BarsSink
from mds_client import AMDS
from mds_client.models import Bar

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)
SYMBOLS = [f"S{i:02}" for i in range(20)]
BACK_WITHIN_S = 2.0
_LIMIT_BYTES = (3 << 19) + 4_096
"""Within a page, so that the last write is cut short, as on a full disk; and above what one file of
the write-ahead log needs."""


@pytest.fixture(scope="module")
def own(postgres: Server) -> Iterator[Server]:
    """A server that may be killed, beside the one that all tests share."""
    with running() as server:
        assert server is not None
        yield server


def bar(number: int, **changes: Any) -> Bar:
    """The `number`-th of a stream of bars, one a second for each symbol."""
    values = {"symbol": SYMBOLS[number % len(SYMBOLS)], "open": 1, "high": 2, "low": 1, "close": 2}
    ts = T0 + timedelta(seconds=number // len(SYMBOLS))
    return Bar(**{**values, "volume": number, "ts": ts, "interval": "1s", **changes})


class Load:
    """A coordinator that is fed all the time."""

    def __init__(self, coordinator: WriteCoordinator[Any], events: list[FeedbackEvent]) -> None:
        self.coordinator, self.events = coordinator, events
        self._feeding = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        for number in count():
            await self.coordinator.submit(bar(number))
            if number % 50 == 0:
                await asyncio.sleep(0.002)

    async def until(self, holds: Callable[[], object], what: str, seconds: float = 30) -> float:
        """Wait for a condition while the load goes on; how long it took, in seconds."""
        began = monotonic()
        while not holds():
            assert monotonic() < began + seconds, f"{what}: {self.coordinator.health()}"
            if self._feeding.done():
                self._feeding.result()
            await asyncio.sleep(0.01)
        return monotonic() - began

    async def more(self, rows: int = 500) -> float:
        """Wait until so many more are written."""
        wanted = self.coordinator.health().written + rows
        return await self.until(lambda: self.coordinator.health().written >= wanted, "writing")

    async def stop(self) -> None:
        self._feeding.cancel()
        await asyncio.gather(self._feeding, return_exceptions=True)


@asynccontextmanager
async def load(uri: str, folder: Path, **settings: Any) -> AsyncIterator[Load]:
    """A small coordinator with bars, and a check at the end that all of them are stored."""
    events: list[FeedbackEvent] = []
    bus = FeedbackBus()
    bus.subscribe(events.append)
    breaker = CircuitBreaker(failure_threshold=3, probe_interval=0.1)
    retry = RetryPolicy(max_attempts=3, initial_backoff_ms=10, max_backoff_ms=100)
    options = {"capacity": 2_000, "batch_size": 200, "flush_interval": 0.02, **settings}
    dlq = DeadLetterQueue[Bar](folder / "dlq.ndjson")
    async with BarsSink(AMDS(uri)) as sink:
        async with WriteCoordinator[Any](
            sink=sink,
            retry_policy=retry,
            circuit_breaker=breaker,
            dlq=dlq,
            feedback=bus,
            feedback_repeat=0.1,
            coord_id="outages",
            **options,
        ) as coordinator:
            running = Load(coordinator, events)
            try:
                await running.more()
                yield running
            finally:
                await running.stop()
            await coordinator.flush()
            health = coordinator.health()
            assert health.workers_alive == health.workers
            assert (health.written, health.dead_lettered) == (health.submitted, 0)
        await bus.close()
    await check_stored(uri, health.submitted)


async def check_stored(uri: str, submitted: int) -> None:
    """The first `submitted` bars are stored, once, with their values."""
    async with AMDS(uri) as db:
        frame = await db.bars(SYMBOLS, "1s")
    found = Counter(zip(frame["symbol"], frame["ts"].dt.epoch("us"), frame["volume"], strict=True))
    wanted = Counter(
        (b.symbol, round(b.ts.timestamp() * 1e6), b.volume) for b in map(bar, range(submitted))
    )
    assert found == wanted


async def _made(server: Server) -> str:
    from market_data_store.backends.postgres import PostgresStore

    uri = server.new_schema()
    store = PostgresStore(uri)
    await store.migrate()
    await store.close()
    return uri


async def _outage(running: Load, back: Callable[[], Awaitable[None]]) -> None:
    """Wait until everybody has noticed, bring the server back, and require that it goes on."""
    await running.until(lambda: running.coordinator.health().circuit_state == "open", "opening")
    await running.until(
        lambda: running.events and running.events[-1].level == "hard", "feedback turns hard"
    )
    rows = running.coordinator.health().queue_size
    assert rows <= running.coordinator.health().capacity
    await back()
    assert await running.more() < BACK_WITHIN_S
    await running.until(lambda: running.events[-1].level == "ok", "feedback is ok again")


@pytest.mark.parametrize("how", ["immediate", "fast"])
async def test_a_server_killed_under_load(own: Server, tmp_path: Path, how: str) -> None:
    """``immediate`` is what a kill -9 of all its processes leaves: recovery at the start."""
    uri = await _made(own)
    async with load(uri, tmp_path) as running:
        await asyncio.to_thread(own.stop, how)
        await _outage(running, lambda: asyncio.to_thread(own.start))


async def test_its_main_process_is_killed(own: Server, tmp_path: Path) -> None:
    uri = await _made(own)
    async with load(uri, tmp_path) as running:
        await asyncio.to_thread(own.kill)
        await _outage(running, lambda: asyncio.to_thread(own.start))


async def test_a_server_that_stands_still(own: Server, tmp_path: Path) -> None:
    """SIGSTOP of all backends at work, which then cannot tell that their time is over.

    They are stopped while each waits for a lock on the table: at any other moment one might hold
    a lock of the server's own, and the rest of it would stand still, too.
    """
    uri = await _made(own)
    limits = "&application_name=stopped&pool_size=4&statement_timeout_ms=3000"
    async with load(uri + limits, tmp_path) as running:
        with psycopg.connect(uri) as db, db.transaction():
            lock = "LOCK TABLE bars_ohlcv IN ACCESS EXCLUSIVE MODE"
            await asyncio.to_thread(db.execute, lock)  # who writes now has to finish before
            await running.until(
                lambda: [waiting for _, waiting in _backends(own)] == [True] * 4, "waiting"
            )
            pids = [pid for pid, _ in _backends(own)]
            own.signal(pids, signal.SIGSTOP)
        try:
            await running.more()  # on other connections
        finally:
            own.signal(pids, signal.SIGCONT)
        await running.more()


def _backends(server: Server) -> list[tuple[int, bool]]:
    """The process of each connection that is called "stopped", and if it waits for a lock."""
    return server.query(
        "SELECT pid, wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity"
        " WHERE application_name = 'stopped'"
    )


async def test_connections_are_ended_at_random(postgres: Server, tmp_path: Path) -> None:
    """In COPY, between statements, at COMMIT: whatever was under way is written again, once."""
    uri = await _made(postgres) + "&application_name=ended"
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='ended'"
    chance = random.Random(11)
    async with load(uri, tmp_path, batch_size=1_000, capacity=4_000) as running:
        for _ in range(25):
            await asyncio.to_thread(postgres.query, kill)
            await asyncio.sleep(chance.uniform(0, 0.1))
        assert running.coordinator.health().retries > 0


async def test_a_server_that_is_read_only(own: Server, tmp_path: Path) -> None:
    """As a standby is until it is promoted."""
    uri = await _made(own)
    async with load(uri, tmp_path) as running:
        own.query("ALTER SYSTEM SET default_transaction_read_only = on")
        own.query("SELECT pg_reload_conf()")

        async def back() -> None:
            own.query("ALTER SYSTEM RESET default_transaction_read_only")
            own.query("SELECT pg_reload_conf()")

        await _outage(running, back)


async def test_a_lock_that_others_hold(postgres: Server, tmp_path: Path) -> None:
    """A migration by hand, or a dump with the wrong options: waited out."""
    uri = await _made(postgres)
    async with load(f"{uri}&lock_timeout_ms=50", tmp_path) as running:
        with psycopg.connect(uri) as db, db.transaction():
            lock = "LOCK TABLE bars_ohlcv IN ACCESS EXCLUSIVE MODE"
            await asyncio.to_thread(db.execute, lock)  # what holds it has to get on meanwhile
            await running.until(
                lambda: running.coordinator.health().circuit_state != "closed", "opening"
            )
        assert await running.more() < BACK_WITHIN_S


async def test_a_full_disk(tmp_path: Path) -> None:
    """No file may grow: what is refused is kept and written once there is room again."""
    with running("", "--wal-segsize=1") as server:
        assert server is not None
        uri = await _made(server)
        async with load(uri, tmp_path) as busy:
            server.limit_files(_LIMIT_BYTES)

            async def back() -> None:
                server.limit_files(None)

            await _outage(busy, back)


async def test_one_poisoned_row_among_thousands(postgres: Server, tmp_path: Path) -> None:
    uri = await _made(postgres)
    close = np.linspace(1, 2, 5_000)
    codes, ts = np.arange(5_000) % 20, np.arange(5_000) // 20 * 10**9
    ts += int(T0.timestamp()) * 10**9
    volume = close.copy()
    volume[3_210] = np.inf
    poisoned = BarBatch(
        "p", "1s", "final", tuple(SYMBOLS), codes.astype(np.uint16), ts,
        *(close,) * 4, volume, close, np.ones(5_000, np.int64),
    )  # fmt: skip
    dlq = DeadLetterQueue[Any](tmp_path / "dlq.ndjson")
    async with (
        BarsSink(AMDS(uri)) as sink,
        WriteCoordinator[Any](sink=sink, dlq=dlq, coord_id="poisoned") as coordinator,
    ):
        await coordinator.submit(poisoned)
        await coordinator.flush()
        assert coordinator.health().circuit_state == "closed"
    async with AMDS(uri) as db:
        frame = await db.bars(SYMBOLS, "1s")
    assert len(frame) == 4_999
    (record,) = await dlq.replay(10)
    assert record.reason == "permanent"
    assert postgres.query("SELECT count(*) FROM bars_ohlcv WHERE volume > 1e300", uri) == [(0,)]


async def test_two_coordinators_on_the_same_keys(postgres: Server, tmp_path: Path) -> None:
    """Both write all bars, in different orders; none is there twice, nobody waits for ever."""
    uri = await _made(postgres)
    numbers = list(range(4_000))

    async def write(name: str, order: list[int]) -> int:
        async with (
            BarsSink(AMDS(uri)) as sink,
            WriteCoordinator[Bar](
                sink=sink, coord_id=name, dlq=tmp_path / f"{name}.ndjson", batch_size=100
            ) as coordinator,
        ):
            await coordinator.submit_many(bar(number) for number in order)
            await coordinator.flush()
            return coordinator.health().written

    shuffled = random.Random(3).sample(numbers, len(numbers))
    written = await asyncio.gather(write("one", numbers), write("two", shuffled))
    assert tuple(written) == (4_000, 4_000)
    await check_stored(uri, len(numbers))


async def test_a_clock_that_goes_backwards(postgres: Server) -> None:
    """Stamps may be wrong then; values, versions and their number are not."""
    from market_data_core.clock import ManualClock
    from market_data_store.backends.postgres import PostgresStore

    clock = ManualClock(int(T0.timestamp()) * 10**9)
    store = PostgresStore(postgres.new_schema(), clock)
    await store.migrate()
    async with AMDS(store) as db:
        for step, volume in enumerate((1, 2, 3, 3)):
            clock.advance(-3600 * 10**9 * (step > 0))
            counts = await db.upsert_bars([bar(0, volume=volume, trade_count=volume)])
            assert counts.inserted + counts.updated == (step < 3)
        frame = await db.bars(SYMBOLS[0], "1s")
        assert frame["volume"].to_list() == [3.0]
    await store.close()
