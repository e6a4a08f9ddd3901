"""Workers between a bus and a store that fail, and lanes that find others' work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.property import _lanes
from tests.property._harness import (
    EVENTS,
    GROUP,
    LEASE_NS,
    PARTITIONS,
    World,
    coordinated,
    letters_of,
    total_counts,
)
from tests.property._lanes import Lanes
from tests.property._memory import Life

from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import FencedError
from market_data_core.partitioning import partition_of
from market_data_core.testing.oracle import OracleEvent
from market_data_core.testing.strategies import START_NS
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows import micro_batcher
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import (
    Checkpoint,
    StreamState,
)
from market_data_pipeline.windows.writer import GroupWriter
from market_data_store.sinks.groups import CoordinatedCommits

S = 10**9
HERE = partition_of("SPY", PARTITIONS)
SPEC = WindowSpec((S, 5 * S), 0, 0)
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
