"""What stands in the log: entries to append, records as read, and the marks between events."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

CodecName = Literal["columnar", "json", "msgpack"]
"""How events are written: in columns, or one by one."""
MarkKind = Literal["progress", "idle", "pause", "end"]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A statement about time, made in the log so that every reader decides the same.

    - ``progress``: the provider has reached `ts` elsewhere; nothing older is on its way here.
    - ``idle``: the provider is silent; its watermark is at least `ts` (no lateness is deducted).
    - ``pause``: the producer stopped on purpose; until the provider's next record, silence means
      nothing.
    - ``end``: the lane is complete; `count` events of its recording belong to this partition,
      as its feeder counted them, whatever the log has counted. None says nothing.
    """

    kind: MarkKind
    provider: str = ""
    ts: int = 0
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to append to one partition.

    Attributes:
        partition: 0-based.
        payload: self-describing bytes (see ``market_data_pipeline.bus.codec``).
        count: events inside; 0 for a mark.
        provider: the events' provider, "" where it cannot be told.
        min_ts: least src_ts inside, UTC ns.
        max_ts: greatest src_ts inside, UTC ns.
        source: for a lane, how many events of the source come up to the end of this entry; 0 on
            the live lane. What the partition held up to there before is not appended again.
        key: an entry whose key the topic has seen is not appended again; "" for no check.
        symbol: of all events inside; "" where there are several, or none.
        begin: for a lane, how many events of the source come before this entry. Where an append can
            be cut off between two entries, it tells up to where those before lack nothing.
    """

    partition: int
    payload: bytes
    count: int = 0
    provider: str = ""
    min_ts: int = 0
    max_ts: int = 0
    source: int = 0
    key: str = ""
    symbol: str = ""
    begin: int = 0


class Record(NamedTuple):
    """An entry as the log holds it; a tuple, since there may be a million of them a second.

    Attributes:
        partition: 0-based.
        offset: position in the partition; rises, and may leave numbers out. Whoever has read the
            record goes on from ``offset + 1``.
        payload: the bytes that were appended.
        append_ts: UTC ns of the append.
        count: events inside.
    """

    partition: int
    offset: int
    payload: bytes
    append_ts: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs

    @property
    def checksum(self) -> int:
        """CRC-32 of the payload."""
        return zlib.crc32(self.payload)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as it exists.

    Attributes:
        name: e.g. ``mdp.events``.
        log_id: made when the log was created; another value means another log.
        partitions: number of partitions.
    """

    name: str
    log_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds.

    Attributes:
        first: position from which everything is kept.
        next: position behind the last record.
    """

    first: int
    next: int


@dataclass(frozen=True, slots=True)
class Place:
    """How far a group has come in a partition, by the checkpoint in the store.

    Attributes:
        resume: position from which a new owner reads.
        counted: position up to which everything is counted.
    """

    resume: int
    counted: int
