"""The durable log that everything passes through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from market_data_core.events import EventBatch, Rejected, StreamEvent
from market_data_core.records import Bounds, CodecName, Entry, Mark, Place, Record, TopicInfo


class Codec(Protocol):
    """How payloads are read and written, the same for every bus."""

    def decode(self, payload: bytes, /) -> EventBatch | Mark | Rejected | StreamEvent:
        """Whatever a payload of an events topic holds.

        Raises:
            RejectedError: it cannot be read.
        """
        ...

    def encode_events(self, batch: EventBatch, codec: CodecName, /) -> Iterable[bytes]:
        """The payloads that carry `batch` under the codec of that name."""
        ...

    def encode_mark(self, mark: Mark, /) -> bytes:
        """A mark as bytes."""
        ...

    def encode_rejected(self, item: Rejected, /) -> bytes:
        """Unusable input as bytes."""
        ...


class Bus(Protocol):
    """Partitioned, append-only topics.

    What `append` has returned for survives the death of every process. Readers keep their own
    positions (in the store, with the results); the bus only serves records and trims what every
    reader has passed. Positions rise within a partition; nothing else may be concluded from them.
    """

    async def create_topic(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist.

        Raises:
            UsageError: it exists with another number of partitions.
            DamagedFileError: what stands in its place is not a readable log.
        """
        ...

    async def find_topic(self, name: str) -> TopicInfo | None:
        """The topic, or None if it does not exist.

        Raises:
            DamagedFileError: what stands in its place is not a readable log.
        """
        ...

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        ...

    async def drop_topic(self, name: str) -> None:
        """Remove a topic and all it holds; no error if it does not exist."""
        ...

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Append all entries, in order within each partition; durable on return.

        Either all are appended or none (backends without transactions: a prefix of each
        partition's entries). Whoever is told of an error calls again with the same sequence: what
        the log has of it already is not appended twice.

        Raises:
            TransientError: the log is full, locked or unreachable; nothing was acknowledged.
            LogLostError: the topic is not the one that this client knew: it was removed, replaced,
                or has fewer partitions. Told once; then the topic that is there is used.
            UsageError: there is no such topic, or no such partition.
        """
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now."""
        ...

    async def received(self, topic: str, partition: int, offset: int) -> int | None:
        """Events appended before `offset` since the log began; may have to read all of them.

        Returns:
            None if the log cannot tell, because it no longer holds its beginning.
        """
        ...

    async def source(self, topic: str, partition: int) -> int:
        """The greatest ``Entry.source`` up to which all that was to be appended is there."""
        ...

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` (UTC ns) or later, else the end."""
        ...

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records at or behind each partition's position, in order.

        Waits up to `timeout_s` seconds for something to come; an empty answer means that all
        partitions were read to their end. `max_bytes` is shared evenly, so that one busy
        partition cannot starve the others; at least one record of a non-empty partition comes.

        Raises:
            LogLostError: a position lies before what is kept, or behind the end, or the topic was
                removed or replaced, which is told once.
            LogHoleError: records between a position and the next one have been lost; the same
                poll again goes on behind them.
        """
        ...

    async def checksum(self, topic: str, partition: int, offset: int) -> int | None:
        """CRC-32 of the record at `offset`, None if there is no such record."""
        ...

    async def scan(
        self, topic: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        """Records that may hold events of `provider` with from_ts <= src_ts < to_ts, in order."""
        ...

    async def trim(
        self, topic: str, partition: int, before: int, older_than_ns: int, max_bytes: int
    ) -> bool:
        """Forget records below offset `before` that are old or too many.

        A record goes if it was appended before `older_than_ns` (UTC ns), or, oldest first, while
        the topic is larger than `max_bytes`. Nothing from `before` on is ever touched.

        Returns:
            Whether the topic is still larger than `max_bytes`, though nothing below `before` is
            left of the partition.
        """
        ...

    async def assignment(self, topic: str, group: str, member: str) -> frozenset[int] | None:
        """Partitions that the bus's own group protocol gives to a member now; joins at first.

        Returns:
            None if the bus has no such protocol: then members share by what the store tells.
        """
        ...

    async def acknowledge(
        self, topic: str, group: str, member: str, places: Mapping[int, Place]
    ) -> None:
        """Show the bus's own tools how far a group has come, partition by partition.

        Nothing depends on it: positions are in the store.

        Raises:
            TransientError: the log is unreachable.
        """
        ...

    async def leave(self, topic: str, group: str, member: str) -> None:
        """Give up what :meth:`assignment` gave, so that others get it at once."""
        ...

    async def close(self) -> None:
        """Release everything; what was appended stays."""
        ...
