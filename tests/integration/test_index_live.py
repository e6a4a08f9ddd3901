"""Bars that are compared with an index whose bars come late, or change, or are not told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.signals_place import END, START, TICKS, use
from tests.property._memory import Life
from tests.property._signals_world import (
    BARS,
    FEATURES,
    OTHER_RULES,
    PARTITIONS,
    RULES,
    START_NS,
    SYMBOLS,
    Bar,
    World,
    evaluator,
    expected,
    until,
)

from market_data_core.config import Settings
from market_data_core.errors import TransientError
from market_data_core.intervals import NS_PER_S
from market_data_core.partitioning import partition_of
from market_data_core.tables import BARS as TABLE_OF_BARS
from market_data_core.tables import Select
from market_data_pipeline.backends import Backends
from market_data_pipeline.generations import Generations
from market_data_pipeline.signals import index, worker
from market_data_pipeline.signals.checkpoint import Edition, decode_signals_checkpoint
from market_data_pipeline.signals.editions import Editions
from market_data_pipeline.signals.index import ClosedWindows, IndexFollower
from market_data_pipeline.signals.observe import SignalsObserver

pytestmark = pytest.mark.timeout(60)

HOME = partition_of(FEATURES.index, PARTITIONS)
OTHER = next(s for s in SYMBOLS if partition_of(s, PARTITIONS) != HOME)


def walk(symbol: str, slots: range, up: float) -> list[Bar]:
    return [Bar(symbol, slot, 100 + up * slot) for slot in slots]


EARLY = [*walk(FEATURES.index, range(12), 0.1), *walk(OTHER, range(12), 3.0)]
LATER = walk(OTHER, range(12, 13), 3.0)
RESTATED = [Bar(FEATURES.index, 11, 400.0)]
"""Takes signals back: the index has risen more than the other symbol."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.open()
    made.chance.seed(0)
    yield made
    await made.store.close()


