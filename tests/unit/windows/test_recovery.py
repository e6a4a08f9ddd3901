"""A log that is not what the checkpoint knows: nothing is rewritten, everything is counted."""

from __future__ import annotations

import asyncio

import pytest
from tests.property._harness import EVENTS, GROUP, PARTITIONS, World, entry_of

from market_data_core.contracts.store import Gap, PartitionKey
from market_data_core.events import make_batch
from market_data_core.partitioning import partition_of
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint
from market_data_pipeline.windows.recovery import Recovered, recover

S = 10**9
PLACES = (2, 3, 9, 10, 11, 53)
"""Where the log in memory puts its first records."""
T = 1_700_000_000 * S
HERE = partition_of("SPY", PARTITIONS)
SPEC = WindowSpec((2 * S,), 0, 0)


async def append(world: World, *at: float) -> None:
    """One record for each time, with as many events as its place in the list."""
    for n, t in enumerate(at, 1):
        ts = [T + round(t * S) + i for i in range(n)]
        batch = make_batch("p", ["SPY"] * n, ts, [0] * n, [1.0] * n, [1.0] * n)
        await world.bus.append(EVENTS, [entry_of(batch, HERE)])


async def worked() -> World:
    """Three records of 1, 2 and 3 events read: one bar stored, five events open."""
    world = World(SPEC)
    world.clock.time_ns = T + 10 * S
    await world.begin()
    await append(world, 0.5, 2.5, 2.7)
    await world.poll(HERE, 9)
    await world.commit(HERE, "done")
    counts = (await checkpoint(world)).counts
    assert counts == Counts(received=6, stored=1, open=5)
    world.crash(HERE)
    return world


async def checkpoint(world: World) -> Checkpoint:
    row = world.store.rows[PartitionKey(GROUP, EVENTS, HERE)]
    assert row.checkpoint
    return decode_checkpoint(row.checkpoint)


async def recovered(world: World) -> Recovered:
    info = world.bus.infos[EVENTS]
    found = await recover(world.bus, info, HERE, await checkpoint(world), SPEC.base_ns)
    assert found.checkpoint.counts.holds()
    return found


async def resumed(world: World, found: Recovered) -> None:
    """What a new owner makes of what the log holds, committed."""
    world.store.rows[PartitionKey(GROUP, EVENTS, HERE)].checkpoint = found.checkpoint.encode()
    await world.poll(HERE, 9)
    await world.commit(HERE, "done")
    world.crash(HERE)


def gap(cause: str) -> list[Gap]:
    return [Gap("p", "*", T + 2 * S, T + 4 * S, cause, f"{EVENTS}, partition {HERE}")]


def test_an_untouched_log_goes_on_where_it_stood() -> None:
    async def run() -> None:
        world = await worked()
        await append(world, 3.0)
        found = await recovered(world)
        assert (found.checkpoint, found.gaps, found.cause) == (await checkpoint(world), [], "")

    asyncio.run(run())


def behind(keep: int) -> int:
    """The position behind the first `keep` records."""
    return PLACES[keep - 1] + 1 if keep else 0


def test_places() -> None:
    async def run() -> None:
        world = await worked()
        await append(world, 3.0, 3.1, 3.2)
        assert tuple(r.offset for r in world.bus.records(EVENTS)[HERE]) == PLACES
        found = await checkpoint(world)
        assert (found.resume, found.counted) == (PLACES[1], behind(3))

    asyncio.run(run())


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_tail_that_was_lost(keep: int) -> None:
    async def run() -> None:
        world = await worked()
        world.bus.lose_tail(EVENTS, HERE, keep)
        found = await recovered(world)
        assert found.checkpoint.counts == Counts(received=6, stored=1, lost=5)
        assert (found.checkpoint.resume, found.checkpoint.counted) == (behind(keep),) * 2
        assert found.gaps == gap("log_tail_lost")
        assert found.lost == 5

    asyncio.run(run())


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_tail_that_was_lost_while_the_log_goes_on_behind_it(keep: int) -> None:
    async def run() -> None:
        world = await worked()
        world.bus.lose_tail(EVENTS, HERE, keep, later=True)
        await append(world, 3.5, 4.5, 6.5)
        found = await recovered(world)
        assert found.gaps == gap("log_tail_lost")
        assert (found.checkpoint.resume, found.checkpoint.counted) == (behind(3),) * 2
        assert found.checkpoint.counts == Counts(received=6, stored=1, lost=5)
        await resumed(world, found)
        counts = (await checkpoint(world)).counts
        assert counts == Counts(received=12, stored=4, open=3, lost=5)
        assert not (await recovered(world)).cause  # the loss is told once

    asyncio.run(run())


