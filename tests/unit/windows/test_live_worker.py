"""Workers on the live topic, whose log is lost, replaced or trimmed while they read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.property._harness import (
    EVENTS,
    GROUP,
    LETTERS,
    PARTITIONS,
    batcher_settings,
    coordinated,
    split,
    total_counts,
)
from tests.property._memory import MemoryStore
from tests.property._memory_bus import MemoryBus
from tests.unit.windows.test_micro_batcher import HERE, SPEC, S, trades

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import LogLostError, TransientError
from market_data_core.records import Entry, Place, Record
from market_data_core.testing.strategies import START_NS, to_batches
from market_data_pipeline.bus import codec
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows import micro_batcher
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.micro_batcher import MicroBatcher

ENOUGH_S = 10.0


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batcher, "_TICK_S", 0.0)


@dataclass
class Live:
    """A worker of its own on the live topic, with everything around it in memory."""

    bus: MemoryBus = field(default_factory=lambda: MemoryBus(ManualClock(START_NS)))
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.bus.clock, base="1s")
        self.stop = asyncio.Event()

    async def append(self, *at: float) -> None:
        """Each trade as a record of its own."""
        for trade in trades(*at):
            for batch in to_batches([trade]):
                await self.bus.append(EVENTS, split(batch))

    async def until(self, **wanted: int) -> None:
        """Until the committed counts are those."""
        counts = Counts()
        async with asyncio.timeout(ENOUGH_S):
            while any(getattr(counts, name) != value for name, value in wanted.items()):
                assert not self.running.done(), self.running
                await asyncio.sleep(0)
                counts = total_counts(self.store, EVENTS)
        assert counts.holds()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        info = await self.bus.create_topic(EVENTS, PARTITIONS)
        await self.bus.create_topic(LETTERS, 1)
        settings = batcher_settings("m", 1 << 20, None)
        settings = replace(settings, lease_ns=S // 100, **self.settings)
        worker = MicroBatcher(
            self.bus,
            self.store,
            codec,
            SPEC,
            info,
            "",
            LETTERS,
            settings,
            self.bus.clock,
            Observer(EVENTS, GROUP, "m", True, 0),
            coordinated(self.store),
        )
        self.running = asyncio.create_task(worker.run(self.stop))
        try:
            yield
            self.stop.set()
            await asyncio.wait_for(self.running, ENOUGH_S)
        finally:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)

    def causes(self) -> list[str]:
        return [gap.cause for gap in self.store.ledger]

    def place(self) -> Place:
        found = self.store.rows[PartitionKey(GROUP, EVENTS, HERE)].checkpoint
        assert found
        checkpoint = decode_checkpoint(found)
        return Place(checkpoint.resume, checkpoint.counted)


def metered(outcome: str) -> float:
    labels = {"stage": "window", "outcome": outcome}
    return REGISTRY.get_sample_value("pipeline_events_total", labels) or 0.0


async def test_a_worker_goes_on_behind_a_tail_that_was_lost() -> None:
    """What it had read of it is not taken for what the log holds."""
    live = Live()
    before = metered("lost")
    async with live.working():
        await live.append(0.5, 2.5, 2.6)
        await live.until(received=3, stored=1)
        live.bus.lose_tail(EVENTS, HERE, 0)
        await live.until(lost=2, open=0)
        await live.append(2.7, 6.5)
        await live.until(received=5, stored=2, open=1, lost=2)
    assert live.causes() == ["log_tail_lost"]
    assert metered("lost") == before + 2
    assert live.store.states["1s", ("one", "SPY", START_NS + 2 * S)] == "gap"


async def test_a_worker_goes_on_in_a_log_that_was_trimmed_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live()
    reading = asyncio.Event()
    poll = live.bus.poll

    async def held(*args: Any) -> dict[int, list[Record]]:
        await reading.wait()
        return await poll(*args)

    monkeypatch.setattr(live.bus, "poll", held)
    async with live.working():
        await live.append(0.5, 2.5, 6.5)
        async with asyncio.timeout(ENOUGH_S):
            while not live.store.rows:
                await asyncio.sleep(0)
        last = live.bus.records(EVENTS)[HERE][-1]
        await live.bus.trim(EVENTS, HERE, last.offset, 0, 0)
        reading.set()
        await live.append(8.5)
        await live.until(received=2, stored=1, open=1)  # it had promised nothing of the others


async def test_a_worker_reads_a_log_that_stands_in_the_place_of_its_own() -> None:
    live = Live()
    async with live.working():
        await live.append(0.5, 2.5)
        await live.until(received=2, stored=1)
        await live.bus.drop_topic(EVENTS)
        await live.bus.create_topic(EVENTS, PARTITIONS)
        await live.append(4.5, 6.5)
        await live.until(received=4, stored=2, open=1, lost=1)
    assert live.causes() == ["log_replaced"]


@pytest.mark.parametrize("partitions", [0, PARTITIONS + 1])
async def test_a_worker_ends_when_its_topic_is_gone(partitions: int) -> None:
    """Or is another one; what it has committed stays."""
    live = Live()

    async def run() -> None:
        async with live.working():
            await live.append(0.5, 2.5)
            await live.until(received=2, stored=1)
            await live.bus.drop_topic(EVENTS)
            if partitions:
                await live.bus.create_topic(EVENTS, partitions)
            await asyncio.wait_for(live.running, ENOUGH_S)

    with pytest.raises(LogLostError):
        await run()
    assert total_counts(live.store, EVENTS).stored == 1


async def test_the_bus_is_told_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(micro_batcher, "_TELL_S", 1000.0)
    live = Live()
    async with live.working():
        for number in range(10):
            await live.append(0.5 + number)
            await live.until(received=number + 1)
        assert len(live.bus.told) == 1
    assert len(live.bus.told) == 2
    assert live.bus.told[-1] == {HERE: live.place()}
    assert live.place().counted == live.bus.logs[EVENTS, HERE].next


async def test_the_bus_is_told_only_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each place once, but again if it could not be told."""
    monkeypatch.setattr(micro_batcher, "_TELL_S", 0.0)
    live = Live()
    acknowledge, failures = live.bus.acknowledge, [TransientError("away")] * 3

    async def failing(topic: str, group: str, member: str, places: Mapping[int, Place]) -> None:
        if HERE in places and failures:
            raise failures.pop()
        await acknowledge(topic, group, member, places)

    monkeypatch.setattr(live.bus, "acknowledge", failing)
    async with live.working():
        for number in range(10):
            await live.append(0.5 + number)
            await live.until(received=number + 1)
        async with asyncio.timeout(ENOUGH_S):
            while live.bus.told[-1] != {HERE: live.place()}:
                await asyncio.sleep(0)
        told = [places[HERE] for places in live.bus.told if HERE in places]
        assert told == sorted(set(told), key=lambda place: place.counted)
        for _ in range(200):
            await asyncio.sleep(0)
        assert [places[HERE] for places in live.bus.told if HERE in places] == told
    assert failures == []


async def test_a_worker_goes_on_when_a_mark_of_its_own_finds_another_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live(settings={"max_future_ns": 60 * S, "flush_timeout_ns": S})
    append, lost = live.bus.append, [LogLostError("another log")]

    async def losing(topic: str, entries: Sequence[Entry]) -> None:
        if lost and topic == EVENTS and not any(entry.count for entry in entries):
            raise lost.pop()
        await append(topic, entries)

    monkeypatch.setattr(live.bus, "append", losing)
    async with live.working():
        await live.append(0.5)
        await live.until(received=1)
        live.bus.clock.advance(3_600 * S)
        await live.until(stored=1)
    assert lost == []
