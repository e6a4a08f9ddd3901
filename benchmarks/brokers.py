"""Our whole path through Redis and through Kafka, and the figures of its edges."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from benchmarks import servers
from benchmarks.contender import Contender, Figure, Result, answer_of
from benchmarks.ours import LIVE_S, Batches, Feed, live, p99, produced, recorded, settings_in
from benchmarks.servers import PARTITIONS, TOPIC, Broker, Messages, Start
from market_data_core.config import Settings
from market_data_core.events import EventBatch
from market_data_pipeline.allocator import tune_memory
from market_data_pipeline.backends import open_backends, open_bus
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow

_LOOK_S = 0.002
_STARTING_NS = 3 * 10**9
_POLL_BYTES = 4 << 20


@contextmanager
def _deployment(start: Start) -> Iterator[tuple[Broker, Settings]]:
    tune_memory()
    with start() as broker, tempfile.TemporaryDirectory(dir=".cache") as folder:
        yield broker, settings_in(folder, **{"bus.partitions": PARTITIONS, **broker.settings})


def columns(batches: Sequence[EventBatch], start: Start) -> Result:
    """Batches → broker → engine → store, from the first event to the last commit."""
    with _deployment(start) as (_, settings):
        return asyncio.run(recorded(settings, Batches(batches)))


def foreign(prepared: Messages, start: Start) -> Result:
    """Single JSON events that another program wrote, from the broker to the last bar's commit."""
    with _deployment(start) as (broker, settings):
        return asyncio.run(_foreign(prepared, broker, settings))


async def _foreign(prepared: Messages, broker: Broker, settings: Settings) -> Result:
    async with open_backends(settings) as backends:
        await backends.bus.create_topic(TOPIC, PARTITIONS)
        await asyncio.to_thread(broker.fill, prepared.rows)
        flow, stop = Flow(settings, backends), asyncio.Event()
        began = time.perf_counter()
        working = asyncio.create_task(flow.micro_batch(stop))
        while True:
            counts = flow.progress.counts
            if counts.stored + counts.deduplicated >= prepared.events:
                break
            if working.done():
                working.result()
            await asyncio.sleep(_LOOK_S)
        spent = time.perf_counter() - began
        stop.set()
        counts = (await working).counts
        frame = await backends.store.bars(interval="2s", end=prepared.end_ts)
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
    return Result(spent, answer_of(frame.select(names).iter_rows(), counts.deduplicated))


async def _readable(settings: Settings, seconds: float) -> list[float]:
    """Delays in ns from a tick's time to its coming out of another client's poll.

    Ticks of the first seconds, in which topics are made and connections opened, are left out.
    """
    delays: list[float] = []
    began = time.time_ns()
    reader = open_bus(settings)

    async def read() -> None:
        while await reader.find_topic(TOPIC) is None:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        positions = dict.fromkeys(range(PARTITIONS), 0)
        while True:
            found = await reader.poll(TOPIC, positions, _POLL_BYTES, 1.0)
            now = time.time_ns()
            for partition, records in found.items():
                positions[partition] = records[-1].offset + 1
                for record in records:
                    item = codec.decode(record.payload)
                    if isinstance(item, EventBatch) and item.src_ts[0] > began + _STARTING_NS:
                        delays.extend((now - item.src_ts).tolist())

    reading = asyncio.create_task(read())
    await produced(settings, Feed(10_000, seconds))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await reader.close()
    return delays


def edges(start: Start) -> list[Figure]:
    """At 10 k events/s: from event to readable, and from a window's end to its committed bar."""
    with _deployment(start) as (_, settings):
        readable = asyncio.run(_readable(settings, LIVE_S / 2))
    with start() as broker:
        bars, _ = asyncio.run(live(10_000, LIVE_S, **broker.settings))
    return [
        Figure("event to readable at 10 k/s, p99", p99(readable), "ms", "<= 15"),
        Figure("window end + lateness to committed bar, p99", p99(bars), "ms", "<= 35"),
    ]


_REDIS = Contender(
    "ours-redis", "redis", partial(columns, start=servers.redis),
    lambda cache: cache.load().batches(), ours=True, remark="durable, AOF everysec",
)  # fmt: skip
_KAFKA = replace(
    _REDIS, name="ours-kafka", group="kafka", run=partial(columns, start=servers.kafka),
    remark="durable, acks=all",
)  # fmt: skip
_JSON = "from single JSON events that another program wrote"
CONTENDERS = (
    _REDIS,
    replace(
        _REDIS,
        name="ours-redis-json",
        run=partial(foreign, start=servers.redis),
        prepare=servers.messages,
        remark=_JSON,
    ),
    Contender("redis-edge", "redis", lambda _: edges(servers.redis), rounds_max=1, ours=True),
    _KAFKA,
    replace(
        _KAFKA,
        name="ours-kafka-json",
        run=partial(foreign, start=servers.kafka),
        prepare=servers.messages,
        remark=_JSON,
    ),
    Contender("kafka-edge", "kafka", lambda _: edges(servers.kafka), rounds_max=1, ours=True),
)
