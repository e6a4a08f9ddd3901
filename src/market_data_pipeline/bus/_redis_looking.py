"""Looking into a stream other than in its order: by time, and at what was before a position."""

from __future__ import annotations

from collections.abc import AsyncIterator

from market_data_core.records import Bounds, Record
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus._redis_entries import Meta, id_of, meta_of, offset_of, record_of
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_topic import Topic
from market_data_pipeline.bus._time_index import TimeIndex, may_hold

_CHUNK_MAX = 1_000
_CHUNK_BYTES = 8 << 20
_GUESS_BYTES = 1 << 16


async def _digests(
    link: Link, topic: Topic, partition: int, position: int, end: int
) -> AsyncIterator[tuple[int, Meta]]:
    """What entries from a position on tell of themselves; the first ones come alone.

    The server copies payloads even where it does not send them, so that each step is bounded.
    """
    count = 1
    while position < end:
        start = id_of(position)
        answer = await link.run(scripts.DIGEST, [topic.stream(partition)], start, count)
        for place, fields in answer:
            position = offset_of(place) + 1
            yield position - 1, meta_of(fields)
        if not answer:
            return
        count = min(8 * count, _chunk(topic))


def _chunk(topic: Topic) -> int:
    """How many entries to look at together."""
    return max(1, min(_CHUNK_MAX, int(_CHUNK_BYTES / (topic.entry_bytes or _GUESS_BYTES))))


async def received_before(
    link: Link, topic: Topic, partition: int, bounds: Bounds, total: int, offset: int
) -> int:
    """Events before `offset`, which is kept or the end; `total` are in the stream in all."""
    if not offset:
        return 0  # the log is whole
    others = 0
    async for _, meta in _digests(link, topic, partition, offset, bounds.next):
        if meta.received >= 0:  # entries of ours tell what was before them
            return meta.received - others
        others += 1
    return total - others


async def scan(
    link: Link,
    topic: Topic,
    partition: int,
    bounds: Bounds,
    provider: str,
    from_ts: int,
    to_ts: int,
) -> list[Record]:
    """Records that may hold events of `provider` in the range, in order."""
    index = topic.indexes.setdefault(partition, TimeIndex())
    if index.next > bounds.next:  # the server has lost its latest records
        index = topic.indexes[partition] = TimeIndex()
    index.forget(bounds.first)
    async for place, meta in _digests(link, topic, partition, index.next, bounds.next):
        index.add(place, meta.provider, meta.min_ts, meta.max_ts, meta.count)
    records: list[Record] = []
    stream, chunk = topic.stream(partition), _chunk(topic)
    for first, last in index.find(provider, from_ts, to_ts):
        position = first
        while position <= last:
            ids = id_of(position), id_of(last)
            entries = await link.call("XRANGE", stream, *ids, "COUNT", chunk, keys=[stream])
            for place, fields in entries:
                m = meta_of(fields)
                span = m.provider, m.min_ts, m.max_ts, m.count
                if may_hold(*span, provider, from_ts, to_ts):
                    records.append(record_of(partition, place, fields)[0])
            if len(entries) < chunk:
                break
            position = offset_of(entries[-1][0]) + 1
    return records
