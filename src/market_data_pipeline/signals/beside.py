"""Live inference beside recordings of the feeds that it evaluates."""

from __future__ import annotations

from collections.abc import Sequence

from market_data_core.contracts.store import PartitionStatus
from market_data_core.intervals import NS_PER_MS
from market_data_pipeline.assembly import Assembly
from market_data_pipeline.lane_news import fed_live
from market_data_pipeline.signals.checkpoint import GROUP_SUFFIX, decode_signals_checkpoint


async def inferred_live(parts: Assembly) -> frozenset[str]:
    """The providers whose bars live inference evaluates, and is told of by recordings too."""
    bus = parts.settings.bus
    fed = await fed_live(parts.store, parts.generations, bus.group, bus.partitions)
    known = [decode_signals_checkpoint(r.checkpoint) for r in await _rows(parts) if r.checkpoint]
    return fed & {series.provider for checkpoint in known for series in checkpoint.series}


async def attended(parts: Assembly) -> bool:
    """Whether a worker of live inference is at work."""
    lease_ns = parts.settings.micro_batch.lease_ms * NS_PER_MS
    stale = parts.clock.now_ns() - lease_ns
    return any(row.owner and row.heartbeat >= stale for row in await _rows(parts))


async def caught_up(parts: Assembly) -> bool:
    """Whether live inference has evaluated all bars that it was told of."""
    name = parts.settings.bus.bars_topic
    info = await parts.bus.find_topic(name)
    rows = {row.key.partition: row.checkpoint for row in await _rows(parts)}
    for number in range(info.partitions if info else 0):
        bounds, known = await parts.bus.bounds(name, number), rows.get(number)
        position = decode_signals_checkpoint(known).position if known else bounds.first
        if position < bounds.next:
            return False
    return True


async def _rows(parts: Assembly) -> Sequence[PartitionStatus]:
    bus = parts.settings.bus
    return await parts.store.status(bus.group + GROUP_SUFFIX, bus.bars_topic)