def test_a_tail_that_was_lost_and_grew_again() -> None:
    async def run() -> None:
        world = await worked()
        world.bus.lose_tail(EVENTS, HERE, 2)
        await append(world, 3.5, 3.6)
        found = await recovered(world)
        assert found.gaps == gap("log_diverged")
        assert found.checkpoint.counted == behind(4)
        assert found.checkpoint.counts == Counts(received=6, stored=1, lost=5)

    asyncio.run(run())


def test_a_log_that_was_replaced_is_read_from_its_start() -> None:
    async def run() -> None:
        world = await worked()
        await world.bus.drop_topic(EVENTS)
        await world.bus.create_topic(EVENTS, PARTITIONS)
        await append(world, 3.5)
        found = await recovered(world)
        assert found.gaps == gap("log_replaced")
        assert found.checkpoint.log_id == world.bus.infos[EVENTS].log_id
        assert (found.checkpoint.counted, found.checkpoint.counts.lost) == (0, 5)

    asyncio.run(run())


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_log_that_was_trimmed_past_what_had_to_be_read(forgetful: bool) -> None:
    async def run() -> None:
        world = await worked()
        await append(world, 2.8, 2.9)
        world.bus.forgetful = forgetful
        await world.bus.trim(EVENTS, HERE, PLACES[4], 0, 0)
        found = await recovered(world)
        assert found.gaps == gap("log_trimmed")
        # five were open; of the one that was never read the log may not know any more
        unread = 0 if forgetful else 1
        assert found.checkpoint.counts == Counts(received=6 + unread, stored=1, lost=5 + unread)
        assert found.checkpoint.counted == behind(4)
        await resumed(world, found)
        counts = (await checkpoint(world)).counts
        assert counts == Counts(received=8 + unread, stored=1, open=2, lost=5 + unread)

    asyncio.run(run())


def test_a_log_that_was_trimmed_between_what_is_open_and_what_is_counted() -> None:
    async def run() -> None:
        world = await worked()
        await append(world, 2.8)
        await world.bus.trim(EVENTS, HERE, PLACES[2], 0, 0)
        found = await recovered(world)
        assert found.gaps == gap("log_trimmed")
        assert found.checkpoint.counts == Counts(received=6, stored=1, lost=5)
        assert (found.checkpoint.resume, found.checkpoint.counted) == (behind(3),) * 2

    asyncio.run(run())


def test_trimming_below_what_has_to_be_read_loses_nothing() -> None:
    async def run() -> None:
        world = await worked()
        await world.bus.trim(EVENTS, HERE, (await checkpoint(world)).resume, 0, 0)
        assert not (await recovered(world)).cause

    asyncio.run(run())


def test_after_a_loss_stored_bars_stay_and_what_lacks_events_is_marked() -> None:
    async def run() -> None:
        world = await worked()
        stored = dict(world.store.kept)
        world.bus.lose_tail(EVENTS, HERE, 1)
        found = await recovered(world)
        # one for the stored window, one for the window that lost events, one whole window after it
        await append(world, 1.5, 3.5, 4.5, 6.5)
        await resumed(world, found)
        starts = {key[2] - T: state for (_, key), state in world.store.states.items()}
        assert starts == {0: "final", 2 * S: "gap", 4 * S: "final"}
        assert stored.items() <= world.store.kept.items()
        counts = (await checkpoint(world)).counts
        assert counts == Counts(received=16, stored=6, open=4, late=1, lost=5)

    asyncio.run(run())


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_new_group_begins_at_what_the_log_keeps(forgetful: bool) -> None:
    async def run() -> None:
        world = World(SPEC)
        await world.begin()
        await append(world, 0.5, 1.5, 2.5)
        world.bus.forgetful = forgetful
        await world.bus.trim(EVENTS, HERE, PLACES[1], 0, 0)
        found = await recover(world.bus, world.bus.infos[EVENTS], HERE, None, SPEC.base_ns)
        assert found.checkpoint.resume == found.checkpoint.counted == behind(1)
        assert found.checkpoint.received_before == (0 if forgetful else -1)
        await world.poll(HERE, 9)
        await world.commit(HERE, "done")
        counts = (await checkpoint(world)).counts
        assert counts == Counts(received=5, stored=2, open=3)  # whatever was before it

    asyncio.run(run())
