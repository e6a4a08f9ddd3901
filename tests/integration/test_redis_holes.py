"""Records that somebody removes from Redis before they were read: named in `lost`, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.servers.redis import Server

from market_data_core.config import Settings, load_config
from market_data_core.events import make_batch
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.bus._redis_entries import id_of
from market_data_pipeline.flow import Flow
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint

pytestmark = pytest.mark.timeout(60)

TOPIC, START = "mdp.events", 1_761_314_520 * NS_PER_S
EACH = 5


def settings_on(server: Server, folder: Path, flush_timeout_ms: int = 60_000) -> Settings:
    return load_config(
        None,
        {
            "bus.type": "redis", "bus.redis.uri": server.uri, "bus.partitions": 1,
            "bus.redis.key_prefix": server.new_prefix(),
            "store.uri": f"sqlite:///{folder}/store.db",
            "micro_batch.flush_timeout_ms": flush_timeout_ms,
        },
    )  # fmt: skip


async def append(backends: Backends, first: int, last: int) -> None:
    """Records `first` to `last`, of five trades each, a second apart."""
    for number in range(first, last + 1):
        at = [START + number * NS_PER_S + i for i in range(EACH)]
        price, size = [100.0 + number] * EACH, [1.0] * EACH
        batch = make_batch("feed", ["SPY"] * EACH, at, [number * EACH + i for i in range(EACH)],
                           price, size, ingest_ts=at)  # fmt: skip
        (payload,) = codec.encode_events(batch, "columnar")
        await backends.bus.append(TOPIC, [Entry(0, payload, EACH, "feed", at[0], at[-1])])


async def remove(server: Server, settings: Settings, backends: Backends, *numbers: int) -> None:
    """XDEL of the records with these numbers."""
    found = await backends.bus.poll(TOPIC, {0: 0}, 1 << 20, 0)
    with server.client() as client:
        for number in numbers:
            place = id_of(found[0][number].offset)
            assert client.xdel(f"{settings.bus.redis.key_prefix}{TOPIC}", place) == 1


async def counts(backends: Backends) -> Counts:
    """What the store's checkpoint says."""
    total = Counts()
    for row in await backends.store.status("mdp-consumers", TOPIC):
        if row.checkpoint:
            total.add(decode_checkpoint(row.checkpoint).counts)
    return total


async def place(backends: Backends) -> Checkpoint:
    """What the store knows of the only partition."""
    (row,) = await backends.store.status("mdp-consumers", TOPIC)
    return decode_checkpoint(row.checkpoint or b"")


@asynccontextmanager
async def working(settings: Settings, backends: Backends, received: int) -> AsyncIterator[None]:
    """A worker, until the store has received as many events; then it ends in an orderly way."""
    flow, stop = Flow(settings, backends), asyncio.Event()
    task = asyncio.create_task(flow.micro_batch(stop))
    async with asyncio.timeout(30):
        while (await counts(backends)).received < received:
            assert not task.done(), task.result()
            await asyncio.sleep(0.01)
    yield
    stop.set()
    await task


async def test_a_hole_that_a_worker_meets(redis_server: Server, tmp_path: Path) -> None:
    """It is told of with the record behind it, so that nobody counts it again."""
    settings = settings_on(redis_server, tmp_path)
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, 1)
        await append(backends, 0, 9)
        await remove(redis_server, settings, backends, 4, 5)
        async with working(settings, backends, 10 * EACH):
            pass
        found = await counts(backends)
        assert (found.received, found.lost, found.holds()) == (10 * EACH, 2 * EACH, True)
        gaps = await backends.store.gaps()
        assert {(g.cause, g.provider) for g in gaps} == {("log_hole", "feed")}
    async with open_backends(settings) as backends:
        await append(backends, 10, 11)
        async with working(settings, backends, 12 * EACH):
            pass
        found = await counts(backends)
        assert (found.received, found.lost, found.holds()) == (12 * EACH, 2 * EACH, True)
        assert {g.cause for g in await backends.store.gaps()} == {"log_hole"}


async def test_a_hole_where_the_last_worker_ended(redis_server: Server, tmp_path: Path) -> None:
    settings = settings_on(redis_server, tmp_path)
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, 1)
        await append(backends, 0, 5)
        async with working(settings, backends, 6 * EACH):
            pass
        await append(backends, 6, 9)
        await remove(redis_server, settings, backends, 6)
    async with open_backends(settings) as backends:
        async with working(settings, backends, 10 * EACH):
            pass
        found = await counts(backends)
        assert (found.received, found.lost, found.holds()) == (10 * EACH, EACH, True)


async def test_a_hole_right_behind_all_that_was_settled(
    redis_server: Server, tmp_path: Path
) -> None:
    """The next worker begins with the record behind it, and has read none before."""
    settings = settings_on(redis_server, tmp_path, flush_timeout_ms=100)
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, 1)
        await append(backends, 0, 5)
        async with working(settings, backends, 6 * EACH), asyncio.timeout(20):
            while (await place(backends)).resume < (await place(backends)).counted:
                await asyncio.sleep(0.01)
        settled = await place(backends)
        assert settled.resume == settled.counted
        await append(backends, 6, 9)
        found = (await backends.bus.poll(TOPIC, {0: 0}, 1 << 20, 0))[0]
        first = next(r for r in found if r.offset >= settled.counted and r.count)
        with redis_server.client() as client:
            stream = f"{settings.bus.redis.key_prefix}{TOPIC}"
            assert client.xdel(stream, id_of(first.offset)) == 1
    async with open_backends(settings) as backends:
        async with working(settings, backends, 10 * EACH):
            pass
        after = await counts(backends)
        assert (after.received, after.lost, after.holds()) == (10 * EACH, EACH, True)
        assert {g.cause for g in await backends.store.gaps()} == {"log_hole"}


async def test_what_was_read_and_removed_before_it_was_stored(
    redis_server: Server, tmp_path: Path
) -> None:
    """A new owner finds fewer events for the windows that were open."""
    settings = settings_on(redis_server, tmp_path)
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, 1)
        await append(backends, 0, 9)
        async with working(settings, backends, 10 * EACH):
            pass
        before = await counts(backends)
        assert before.open > 0
        await remove(redis_server, settings, backends, 8)
    async with open_backends(settings) as backends:
        await append(backends, 10, 11)
        async with working(settings, backends, 12 * EACH):
            pass
        found = await counts(backends)
        assert (found.received, found.lost, found.holds()) == (12 * EACH, EACH, True)
