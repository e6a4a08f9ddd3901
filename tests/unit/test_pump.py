"""A feed that is held back loses nothing, closes no window early, and keeps none open for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from tests.property._harness import EVENTS
from tests.property._memory import MemoryStore
from tests.property._memory_bus import MemoryBus
from tests.unit.routing.test_rate import event

from market_data_core.clock import ManualClock
from market_data_core.config import Settings
from market_data_core.contracts.provider import FeedState, Item, Subscription
from market_data_core.events import EventBatch, Tick
from market_data_core.feedback import FeedbackLevel
from market_data_core.records import Mark, Record
from market_data_core.testing.strategies import START_NS
from market_data_pipeline import flow as flow_module
from market_data_pipeline import pump as pump_module
from market_data_pipeline.assembly import Summary
from market_data_pipeline.backends import Backends
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.pump import Pump
from market_data_pipeline.routing import feedback as feedback_module
from market_data_pipeline.routing.feedback import FeedbackTopic
from market_data_pipeline.routing.rate import RateCoordinator
from market_data_pipeline.routing.router import ProviderRouter

S = 10**9
ENOUGH_S = 20.0
SETTINGS = Settings.model_validate(
    {
        "bus": {"partitions": 2, "linger_ms": 0},
        "micro_batch": {
            "window_ms": 1000,
            "allow_late_ms": 0,
            "max_future_ms": 1000,
            "revise_horizon_ms": 1001,
            "flush_timeout_ms": 1000,
        },
    }
)


def tick(at_s: float, seq: int = 0) -> Tick:
    return Tick("SPY", START_NS + round(at_s * S), 1.0, 1.0, seq)


class Feed:
    """Yields what is put in."""

    name = "one"

    def __init__(self) -> None:
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self.asked = 0

    def put(self, *items: Item) -> None:
        for item in items:
            self._items.put_nowait(item)

    async def stream(self, _: Subscription) -> AsyncIterator[Item]:
        while True:
            self.asked += 1
            yield await self._items.get()


class WatchedBus(MemoryBus):
    """Counts how often its events were looked at."""

    polls = 0

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        self.polls += topic == EVENTS
        return await super().poll(topic, positions, max_bytes, timeout_s)


@dataclass
class Running:
    """A live run in memory, with what happens to it from outside."""

    flow: Flow
    bus: WatchedBus
    feed: Feed
    clock: ManualClock
    told: int = field(default=0)

    async def feedback(self, level: FeedbackLevel) -> None:
        """Tell it, and again, as a coordinator does, until it is followed."""
        topic = FeedbackTopic(self.bus, clock=self.clock)
        async with asyncio.timeout(ENOUGH_S):
            while self.scale != {"ok": 1.0, "soft": 0.5, "hard": 0.0}[level]:
                self.told += 1
                await topic.publish(event(level, at_s=self.told))
                await asyncio.sleep(0.01)

    async def until(self, what: str, reached: object = True) -> None:
        async with asyncio.timeout(ENOUGH_S):
            while getattr(self, what) != reached:
                await asyncio.sleep(0.001)

    @property
    def received(self) -> int:
        return self.flow.progress.counts.received

    @property
    def stored(self) -> int:
        return self.flow.progress.counts.stored

    @property
    def scale(self) -> float | None:
        return REGISTRY.get_sample_value("pipeline_rate_scale_factor", {"provider": "kind"})

    @property
    def paused(self) -> bool:
        """Whether the last thing said about the feed everywhere is that it paused."""
        last = [codec.decode(records[-1].payload) for records in self.bus.records(EVENTS)]
        return all(isinstance(item, Mark) and item.kind == "pause" for item in last)

    async def looked(self) -> None:
        """The worker has looked at the log a few times more."""
        seen = self.bus.polls
        async with asyncio.timeout(ENOUGH_S):
            while self.bus.polls < seen + 5:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def live(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Running, list[Summary]]]:
    monkeypatch.setattr(feedback_module, "_LOOK_EVERY_S", 0.001)
    clock = ManualClock(START_NS)
    bus, feed, stop = WatchedBus(clock), Feed(), asyncio.Event()
    flow = Flow(SETTINGS, Backends(bus, cast("Any", MemoryStore(clock)), clock))
    running = asyncio.create_task(flow.live({"kind": feed}, (), stop))
    ended: list[Summary] = []
    try:
        yield Running(flow, bus, feed, clock), ended
        stop.set()
        ended.append(await asyncio.wait_for(running, ENOUGH_S))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_hold_that_outlasts_the_flush_timeout_makes_no_event_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with live(monkeypatch) as (run, ended):
        run.feed.put(tick(0.1))
        await run.until("received", 1)
        await run.feedback("hard")
        run.feed.put(tick(0.2), tick(0.3), tick(30.0))  # the first is taken: it was asked for
        await run.until("paused")
        assert run.bus.held(EVENTS) == 2
        for _ in range(5):
            run.clock.advance(6 * S)
            await run.looked()
        assert run.paused  # nobody has said that the silence lasts too long
        assert run.feed.asked == 2
        await run.feedback("ok")
        await run.until("received", 4)
    counts = ended[0].counts
    assert (counts.late, counts.stored, counts.open) == (0, 3, 1)
    assert ended[0].written.updated == 0  # nor was a bar restated


async def test_silence_counts_again_once_a_feed_was_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with live(monkeypatch) as (run, _):
        run.feed.put(tick(0.1))
        await run.until("received", 1)
        await run.feedback("hard")
        run.feed.put(tick(0.2))
        await run.until("paused")
        run.clock.advance(6 * S)
        await run.looked()
        await run.feedback("ok")
        await run.until("paused", reached=False)
        assert run.stored == 0
        run.clock.advance(6 * S)
        await run.until("stored", 2)  # though the feed has said nothing more


async def test_a_held_run_that_is_stopped_has_written_what_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with live(monkeypatch) as (run, ended):
        await run.feedback("soft")
        await run.feedback("hard")
        run.feed.put(tick(0.1), tick(0.2))
        await run.until("received", 1)
    assert ended[0].counts.received == 1
    assert ended[0].counts.holds()


async def test_a_listener_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, *_: object) -> None:
            return

        async def run(self) -> None:
            raise RuntimeError("a bug")

    monkeypatch.setattr(flow_module, "FeedbackListener", Failing)
    clock = ManualClock(START_NS)
    flow = Flow(SETTINGS, Backends(MemoryBus(clock), cast("Any", MemoryStore(clock)), clock))
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(flow.produce({"kind": Feed()}, (), asyncio.Event()), ENOUGH_S)


# ---- the pump alone --------------------------------------------------------------------------


async def test_marks_surround_what_is_held() -> None:
    bus, feed, rate = MemoryBus(ManualClock(START_NS)), Feed(), RateCoordinator()
    info = await bus.create_topic(EVENTS, 1)
    settings = ProducerSettings("columnar", 1_000, S, S, 0, "memory")
    pump = Pump(Producer(bus, codec, info, "one", settings, bus.clock), 60.0, lambda _: None)
    pumping = asyncio.create_task(pump.run(ProviderRouter([feed], rate).feed("one")))
    found: list[str] = []

    async def until(count: int) -> list[str]:
        async with asyncio.timeout(ENOUGH_S):
            while len(found) < count:
                await asyncio.sleep(0)
                items = [codec.decode(record.payload) for record in bus.records(EVENTS)[0]]
                found[:] = [
                    str(i.src_ts[0] - START_NS) if isinstance(i, EventBatch) else i.kind
                    for i in items
                    if isinstance(i, EventBatch | Mark)
                ]
        return found

    async with asyncio.timeout(ENOUGH_S):
        while not feed.asked:
            await asyncio.sleep(0)
    await rate.on_feedback(event("hard"))
    feed.put(tick(0, 1), tick(1, 2), FeedState("away"), FeedState("back"))
    assert await until(2) == ["0", "pause"]
    await rate.on_feedback(event("ok", at_s=1))
    assert await until(5) == ["0", "pause", "progress", str(S), "pause"]
    await until(6)
    pumping.cancel()
    await asyncio.gather(pumping, return_exceptions=True)
    assert await until(7) == ["0", "pause", "progress", str(S), "pause", "progress", "pause"]


class Steps:
    """The pump's clock and sleep: time passes, and a sleep ends, when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = asyncio.Queue[float]()
        self.over = asyncio.Semaphore(0)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.slept.put_nowait(delay_s)
        await self.over.acquire()

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


