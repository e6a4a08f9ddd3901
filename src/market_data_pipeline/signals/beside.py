"""Live inference beside recordings of the feeds that it evaluates.

A feed's signals have one author. So a recording of a feed that live inference evaluates leaves its
bars to it, and if nobody is at work there, the recording's process does that work for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from market_data_core.contracts.store import PartitionStatus
from market_data_core.intervals import NS_PER_MS
from market_data_pipeline.assembly import Assembly
from market_data_pipeline.signals.checkpoint import (
    GROUP_SUFFIX,
    SignalsCheckpoint,
    decode_signals_checkpoint,
)
from market_data_pipeline.signals.evaluator import Evaluator

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the live topic of bars ended at a moment.

    Attributes:
        log_id: of the topic; "" if there is none.
        next: partition -> offset of the next record.
    """

    log_id: str
    next: Mapping[int, int]


async def inferred_live(parts: Assembly, told: Collection[str]) -> frozenset[str]:
    """Those of the providers that were `told` of whose bars live inference evaluates."""
    known = _checkpoints(await _rows(parts)).values()
    return frozenset(told) & {series.provider for one in known for series in one.series}


async def is_its(parts: Assembly, evaluator: Evaluator) -> bool:
    """Whether live inference evaluates as `evaluator` does, by its rules, features and windows."""
    known = _checkpoints(await _rows(parts)).values()
    return {one.editions[-1].version for one in known if one.editions} <= {evaluator.version}


async def attended(parts: Assembly) -> bool:
    """Whether a worker of live inference lives; one that has just died is given up in a lease."""
    lease_ns = parts.settings.micro_batch.lease_ms * NS_PER_MS
    first = _heartbeat(await _rows(parts))
    while True:
        last = _heartbeat(await _rows(parts))
        if last > first:
            return True
        if last < parts.clock.now_ns() - lease_ns:
            return False
        await asyncio.sleep(_LOOK_S)


async def ends(parts: Assembly) -> Ends:
    """Where the live topic of bars ends now."""
    name = parts.settings.bus.bars_topic
    info = await parts.bus.find_topic(name)
    numbers = range(info.partitions if info else 0)
    bounds = {number: await parts.bus.bounds(name, number) for number in numbers}
    filled = {n: bound.next for n, bound in bounds.items() if bound.next > bound.first}
    return Ends(info.log_id if info else "", filled)


async def evaluated(parts: Assembly, until: Ends) -> bool:
    """Whether live inference has come so far."""
    known = _checkpoints(await _rows(parts))
    return all(
        number in known
        and known[number].log_id == until.log_id
        and known[number].position >= position
        for number, position in until.next.items()
    )


def _heartbeat(rows: Collection[PartitionStatus]) -> int:
    """The last sign of life of an owner, UTC ns."""
    return max((row.heartbeat for row in rows if row.owner), default=0)


def _checkpoints(rows: Collection[PartitionStatus]) -> Mapping[int, SignalsCheckpoint]:
    return {
        row.key.partition: decode_signals_checkpoint(row.checkpoint)
        for row in rows
        if row.checkpoint
    }


async def _rows(parts: Assembly) -> Collection[PartitionStatus]:
    bus = parts.settings.bus
    return await parts.store.status(bus.group + GROUP_SUFFIX, bus.bars_topic)
