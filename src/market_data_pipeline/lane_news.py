"""Telling the live topic of bars what a recording has changed of a live feed's bars.

A recording publishes to a topic of its own, so that live features never see history. Where it
restates bars of a provider that has a live feed, whoever keeps features of that feed has to know.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from market_data_core.bars import MAGIC, BarBatch
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import PartitionStatus, Positions
from market_data_core.events import OFFICIAL_SUFFIX
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record, TopicInfo
from market_data_pipeline.generations import Generations
from market_data_pipeline.windows.checkpoint import decode_checkpoint

_POLL_BYTES = 4 << 20


def live_providers(rows: Collection[PartitionStatus]) -> frozenset[str]:
    """The providers that have a live feed, by the checkpoints of the live topic's partitions.

    A vendor's own bars have a provider of their own.
    """
    streams = [s for r in rows if r.checkpoint for s in decode_checkpoint(r.checkpoint).streams]
    return frozenset(s.provider + (OFFICIAL_SUFFIX if s.kind == "bar" else "") for s in streams)


async def fed_live(
    store: Positions, generations: Generations, group: str, partitions: int
) -> frozenset[str]:
    """The providers that have a live feed.

    Args:
        store: where the checkpoints are.
        generations: of the live topic.
        group: consumer group of the workers that cut it into windows.
        partitions: of the first generation, if there is none yet.
    """
    rows = await store.status(group)
    timeline = await generations.look(partitions)
    topics = {generation.topic for generation in timeline.generations}
    return live_providers([row for row in rows if row.key.topic in topics])


async def tell_live(
    bus: Bus, lane_bars: TopicInfo, live_bars: TopicInfo, of: Collection[str]
) -> None:
    """Publish a recording's bars of some providers on the live topic too; again has no effect.

    Args:
        bus: holds both topics.
        lane_bars: the recording's topic of bars.
        live_bars: that of live feeds.
        of: providers that have a live feed.
    """
    for number in range(lane_bars.partitions):
        bounds = await bus.bounds(lane_bars.name, number)
        position = bounds.first
        while position < bounds.next:
            found = await bus.poll(lane_bars.name, {number: position}, _POLL_BYTES, 0.0)
            records = found.get(number, [])
            if not records:
                break
            position = records[-1].offset + 1
            entries = [e for r in records for e in _entries(r, lane_bars.name, live_bars, of)]
            if entries:
                await bus.append(live_bars.name, entries)


def _entries(record: Record, lane: str, to: TopicInfo, of: Collection[str]) -> list[Entry]:
    if not record.payload.startswith(MAGIC):
        return []
    batch, version = BarBatch.decode(record.payload)
    if batch.provider not in of or not len(batch):
        return []
    homes = np.array([partition_of(s, to.partitions) for s in batch.symbols])[batch.codes]
    entries = []
    for home in np.unique(homes).tolist():
        part = batch.take(homes == home)
        span = int(part.ts.min()), int(part.ts.max())
        key = f"{lane}/{record.partition}/{record.offset}/to/{home}"
        payload = part.encode(version)
        entries.append(Entry(home, payload, len(part), part.provider, *span, key=key))
    return entries
