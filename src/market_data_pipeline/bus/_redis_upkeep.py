"""Forgetting what is old, and showing operators' tools where a group stands."""

from __future__ import annotations

import time
from collections.abc import Mapping

from market_data_core.records import Bounds, Place
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus._redis_entries import id_of, offset_of
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_topic import Topic

_TENTHS = 10
_FIRSTS_S = 10.0


async def size_of(link: Link, topic: Topic) -> int:
    """About how many bytes of memory the topic takes."""
    keys = topic.keys
    commands = [("MEMORY", "USAGE", key, "SAMPLES", 100) for key in keys]
    return sum(size or 0 for size in await link.several(commands, keys))


async def trim(
    link: Link, topic: Topic, partition: int, bounds: Bounds, end: int, before: int, full: bool
) -> None:
    """Forget entries below position `end`; if the topic is too large, a tenth up to `before`."""
    stream = topic.stream(partition)
    if full:
        oldest = (await _oldest(link, topic, partition)) or bounds.next
        end = max(end, oldest + 1, oldest + (before - oldest) // _TENTHS)
    end = min(end, before, bounds.next)
    if end > bounds.first:
        keys = [topic.meta, stream, topic.seen]
        kept = await _kept_from(link, topic, partition, end)
        arguments = (topic.info.log_id, partition, id_of(end), kept)
        await link.run(scripts.TRIM, keys, *arguments)


async def has_before(link: Link, topic: Topic, partition: int, before: int) -> bool:
    """Whether something is left below position `before`."""
    oldest = await _oldest(link, topic, partition)
    return oldest is not None and oldest < before


async def _oldest(link: Link, topic: Topic, partition: int) -> int | None:
    """Position of the oldest entry of a partition."""
    found = await link.run(scripts.DIGEST, [topic.stream(partition)], "-", 1)
    return offset_of(found[0][0]) if found else None


async def _kept_from(link: Link, topic: Topic, partition: int, end: int) -> int:
    """Second from which on all of the topic's entries are, once a partition begins at `end`.

    First entries only ever rise, so that one look at all partitions does for all of a round.
    """
    now = time.monotonic()
    if now >= topic.firsts_until:
        firsts = await link.run(scripts.FIRSTS, topic.streams)
        topic.firsts = {n: offset_of(place) for n, place in enumerate(firsts) if place}
        topic.firsts_until = now + _FIRSTS_S
    topic.firsts[partition] = end
    ms = int(id_of(min(topic.firsts.values())).partition("-")[0])
    return min(ms // 1_000, int(time.time()))


async def show(
    link: Link, topic: Topic, group: str, member: str, places: Mapping[int, Place]
) -> None:
    """Make the streams' consumer group look like the checkpoints."""
    for partition, place in places.items():
        pending = topic.groups.get(group, {}).get(partition)
        latest = topic.latest.get(partition, ())
        news = pending.news(place.resume, place.counted, latest) if pending else []
        claims = ["0", *map(id_of, news), "FORCE", "JUSTID"] if news else []
        done = id_of(place.resume - 1) if place.resume else ""
        read = id_of(place.counted - 1) if place.counted else "0-0"
        keys = [topic.meta, topic.stream(partition)]
        arguments = (topic.info.log_id, group, member, done, read, *claims)
        await link.run(scripts.SHOW, keys, *arguments)
        if pending:
            pending.shown.update(news)


async def leave(link: Link, topic: Topic, group: str, member: str) -> None:
    """Remove a member from the streams' consumer group; others claim what it had read."""
    topic.groups.pop(group, None)
    commands = [("XGROUP", "DELCONSUMER", stream, group, member) for stream in topic.streams]
    await link.several(commands, lenient=True)
