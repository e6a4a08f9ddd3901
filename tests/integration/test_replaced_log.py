"""Files of the embedded bus that somebody takes away, or replaces, under a worker and a feed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from market_data_core.config import Settings, load_config
from market_data_core.errors import LogLostError
from market_data_core.events import make_batch
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint

pytestmark = pytest.mark.timeout(60)

TOPIC, BARS = "mdp.events", "mdp.bars"
START = 1_761_314_520 * NS_PER_S
PARTITIONS, EACH = 2, 5
ENOUGH_S = 20.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_config(
        None,
        {
            "bus.partitions": PARTITIONS, "bus.embedded.path": f"{tmp_path}/bus",
            "store.uri": f"sqlite:///{tmp_path}/store.db", "micro_batch.flush_timeout_ms": 60_000,
        },
    )  # fmt: skip


async def append(backends: Backends, first: int, last: int) -> None:
    """Records `first` to `last`, of five trades each, a second apart."""
    for number in range(first, last + 1):
        at = [START + number * NS_PER_S + i for i in range(EACH)]
        places = range(number * EACH, (number + 1) * EACH)
        batch = make_batch("feed", ["SPY"] * EACH, at, places, [1.0] * EACH, [1.0] * EACH)
        (payload,) = codec.encode_events(batch, "columnar")
        await backends.bus.append(TOPIC, [Entry(1, payload, EACH, "feed", at[0], at[-1])])


async def counts(backends: Backends) -> Counts:
    """What the store's checkpoints say."""
    total = Counts()
    for row in await backends.store.status("mdp-consumers", TOPIC):
        if row.checkpoint:
            total.add(decode_checkpoint(row.checkpoint).counts)
    return total


class Worker:
    """A worker beside whoever takes files away."""

    def __init__(self, settings: Settings, backends: Backends) -> None:
        self._backends, self._stop = backends, asyncio.Event()
        self.running = asyncio.create_task(Flow(settings, backends).micro_batch(self._stop))

    async def received(self, number: int) -> Counts:
        """The counts, as soon as so many events were received."""
        async with asyncio.timeout(ENOUGH_S):
            while (found := await counts(self._backends)).received < number:
                assert not self.running.done(), self.running.result()
                await asyncio.sleep(0.01)
        return found

    async def end(self) -> None:
        self._stop.set()
        await asyncio.wait({self.running}, timeout=ENOUGH_S)


async def replace(settings: Settings, topic: str, partitions: int) -> None:
    """Another process removes a topic, and makes it anew if it is to have partitions."""
    async with open_backends(settings) as others:
        assert await others.bus.find_topic(topic) is not None
        await others.bus.drop_topic(topic)
        if partitions:
            await others.bus.create_topic(topic, partitions)


async def test_a_worker_goes_on_with_the_file_that_replaces_its_own(settings: Settings) -> None:
    async with open_backends(settings) as backends, open_backends(settings) as feed:
        await backends.bus.create_topic(TOPIC, PARTITIONS)
        await append(feed, 0, 9)
        worker = Worker(settings, backends)
        before = await worker.received(10 * EACH)
        assert before.open > 0
        await replace(settings, TOPIC, PARTITIONS)
        with pytest.raises(LogLostError, match="start again"):
            await append(feed, 20, 20)
        await append(feed, 20, 29)
        after = await worker.received(20 * EACH)
        await worker.end()
        assert worker.running.exception() is None
        after = await counts(backends)
        assert (after.received, after.lost, after.holds()) == (20 * EACH, before.open, True)
        assert [gap.cause for gap in await backends.store.gaps()] == ["log_replaced"]


@pytest.mark.parametrize("partitions", [0, PARTITIONS + 1])
async def test_a_worker_ends_whose_file_is_gone(settings: Settings, partitions: int) -> None:
    """Or is a log that other workers have to read."""
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, PARTITIONS)
        await append(backends, 0, 9)
        worker = Worker(settings, backends)
        await worker.received(10 * EACH)
        await replace(settings, TOPIC, partitions)
        async with asyncio.timeout(ENOUGH_S):
            with pytest.raises(LogLostError):
                await worker.running
        async with asyncio.timeout(ENOUGH_S):
            with pytest.raises(LogLostError):  # of the feed in the same process
                await append(backends, 20, 20)


@pytest.mark.parametrize("partitions", [0, PARTITIONS, PARTITIONS + 2])
async def test_bars_are_published_to_the_file_that_is_there(
    settings: Settings, partitions: int
) -> None:
    async with open_backends(settings) as backends, open_backends(settings) as feed:
        await backends.bus.create_topic(TOPIC, PARTITIONS)
        await append(feed, 0, 9)
        worker = Worker(settings, backends)
        await worker.received(10 * EACH)
        await replace(settings, BARS, partitions)
        await append(feed, 20, 29)
        await worker.received(20 * EACH)
        async with asyncio.timeout(ENOUGH_S), open_backends(settings) as reader:
            while not await published(reader):
                assert not worker.running.done(), worker.running.result()
                await asyncio.sleep(0.01)
            info = await reader.bus.find_topic(BARS)
            assert info is not None
            assert info.partitions == (partitions or PARTITIONS)
        await worker.end()
        assert worker.running.exception() is None


async def published(backends: Backends) -> int:
    """Events that the topic of bars has received."""
    info = await backends.bus.find_topic(BARS)
    found = 0
    for number in range(info.partitions if info else 0):
        found += (await backends.bus.bounds(BARS, number)).next
    return found