@asynccontextmanager
async def working(world: World, rules: str = RULES) -> AsyncIterator[None]:
    """One worker for the time being."""
    world.clock.advance(10 * NS_PER_S)
    stop = asyncio.Event()
    task = asyncio.create_task(world.worker(Life(), rules=rules).run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def agrees(
    world: World, bars: list[Bar], editions: Mapping[int, list[Edition]] | None = None
) -> bool:
    return await world.active() == await expected(bars, editions)


async def followed(world: World) -> bool:
    """Whether it is committed that all that was told of the index has been dealt with."""
    rows = await world.store.status("g-infer", BARS)
    known = [decode_signals_checkpoint(row.checkpoint) for row in rows if row.checkpoint]
    told = (await world.bus.bounds(BARS, HOME)).next
    return len(known) == PARTITIONS and all(c.index.get(HOME) == told for c in known)


async def taken_back(world: World) -> bool:
    """Whether what was found with the restated bar of the index is what holds."""
    return await agrees(world, [*EARLY, *LATER, *RESTATED])


async def test_a_bar_of_the_index_that_changes_is_followed(world: World) -> None:
    async with working(world):
        await world.write([*EARLY, *LATER])
        await until(lambda: agrees(world, [*EARLY, *LATER]))
        assert not await taken_back(world)
        await world.write(RESTATED)
        await until(lambda: taken_back(world))


async def test_a_change_that_is_seen_before_it_is_told(world: World) -> None:
    """The store has it when the next bar is evaluated."""
    async with working(world):
        await world.write(EARLY)
        await until(lambda: agrees(world, EARLY))
        await world.write(RESTATED, slow=True)
        untold, world.left = world.left, []
        await world.write(LATER)
        await until(lambda: taken_back(world))
        await world.bus.append(BARS, untold)
        await until(world.done)
    assert await taken_back(world)


async def test_a_change_that_is_undone(world: World) -> None:
    """Also where nothing was evaluated in between."""
    async with working(world):
        await world.write([*EARLY, *LATER])
        await until(lambda: agrees(world, [*EARLY, *LATER]))
        await world.write(RESTATED)
        await until(lambda: taken_back(world))
        await world.write([bar for bar in EARLY if bar.symbol == FEATURES.index][-1:])
        await until(lambda: agrees(world, [*EARLY, *LATER]))


async def test_news_where_nothing_looks_at_the_index(world: World) -> None:
    """Rules that look at it were there before, and may be again."""
    async with working(world, RULES):
        await world.write(EARLY)
        await until(lambda: agrees(world, EARLY))
    async with working(world, OTHER_RULES):
        await world.write(LATER)
        await until(world.done)
        await world.write(RESTATED)
        editions = await world.editions()
        await until(lambda: agrees(world, [*EARLY, *LATER, *RESTATED], editions))


async def test_a_change_that_another_worker_did_not_see(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next one reads itself tells nothing of bars that the other one evaluated."""
    monkeypatch.setattr(worker, "_PLACES_S", 0.0)
    async with working(world):
        await world.write(EARLY)
        await until(lambda: agrees(world, EARLY))
        await until(lambda: followed(world))  # what was told before begins for the next one
    await world.write(RESTATED, slow=True)
    untold, world.left = world.left, []
    async with working(world):
        await world.write(LATER)
        await until(world.done)
        assert not await taken_back(world)
        await world.bus.append(BARS, untold)
        await until(lambda: taken_back(world))


@pytest.mark.parametrize("turn", range(1, 5))
async def test_reading_that_fails_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """What was read before it is not taken for what was read from the log."""
    near = next(s for s in SYMBOLS if s != OTHER and partition_of(s, PARTITIONS) != HOME)
    async with working(world):
        await world.write([*EARLY])
        await until(lambda: agrees(world, EARLY))
    older, newer = (Bar(near, 5, close) for close in (101.0, 300.0))
    await world.write([older], slow=True)
    told, world.left = world.left, []
    await world.write([newer], slow=True)
    world.left = []
    select, asked = world.store.select, 0

    async def fails_once(what: Select) -> object:
        nonlocal asked
        asked += what.table is TABLE_OF_BARS
        if asked == turn:
            asked += 1
            raise TransientError("away for a moment")
        return await select(what)

    monkeypatch.setattr(world.store, "select", fails_once)
    async with working(world):
        await world.bus.append(BARS, told)
        await until(world.done)
    assert asked > turn
    assert await agrees(world, [*EARLY, newer])


async def test_a_change_that_the_log_has_lost(world: World) -> None:
    async with working(world):
        await world.write(EARLY)
        await until(lambda: agrees(world, EARLY))
    more = walk(FEATURES.index, range(13, 14), 0.1)
    for bars in (RESTATED, more):
        await world.write(bars)
    world.bus.cut(HOME, 0, len(world.bus.logs[BARS, HOME].kept) - 1)
    async with working(world):
        await until(lambda: agrees(world, [*EARLY, *RESTATED, *more]))


async def test_bars_wait_for_their_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    closed_until, asked = START_NS, 0

    async def closed(*_: object) -> int:
        nonlocal asked
        asked += 1
        return closed_until

    async def is_waiting() -> bool:
        return asked > 3

    monkeypatch.setattr(world, "closed", closed)
    monkeypatch.setattr(index, "_PATIENCE_S", 1e9)
    async with working(world):
        await world.write(walk(OTHER, range(3), 3.0))
        await until(is_waiting)
        assert await world.active() == {}
        await world.write(walk(FEATURES.index, range(3), 0.1))
        closed_until = 2**62
        await until(world.done)
    bars = [*walk(OTHER, range(3), 3.0), *walk(FEATURES.index, range(3), 0.1)]
    assert await agrees(world, bars)


async def test_they_do_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def closed(*_: object) -> int:
        return START_NS

    monkeypatch.setattr(world, "closed", closed)
    monkeypatch.setattr(index, "_PATIENCE_S", 0.1)
    with capture_logs() as logs:
        async with working(world):
            await world.write(EARLY)
            await until(lambda: agrees(world, EARLY))
            await world.write(LATER)
            await until(world.done)
    (told,) = [line for line in logs if line["log_level"] == "warning"]
    assert "before those of their index" in told["event"]
    assert (told["index"], told["provider"], told["interval"]) == (FEATURES.index, "p", "2s")


async def test_the_earliest_place_counts(world: World) -> None:
    """A partition whose last owner had followed less is read from there on again."""
    editions = Editions(evaluator(), evaluator)
    info = world.bus.infos[BARS]
    follower = IndexFollower(world.bus, info, editions, SignalsObserver(BARS, "", ""))
    await world.write(EARLY)
    await follower.begin({})
    assert follower.places == {HOME: (await world.bus.bounds(BARS, HOME)).next}
    for place, kept in ((2, 2), (3, 2), (0, 0)):
        await follower.begin({HOME: place})
        assert follower.places == {HOME: kept}


def test_how_far_windows_are_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = use(monkeypatch, tmp_path)

    async def ends(backends: Backends, settings: Settings) -> list[Any]:
        topic, group = settings.bus.events_topic, settings.bus.group
        generations = Generations(backends.bus, topic, backends.clock)
        closed = ClosedWindows(backends.store, generations, group, settings.bus.partitions)
        asked = (("feed", "SPY", START), ("feed", "AAPL", END), ("other", "SPY", START))
        return [await closed(*one) for one in asked]

    assert place.work(ends) == [None, None, None]
    place.feed(TICKS)
    place.batch()
    spy, apple, other = place.work(ends)
    assert START < spy <= END
    assert START < apple <= END
    assert other is None
