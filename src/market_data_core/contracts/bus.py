"""The durable log that everything passes through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from market_data_core.events import EventBatch, Rejected, StreamEvent
from market_data_core.records import Bounds, CodecName, Entry, Mark, Record, TopicInfo


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
    reader has passed.
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
        partition's entries, which `Entry.source` and `Entry.key` make safe to send again).

        Raises:
            TransientError: the log is full, locked or unreachable; nothing was acknowledged.
        """
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now."""
        ...

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records from each partition's position on, in order.

        Waits up to `timeout_s` seconds for something to come; an empty answer means that all
        partitions were read to their end. `max_bytes` is shared evenly, so that one busy
        partition cannot starve the others; at least one record of a non-empty partition comes.

        Raises:
            LogLostError: a position lies before the first record kept.
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
    ) -> None:
        """Forget records below offset `before` that are old or too many.

        A record goes if it was appended before `older_than_ns` (UTC ns), or, oldest first, while
        the topic is larger than `max_bytes`. Nothing from `before` on is ever touched.
        """
        ...

    async def close(self) -> None:
        """Release everything; what was appended stays."""
        ...