class HeldProducer:
    """Each flush takes until the test lets it end."""

    full = False

    def __init__(self) -> None:
        self.taken = 0
        self.flushed = asyncio.Queue[int]()
        self.over = asyncio.Semaphore(0)

    def add(self, _: Item) -> None:
        self.taken += 1

    async def flush(self) -> None:
        self.flushed.put_nowait(self.taken)
        await self.over.acquire()

    async def pause(self) -> None:
        return


async def test_an_item_waits_no_longer_than_the_first_of_its_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor do those that came while others were written wait anew."""
    feed, steps, producer = Feed(), Steps(), HeldProducer()
    monkeypatch.setattr(pump_module, "time", steps)
    monkeypatch.setattr(pump_module, "asyncio", steps)

    async def taken(count: int) -> None:
        feed.put(tick(count, count))
        while feed.asked <= count:
            await asyncio.sleep(0)
        assert producer.taken == count

    pump = Pump(cast("Any", producer), 60.0, lambda _: None)
    stream = cast("Any", feed.stream(cast("Any", None)))
    pumping = asyncio.create_task(pump.run(stream))
    try:
        async with asyncio.timeout(ENOUGH_S):
            await taken(1)
            assert await steps.slept.get() == 60.0
            steps.now += 40
            await taken(2)
            assert steps.slept.empty()
            steps.now += 20
            steps.over.release()
            assert await producer.flushed.get() == 2
            steps.now += 10
            await taken(3)
            steps.now += 30
            await taken(4)
            producer.over.release()
            assert await steps.slept.get() == 30.0
            steps.over.release()
            assert await producer.flushed.get() == 4
    finally:
        producer.over.release()
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
