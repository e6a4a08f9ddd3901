"""One feed into several generations: events by their time, marks until the old one is final."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from market_data_core.clock import ManualClock
from market_data_core.events import EventBatch, Rejected, Tick, make_batch
from market_data_core.records import Mark, TopicInfo
from market_data_pipeline import live_producer
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.generations import Generations, lead_ns
from market_data_pipeline.live_producer import LiveProducer
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.windows.assigner import WindowSpec

S = 10**9
T = 1_700_000_000 * S
OLD, NEW = "mdp.events", "mdp.events-g2"
LATE, HORIZON, BASE = S, 3 * S, 2 * S
SPEC = WindowSpec((BASE,), LATE, HORIZON)
SETTINGS = ProducerSettings("columnar", 100, 600 * S, BASE, LATE, "embedded")
LEAD = lead_ns(S)
BEGIN = T + 10 * S


class World:
    """A bus on which the number of partitions becomes 3 where it was 2, ten seconds after T."""

    def __init__(self, bus: EmbeddedBus, clock: ManualClock) -> None:
        self.bus, self.clock = bus, clock
        self.generations = Generations(bus, OLD, clock)

    async def begin(self) -> None:
        await self.generations.open(2)

    async def change(self) -> None:
        operator = Generations(self.bus, OLD, self.clock)
        await operator.look(2)
        await operator.enter(3, BEGIN, 2, LEAD)

    def producer(self) -> LiveProducer:
        def opened(info: TopicInfo) -> Producer:
            return Producer(self.bus, codec, info, "p", SETTINGS, self.clock)

        return LiveProducer(self.generations, opened, SPEC, self.clock.now_ns())

    async def items(self, topic: str) -> list[EventBatch | Mark | Rejected]:
        info = await self.bus.find_topic(topic)
        assert info is not None
        positions = dict.fromkeys(range(info.partitions), 0)
        polled = await self.bus.poll(topic, positions, 1 << 20, 0)
        items = [codec.decode(r.payload) for number in sorted(polled) for r in polled[number]]
        return [i for i in items if isinstance(i, EventBatch | Mark | Rejected)]

    async def times(self, topic: str) -> list[float]:
        """Seconds after T of the topic's events."""
        found = await self.items(topic)
        return sorted((ts - T) / S for b in found if isinstance(b, EventBatch) for ts in b.src_ts)

    async def marks(self, topic: str, kind: str = "progress") -> list[float]:
        """Seconds after T of the topic's marks of that kind."""
        found = await self.items(topic)
        return [(m.ts - T) / S for m in found if isinstance(m, Mark) and m.kind == kind]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(live_producer, "_LOOK_EVERY_S", 0.0)
    clock = ManualClock(T)
    bus = EmbeddedBus(tmp_path, clock=clock)
    made = World(bus, clock)
    await made.begin()
    yield made
    await bus.close()


def tick(at_s: float, symbol: str = "SPY") -> Tick:
    return Tick(symbol, T + round(at_s * S), 1.0, 1.0, round(at_s * 1000))


def batch(*at: float, symbol: str = "SPY") -> EventBatch:
    ts = [T + round(t * S) for t in at]
    ones = [1.0] * len(at)
    return make_batch("p", [symbol] * len(at), ts, range(len(at)), ones, ones)


async def write(producer: LiveProducer, *items: Tick | EventBatch | Rejected) -> None:
    for item in items:
        producer.add(item)
    await producer.flush()


@pytest.mark.parametrize("form", ["ticks", "batch"])
async def test_events_go_to_the_generation_of_their_time(world: World, form: str) -> None:
    await world.change()
    await world.generations.refresh()
    producer = world.producer()
    times = [8.0, 9.5, 10.0, 9.9, 11.0]
    await write(producer, *([tick(t) for t in times] if form == "ticks" else [batch(*times)]))
    assert await world.times(OLD) == [8.0, 9.5, 9.9]
    assert await world.times(NEW) == [10.0, 11.0]
    assert producer.produced == 5


async def test_a_change_is_learnt_while_the_feed_runs(world: World) -> None:
    producer = world.producer()
    await write(producer, tick(1.0))
    await world.change()
    await write(producer, tick(2.0))  # looks before it writes
    await write(producer, tick(12.0), tick(9.0))
    assert await world.times(OLD) == [1.0, 2.0, 9.0]
    assert await world.times(NEW) == [12.0]


async def test_the_old_generation_is_told_of_progress_until_it_is_final(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    producer = world.producer()
    await write(producer, tick(9.0))
    for second in range(10, 40):
        await write(producer, tick(float(second)))
    told = await world.marks(OLD)
    by_end = max(told)
    final = (round(by_end * S) + T - LATE - HORIZON) // BASE * BASE
    assert final >= BEGIN
    assert by_end <= 10 + (LATE + HORIZON + BASE) / S
    assert told.count(by_end) == 2  # once in each partition
    assert await world.times(OLD) == [9.0]
    await producer.pause()
    assert await world.marks(OLD, "pause") == []
    assert len(await world.marks(NEW, "pause")) == 3


async def test_a_late_event_finds_a_generation_that_was_let_go(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    producer = world.producer()
    await write(producer, tick(9.0), tick(30.0))
    await write(producer, tick(31.0))
    await write(producer, tick(9.5), tick(32.0))
    assert await world.times(OLD) == [9.0, 9.5]


async def test_the_new_generation_hears_of_the_feed_when_it_has_begun(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    producer = world.producer()
    await write(producer, tick(9.0))
    assert await world.items(NEW) == []
    await write(producer, tick(10.0))
    assert len(await world.marks(NEW)) == 2  # in the partitions without an event


async def test_a_pause_and_a_return_are_told_to_all_that_are_in_use(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    producer = world.producer()
    await write(producer, tick(9.0), tick(10.0))
    await producer.pause()
    assert len(await world.marks(OLD, "pause")) == 2
    assert len(await world.marks(NEW, "pause")) == 3
    before = len(await world.marks(OLD)), len(await world.marks(NEW))
    await producer.resume()
    assert len(await world.marks(OLD)) == before[0] + 2
    assert len(await world.marks(NEW)) == before[1] + 3


async def test_a_new_process_tells_a_generation_that_is_over_for_a_day(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    world.clock.advance(3_600 * S)
    await write(world.producer(), tick(3_600.0))
    assert len(await world.marks(OLD)) == 2
    world.clock.advance(86_400 * S)
    await write(world.producer(), tick(90_000.0))
    assert len(await world.marks(OLD)) == 2


async def test_input_without_a_time_goes_to_the_newest(world: World) -> None:
    await world.change()
    await world.generations.refresh()
    await write(world.producer(), Rejected("malformed", "", b"x"))
    assert [type(item) for item in await world.items(NEW)] == [Rejected]
