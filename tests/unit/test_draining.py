"""What was taken is written, and what was written is read, before a run that was stopped ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from tests.property._harness import (
    EVENTS,
    GROUP,
    LETTERS,
    MAX_FUTURE_NS,
    PARTITIONS,
    batcher_settings,
    coordinated,
    split,
    total_counts,
)
from tests.property._memory import MemoryStore
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.config import Settings
from market_data_core.contracts.provider import LiveProvider, Subscription
from market_data_core.events import EventBatch, Tick, make_batch
from market_data_core.records import Entry, Mark, Record
from market_data_core.testing.strategies import START_NS
from market_data_pipeline import assembly
from market_data_pipeline.backends import Backends
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow
from market_data_pipeline.observe import Observer
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.pump import Pump
from market_data_pipeline.routing.router import ProviderRouter
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.micro_batcher import MicroBatcher

S = 10**9
SPEC = WindowSpec((S,), 0, 0)
ENOUGH_S = 10.0
RECORDS = 40


def tick(number: int) -> Tick:
    return Tick("SPY", START_NS + number, 1.0, 1.0, number)


def trade(number: int) -> EventBatch:
    return make_batch("one", ["SPY"], [START_NS + number], [number], [1.0], [1.0])


# ---- the worker ------------------------------------------------------------------------------


class Endless(MemoryBus):
    """A log to which one more trade comes whenever it is read."""

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        await self.append(topic, split(trade(self.held(topic))))
        return await super().poll(topic, positions, max_bytes, timeout_s)


async def stopped_at_once(bus: MemoryBus, drain_s: float) -> tuple[int, int]:
    """Events that the log holds, and those that a worker counts that is stopped as it starts."""
    store = MemoryStore(bus.clock)
    info = await bus.create_topic(EVENTS, PARTITIONS)
    await bus.create_topic(LETTERS, 1)
    for number in range(RECORDS):
        await bus.append(EVENTS, split(trade(number)))
    settings = batcher_settings("m", 1, MAX_FUTURE_NS)  # one record at a time
    observer = Observer(EVENTS, GROUP, "m", True, 0)
    worker = MicroBatcher(
        bus,
        store,
        codec,
        SPEC,
        info,
        LETTERS,
        LETTERS,
        settings,
        bus.clock,
        observer,
        coordinated(store),
    )
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(ENOUGH_S):
        await worker.run(stop, drain_s)
    counts = total_counts(store, EVENTS)
    assert counts.holds()
    assert counts.received == worker.received
    return bus.held(EVENTS), counts.received


async def test_a_worker_that_is_stopped_reads_what_is_there() -> None:
    assert await stopped_at_once(MemoryBus(ManualClock(START_NS)), 1e9) == (RECORDS, RECORDS)


async def test_a_worker_that_is_not_to_drain_leaves_it_to_the_next() -> None:
    assert await stopped_at_once(MemoryBus(ManualClock(START_NS)), 0.0) == (RECORDS, 0)


async def test_draining_ends_though_there_is_always_more() -> None:
    held, read = await stopped_at_once(Endless(ManualClock(START_NS)), 0.05)
    assert 0 < read < held


# ---- the feed --------------------------------------------------------------------------------


class Gated(MemoryBus):
    """A log that keeps the first append waiting at its gate."""

    def __init__(self) -> None:
        super().__init__(ManualClock(START_NS))
        self.gate, self.reached = asyncio.Event(), asyncio.Event()

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        if not self.reached.is_set():
            self.reached.set()
            await self.gate.wait()
        await super().append(topic, entries)


class Feed:
    """Two trades, then one while they are being written, then silence."""

    name = "one"

    def __init__(self, writing: asyncio.Event) -> None:
        self._writing, self.handed_over = writing, 0

    async def stream(self, _: Subscription) -> AsyncIterator[Tick]:
        for number in range(3):
            if number == 2:
                await self._writing.wait()
            self.handed_over += 1
            yield tick(number)
        await asyncio.Event().wait()


async def settled() -> None:
    """Let every task go as far as it can."""
    for _ in range(500):
        await asyncio.sleep(0)


@pytest.mark.parametrize("batch_events", [1, 2, 1_000])
async def test_a_feed_that_is_cut_off_while_it_writes_loses_nothing(batch_events: int) -> None:
    """Whether the batch was full, so that the reader writes it, or had waited long enough."""
    bus = Gated()
    info = await bus.create_topic(EVENTS, 1)
    settings = ProducerSettings("columnar", batch_events, MAX_FUTURE_NS, S, 0, "memory")
    producer = Producer(bus, codec, info, "one", settings, bus.clock)
    feed = Feed(bus.reached)
    told: list[int] = []
    pump = Pump(producer, 0.0, lambda p: told.append(p.produced))
    pumping = asyncio.create_task(pump.run(ProviderRouter([feed]).feed("one")))
    async with asyncio.timeout(ENOUGH_S):
        await bus.reached.wait()
        await settled()
        taken = feed.handed_over
        assert taken == {1: 1, 2: 2, 1_000: 3}[batch_events]
        pumping.cancel()
        await settled()
        assert not pumping.done()
        assert bus.held(EVENTS) == 0
        bus.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await pumping
    items = [codec.decode(record.payload) for record in bus.records(EVENTS)[0]]
    events = [e.seq for item in items if isinstance(item, EventBatch) for e in item.events()]
    assert events == list(range(taken))
    assert isinstance(items[-1], Mark)
    assert items[-1].kind == "pause"
    assert told[-1] == taken


# ---- both in one process ---------------------------------------------------------------------


class Shut(MemoryStore):
    """A store that lets no worker in before its gate is opened."""

    def __init__(self, clock: ManualClock) -> None:
        MemoryStore.__init__(self, clock)
        self.gate = asyncio.Event()

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        await self.gate.wait()
        return await MemoryStore.heartbeat(self, group, topic, member, lease_ns, owned)


class Watched(Flow):
    """Tells when its feeds have ended."""

    def __init__(self, settings: Settings, backends: Backends) -> None:
        super().__init__(settings, backends)
        self.fed = asyncio.Event()

    async def produce(
        self, providers: Mapping[str, LiveProvider], symbols: tuple[str, ...], stop: asyncio.Event
    ) -> int:
        try:
            return await super().produce(providers, symbols, stop)
        finally:
            self.fed.set()


class Many:
    """Trades, then silence."""

    name = "one"

    def __init__(self) -> None:
        self.silent = asyncio.Event()

    async def stream(self, _: Subscription) -> AsyncIterator[Tick]:
        for number in range(RECORDS):
            yield tick(number)
        self.silent.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("behind", ["the worker", "the feed"])
async def test_a_live_run_that_is_stopped_reads_what_its_feed_wrote(
    behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the worker has not begun to read, or the feed not ended to write."""
    monkeypatch.setattr(assembly, "_POLL_BYTES", 1)  # one record at a time
    batch_events = 1 if behind == "the worker" else RECORDS
    settings = Settings.model_validate(
        {"bus": {"partitions": 1, "linger_ms": 0}, "micro_batch": {"max_batch_size": batch_events}}
    )
    bus = Gated()
    store = Shut(bus.clock)
    shut, other = (store.gate, bus.gate) if behind == "the worker" else (bus.gate, store.gate)
    other.set()
    whole: Any = store  # a live run uses the half of a store that holds positions
    flow, feed, stop = Watched(settings, Backends(bus, whole, bus.clock)), Many(), asyncio.Event()
    running = asyncio.create_task(flow.live({"one": feed}, (), stop))
    async with asyncio.timeout(ENOUGH_S):
        await (feed.silent if behind == "the worker" else bus.reached).wait()
        stop.set()
        if behind == "the worker":
            await flow.fed.wait()
        await settled()
        assert not running.done()
        shut.set()
        summary = await running
    assert bus.held(EVENTS) == RECORDS
    assert summary.counts.received == summary.received == RECORDS
    assert summary.counts.holds()
