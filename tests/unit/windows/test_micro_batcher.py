"""Workers between a bus and a store that fail, and lanes that find others' work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.property import _lanes
from tests.property._harness import (
    EVENTS,
    GROUP,
    LEASE_NS,
    LETTERS,
    PARTITIONS,
    World,
    batcher_settings,
    coordinated,
    letters_of,
    split,
    total_counts,
)
from tests.property._lanes import Lanes
from tests.property._memory import Life, MemoryStore
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import FencedError, LogLostError, TransientError
from market_data_core.partitioning import partition_of
from market_data_core.records import Place, Record
from market_data_core.testing.oracle import OracleEvent
from market_data_core.testing.strategies import START_NS, to_batches
from market_data_pipeline.bus import codec
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows import micro_batcher
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import (
    Checkpoint,
    Counts,
    StreamState,
    decode_checkpoint,
)
from market_data_pipeline.windows.micro_batcher import MicroBatcher
from market_data_pipeline.windows.writer import GroupWriter
from market_data_store.sinks.groups import CoordinatedCommits

S = 10**9
HERE = partition_of("SPY", PARTITIONS)
SPEC = WindowSpec((S, 5 * S), 0, 0)
ENOUGH_S = 10.0
A, B = f"{EVENTS}.a", f"{EVENTS}.b"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batcher, "_TICK_S", 0.0)


def trades(*at: float, price: float = 1.0) -> list[OracleEvent]:
    """Trades `at` seconds after START_NS."""
    ts = [START_NS + round(t * S) for t in at]
    return [OracleEvent("one", "SPY", t, 0, price, price, price, price, 1.0) for t in ts]


def dying_at_commit(number: int) -> Life:
    """A life that ends when that commit was done, before its answer comes."""
    return Life(2 * number - 1, ("commit",))


def checked(run: Callable[[Lanes], Awaitable[None]], spec: WindowSpec = SPEC) -> None:
    lanes = Lanes(spec)
    asyncio.run(_run(lanes, run))


async def _run(lanes: Lanes, run: Callable[[Lanes], Awaitable[None]]) -> None:
    await run(lanes)
    lanes.check()


def test_two_recordings_that_meet_inside_a_window_give_one_whole_bar() -> None:
    async def run(lanes: Lanes) -> None:
        await lanes.feed(A, trades(0.2, 1.2, 2.2), 2)
        await lanes.feed(B, trades(2.4, 3.2), 2)
        await lanes.run(B, Life(), 100)
        await lanes.run(A, Life(), 100)

    checked(run)


def test_a_lane_that_was_killed_takes_in_what_another_added_meanwhile() -> None:
    async def run(lanes: Lanes) -> None:
        await lanes.feed(A, trades(0.5, 1.5, 2.5, 3.5, 6.5), 1)
        await lanes.feed(B, trades(0.7), 1)
        number = 0
        while total_counts(lanes.store, A).stored < 2:  # its open 5 s window has settled rows
            number += 1
            assert await lanes.run(A, dying_at_commit(number), 2) is None
        await lanes.run(B, Life(), 100)
        await lanes.run(A, Life(), 100)

    checked(run)


def test_a_letter_on_its_way_is_known_to_others_and_arrives_once() -> None:
    async def run(lanes: Lanes) -> None:
        await lanes.feed(A, trades(0.5, 7.5, 0.6), 1)
        await lanes.feed(B, trades(0.7), 1)
        assert await lanes.run(A, dying_at_commit(1), 100) is None
        while not total_counts(lanes.store, A).late:
            assert await lanes.run(A, dying_at_commit(1), 100) is None
        assert letters_of(lanes.bus) == []
        await lanes.run(B, Life(), 100)
        bar = lanes.store.kept["1s", ("one", "SPY", START_NS)]
        assert bar.trade_count == 2  # without the late one at 0.6
        await lanes.run(A, Life(), 100)
        assert [letter.reason for letter in letters_of(lanes.bus)] == ["late"]

    checked(run)


def test_a_lane_leaves_the_windows_of_a_live_feed_until_the_feed_has_passed() -> None:
    async def run(lanes: Lanes) -> None:
        key = PartitionKey(GROUP, EVENTS, HERE)
        info = await lanes.bus.create_topic(EVENTS, PARTITIONS)
        await lanes.store.claim(key, "live", LEASE_NS)

        def live_reached(seconds: float) -> None:
            at = START_NS + round(seconds * S)
            state = StreamState(provider="one", watermark=at, closed=at, greatest=at)
            checkpoint = Checkpoint(log_id=info.log_id, streams=[state])
            lanes.store.rows[key].checkpoint = checkpoint.encode()

        live_reached(7)
        await lanes.feed(A, trades(0.5, 4.5, 5.5, 9.5, 5.6), 1)
        await lanes.run(A, Life(), 100)
        ends = {key[2] + S for interval, key in lanes.store.kept if interval == "1s"}
        assert max(ends) <= START_NS + 5 * S
        counts = total_counts(lanes.store, A)
        assert (counts.stored, counts.open, counts.late) == (2, 2, 1)

        live_reached(60)
        await lanes.run(A, Life(), 100)

    checked(run)


@pytest.mark.parametrize("outcomes", [["before"], ["after"], ["before", "after"]])
def test_an_unknown_outcome_is_looked_up_before_trying_again(
    outcomes: list[str],
) -> None:
    async def run(lanes: Lanes) -> None:
        lanes.store.fails = outcomes
        await lanes.feed(A, trades(0.5, 1.5, 0.5), 1)
        await lanes.run(A, Life(), 100)
        assert not outcomes
        assert total_counts(lanes.store, A).stored == 2

    checked(run)


def test_bars_that_nothing_keeps_waiting_are_no_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are committed at a time."""
    told: list[int] = []

    class Told(CoordinatedCommits):
        def hold(self, rows: int) -> None:
            told.append(rows)
            super().hold(rows)

    async def run(lanes: Lanes) -> None:
        await lanes.feed(A, trades(*(0.5 + i for i in range(40))), 40)
        written = await lanes.run(A, Life(), 40)
        assert written
        assert written.inserted >= 40
        assert set(told) == {0}

    monkeypatch.setattr(_lanes, "coordinated", Told)
    checked(run)


def test_a_lost_guard_is_not_taken_for_a_lost_partition() -> None:
    async def run() -> None:
        world = World(SPEC)
        await world.begin()
        key = PartitionKey(GROUP, "@lanes", 0)  # a number that a partition of the lane has too
        guard = await world.store.claim(key, "us", LEASE_NS)
        group = (await world.own(0)).group()
        observer = Observer(A, GROUP, "us", False, 0)
        async with coordinated(world.store) as commits:
            writer = GroupWriter(world.bus, world.store, commits, observer, guard, 2)
            await writer.commit([group])

            world.clock.advance(LEASE_NS + 1)
            await world.store.claim(key, "them", LEASE_NS)
            with pytest.raises(FencedError) as lost:
                await writer.commit([(await world.own(0)).group()])
            assert lost.value.partition == -1

    asyncio.run(run())


# ---- live workers ----------------------------------------------------------------------------


@dataclass
class Live:
    """A worker of its own on the live topic, with everything around it in memory."""

    bus: MemoryBus = field(default_factory=lambda: MemoryBus(ManualClock(START_NS)))

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
        settings = replace(batcher_settings("m", 1 << 20, None), lease_ns=S // 100)
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
