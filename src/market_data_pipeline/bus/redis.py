"""The bus on Redis Streams: one stream for each partition, any number of processes and machines.

A position is an entry's id, packed: milliseconds, then 20 bits of sequence. Appends are scripts, so
that each is written whole or not at all, once even if its answer was lost, and with the number of
events before it. What is acknowledged is as durable as the server's settings make it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from market_data_core.clock import Clock
from market_data_core.config import RedisBusSettings
from market_data_core.records import Bounds, Entry, Place, Record, TopicInfo
from market_data_core.registry import Backend
from market_data_pipeline.bus import _redis_looking, _redis_upkeep
from market_data_pipeline.bus._redis_directory import Directory
from market_data_pipeline.bus._redis_entries import id_of, offset_of, record_of
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_reading import Reader
from market_data_pipeline.bus._redis_topic import Topic
from market_data_pipeline.bus._redis_writing import Writer
from market_data_pipeline.bus._topics import Losses, check_name, check_partition


class RedisBus:
    """Implements :class:`market_data_core.contracts.bus.Bus` on one Redis server.

    Args:
        settings: where the server is.
    """

    def __init__(self, settings: RedisBusSettings) -> None:
        self._link = Link(settings.uri)
        self._losses = Losses()
        self._directory = Directory(self._link, settings.key_prefix, self._losses)
        self._writer = Writer(self._link, self._directory, settings.replicas)
        self._reader = Reader(self._link, self._directory, self._writer)
        self._closed = False

    # ---- topics ----------------------------------------------------------------------------

    async def create_topic(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist."""
        self._require_open()
        check_name(name)
        await self._link.examine()
        return await self._directory.create(name, partitions)

    async def find_topic(self, name: str) -> TopicInfo | None:
        """The topic, or None if it does not exist."""
        self._require_open()
        topic = await self._directory.find(name)
        return topic.info if topic else None

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        self._require_open()
        found = [await self.find_topic(name) for name in await self._directory.names()]
        return [info for info in found if info]

    async def drop_topic(self, name: str) -> None:
        """Remove a topic and all it holds; no error if it does not exist."""
        self._require_open()
        await self._directory.drop(name)

    def _require_open(self) -> None:
        if self._closed:
            msg = "the bus is closed"
            raise RuntimeError(msg)

    async def _topic(self, name: str, partition: int = 0) -> Topic:
        self._require_open()
        return await self._directory.get(name, partition)

    # ---- writing ---------------------------------------------------------------------------

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Append all entries in one script."""
        with self._losses.told(topic, "append"):
            known = await self._topic(topic)
            if entries:
                await self._writer.append(known, entries)

    # ---- looking ---------------------------------------------------------------------------

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now."""
        return (await self._reader.state(await self._topic(topic, partition), partition))[0]

    async def received(self, topic: str, partition: int, offset: int) -> int | None:
        """Events appended before `offset`; None if what was there is no longer kept."""
        known = await self._topic(topic, partition)
        bounds, received, _ = await self._reader.state(known, partition)
        if offset < bounds.first:
            return None
        return await _redis_looking.received_before(
            self._link, known, partition, bounds, received, offset
        )

    async def source(self, topic: str, partition: int) -> int:
        """The greatest source position appended."""
        return (await self._reader.state(await self._topic(topic, partition), partition))[2]

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` or later, else the end."""
        known = await self._topic(topic, partition)
        stream = known.stream(partition)
        start = f"{max(0, -(-append_ns // 1_000_000))}-0"
        found = await self._link.call("XRANGE", stream, start, "+", "COUNT", 1, keys=[stream])
        return offset_of(found[0][0]) if found else (await self.bounds(topic, partition)).next

    async def checksum(self, topic: str, partition: int, offset: int) -> int | None:
        """CRC-32 of the record at `offset`, None if there is no such record."""
        known = await self._topic(topic, partition)
        stream, place = known.stream(partition), id_of(max(0, offset))
        found = await self._link.call("XRANGE", stream, place, place, keys=[stream])
        return record_of(partition, *found[0])[0].checksum if found else None

    async def scan(
        self, topic: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        """Records that may hold events of `provider` in the range, in order."""
        known = await self._topic(topic, partition)
        bounds = await self.bounds(topic, partition)
        return await _redis_looking.scan(
            self._link, known, partition, bounds, provider, from_ts, to_ts
        )

    # ---- reading ---------------------------------------------------------------------------

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records at or behind each partition's position; waits up to `timeout_s` for some."""
        with self._losses.told(topic, "poll"):
            known = await self._topic(topic)
            for partition in positions:
                check_partition(known.info, partition)
            return await self._reader.poll(known, positions, max_bytes, timeout_s)

    # ---- forgetting ------------------------------------------------------------------------

    async def trim(
        self, topic: str, partition: int, before: int, older_than_ns: int, max_bytes: int
    ) -> bool:
        """Forget records below offset `before` that are old, and the oldest if too much is kept."""
        known = await self._topic(topic, partition)
        bounds = await self.bounds(topic, partition)
        end = await self.position_at(topic, partition, older_than_ns)
        full = await _redis_upkeep.size_of(self._link, known) > max_bytes
        await _redis_upkeep.trim(self._link, known, partition, bounds, end, before, full)
        if not full or await _redis_upkeep.has_before(self._link, known, partition, before):
            return False
        return await _redis_upkeep.size_of(self._link, known) > max_bytes

    # ---- groups ----------------------------------------------------------------------------

    async def assignment(self, topic: str, group: str, member: str) -> None:  # noqa: ARG002
        """None: members share the partitions by what the store tells."""
        (await self._topic(topic)).groups.setdefault(group, {})

    async def acknowledge(
        self, topic: str, group: str, member: str, places: Mapping[int, Place]
    ) -> None:
        """Make the streams' consumer group look like the checkpoints: XINFO GROUPS, XPENDING."""
        self._require_open()
        known = self._directory.known(topic)
        if known:
            await _redis_upkeep.show(self._link, known, group, member, places)

    async def leave(self, topic: str, group: str, member: str) -> None:
        """Remove the member from the streams' group; what it had read is claimed by others."""
        self._require_open()
        known = self._directory.known(topic)
        if known:
            await _redis_upkeep.leave(self._link, known, group, member)

    async def close(self) -> None:
        """Close all connections; no error if called twice."""
        if not self._closed:
            self._closed = True
            await self._link.close()


def _open(settings: Any, clock: Clock) -> RedisBus:
    del clock  # the server's tells when records were appended
    return RedisBus(settings.redis)


BACKEND = Backend(
    "redis", "Redis Streams, for several machines.", RedisBusSettings, _open, extra="redis"
)
