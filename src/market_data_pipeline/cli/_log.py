"""Reading a topic for people: from its end backwards, or merged over its partitions.

Nothing is concluded from offsets but their order: what lies how far back is asked for by time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from market_data_core._suggest import did_you_mean
from market_data_core.contracts.bus import Bus
from market_data_core.errors import UsageError
from market_data_core.intervals import NS_PER_MS
from market_data_core.records import Record, TopicInfo
from market_data_pipeline.past_holes import poll_past_holes

POLL_BYTES = 8 << 20
_SPAN_NS, _SPAN_MIN_NS = 100 * NS_PER_MS, NS_PER_MS
_SHRINK, _GROW = 8, 2


async def topic_of(bus: Bus, name: str) -> TopicInfo:
    """The topic of that name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    info = await bus.find_topic(name)
    if info is None:
        names = [topic.name for topic in await bus.topics()]
        msg = f"there is no topic {name!r}; {did_you_mean(name, names)}"
        raise UsageError(msg)
    return info


async def oldest(bus: Bus, topic: str, partition: int) -> Record | None:
    """The first record that a partition holds, None if it holds none."""
    first = (await bus.bounds(topic, partition)).first
    polled = await poll_past_holes(bus, topic, {partition: first}, 1, 0)
    return polled[partition][0] if partition in polled else None


async def newest(bus: Bus, topic: str, partition: int) -> Record | None:
    """The last record that a partition holds, None if it holds none."""
    bounds = await bus.bounds(topic, partition)
    if bounds.next <= bounds.first:
        return None
    polled = await poll_past_holes(
        bus, topic, {partition: max(bounds.first, bounds.next - 1)}, 1, 0
    )
    if polled.get(partition):  # mostly the last record stands there
        return polled[partition][-1]
    first = await oldest(bus, topic, partition)
    if first is None:
        return None
    until, span = first.append_ts + 1, _SPAN_NS
    while await bus.position_at(topic, partition, until) < bounds.next:
        until, span = until + span, span * _GROW
    async for block in backwards(bus, topic, partition, bounds.next, until):
        return block[-1]
    return first


async def backwards(
    bus: Bus, topic: str, partition: int, end: int, until_ns: int
) -> AsyncIterator[list[Record]]:
    """Records below offset `end` in blocks, the last block first, each in order.

    Args:
        bus: holds the topic.
        topic: its name.
        partition: of the topic.
        end: where to begin.
        until_ns: a time (UTC ns) that every record below `end` was appended before.
    """
    first = await oldest(bus, topic, partition)
    if first is None:
        return
    span = _SPAN_NS
    while end > first.offset:
        low = until_ns - span
        begin = first.offset
        if low > first.append_ts:
            begin = max(begin, await bus.position_at(topic, partition, low))
        if begin >= end:
            until_ns, span = low, span * _GROW
            continue
        block = await _block(bus, topic, partition, begin, end, span > _SPAN_MIN_NS)
        if block is None:
            span = max(span // _SHRINK, _SPAN_MIN_NS)
            continue
        if block:
            yield block
        end, until_ns, span = begin, low, span * _GROW


async def _block(
    bus: Bus, topic: str, partition: int, begin: int, end: int, bounded: bool
) -> list[Record] | None:
    """The records from `begin` to `end`; None if they are too many for a bounded block."""
    block: list[Record] = []
    position = begin
    while position < end:
        polled = (await poll_past_holes(bus, topic, {partition: position}, POLL_BYTES, 0)).get(
            partition, []
        )
        inside = [record for record in polled if record.offset < end]
        block += inside
        if not inside or len(inside) < len(polled):
            break
        position = inside[-1].offset + 1
        if bounded and position < end and sum(len(r.payload) for r in polled) >= POLL_BYTES:
            return None
    return block


async def merged(
    bus: Bus, topic: str, spans: Mapping[int, tuple[int, int]]
) -> AsyncIterator[Record]:
    """Records of several partitions in the order of their append.

    Args:
        bus: holds the topic.
        topic: its name.
        spans: partition -> offsets from which on and below which it is read.
    """
    positions = {number: begin for number, (begin, end) in spans.items() if begin < end}
    waiting: dict[int, deque[Record]] = {}
    while positions or waiting:
        missing = {n: at for n, at in positions.items() if n not in waiting}
        if missing:
            polled = await poll_past_holes(bus, topic, missing, POLL_BYTES, 0)
            for number in missing:
                records = polled.get(number, [])
                inside = [r for r in records if r.offset < spans[number][1]]
                if inside:
                    waiting[number] = deque(inside)
                    positions[number] = inside[-1].offset + 1
                if len(inside) < len(records) or not records:
                    del positions[number]
        if not waiting:
            return
        number = min(waiting, key=lambda n: (waiting[n][0].append_ts, n))
        yield waiting[number].popleft()
        if not waiting[number]:
            del waiting[number]


async def in_order(sources: Sequence[AsyncIterator[Record]]) -> AsyncIterator[tuple[int, Record]]:
    """Records of several topics in the order of their append, each with its topic's index.

    Args:
        sources: for each topic its records in that order.
    """
    waiting: dict[int, Record] = {}
    missing = list(range(len(sources)))
    while True:
        for number in missing:
            record = await anext(sources[number], None)
            if record is not None:
                waiting[number] = record
        if not waiting:
            return
        number = min(waiting, key=lambda n: (waiting[n].append_ts, n))
        yield number, waiting.pop(number)
        missing = [number]
