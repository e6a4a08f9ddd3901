"""Entries of Redis streams as records, and where a reader of them stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from market_data_core.errors import LogHoleError, UsageError
from market_data_core.events import Rejected
from market_data_core.records import Entry, Record
from market_data_pipeline.bus import codec
from market_data_pipeline.bus._inbox import span_of
from market_data_pipeline.bus._redis_scripts import MS_LIMIT, SEQUENCES

_SEQUENCE_BITS = SEQUENCES.bit_length() - 1
_NS_PER_MS = 1_000_000
_OURS = b"MDP"
PENDING_MAX = 1_000
"""Records of a partition that are shown as read but not done."""


def offset_of(place: bytes) -> int:
    """The position of an entry's id, such as ``1700000000000-3``.

    Raises:
        UsageError: somebody has given the entry an id that is no position.
    """
    ms, _, sequence = place.partition(b"-")
    if int(sequence) >= SEQUENCES or int(ms) >= MS_LIMIT:
        msg = (
            f"a stream has an entry with id {place.decode()}, which is no time in milliseconds "
            f"with a number below {SEQUENCES}: let the server give the ids (XADD … *), and remove "
            "the entry (XDEL), or the stream if it is its last"
        )
        raise UsageError(msg)
    return int(ms) << _SEQUENCE_BITS | int(sequence)


def id_of(offset: int) -> str:
    """The id of the entry at a position."""
    return f"{offset >> _SEQUENCE_BITS}-{offset & (SEQUENCES - 1)}"


def next_id(place: bytes) -> str:
    """The id behind another one, whatever it is."""
    ms, _, sequence = place.partition(b"-")
    return f"{ms.decode()}-{int(sequence) + 1}"


def is_crowded(offset: int) -> bool:
    """Whether the millisecond of a position has few left: the server's clock has gone back."""
    return offset & (SEQUENCES - 1) > SEQUENCES // 2


@dataclass(frozen=True, slots=True)
class Meta:
    """What entries tell of themselves (see ``_redis_scripts``).

    Attributes:
        received: events before it; -1 if it is not ours and cannot tell.
        count: events inside.
        provider: of the events, "" for several.
        min_ts: least src_ts inside, UTC ns.
        max_ts: greatest src_ts inside, UTC ns.
    """

    received: int
    count: int
    provider: str
    min_ts: int
    max_ts: int


def tail_of(entry: Entry) -> str:
    """Field ``m`` without what only the server knows."""
    return f"|{entry.count}|{entry.provider}|{entry.min_ts}|{entry.max_ts}"


def meta_of(fields: Sequence[bytes]) -> Meta:
    """What an entry tells of itself; of one that is not ours, what its payload shows."""
    if _is_ours(fields):
        with suppress(ValueError):  # of something else that has a field of that name
            received, count, provider, min_ts, max_ts = fields[3].split(b"|")
            return Meta(int(received), int(count), provider.decode(), int(min_ts), int(max_ts))
    span = span_of(_single(fields))
    return Meta(-1, span[3], *span[:3]) if span else Meta(-1, 0, "", 0, 0)


def record_of(partition: int, place: bytes, fields: Sequence[bytes]) -> tuple[Record, int | None]:
    """An entry as a record, and the events before it; None if it is not ours and cannot tell."""
    told = _told(fields)
    received, count = told or (None, 1)
    payload = fields[1] if told else _single(fields)
    offset = offset_of(place)
    append_ts = (offset >> _SEQUENCE_BITS) * _NS_PER_MS
    record = Record(partition, offset, payload, append_ts, count)
    return record, received


def others_of(
    partition: int, entries: Iterable[tuple[bytes, Sequence[bytes]]], share: int
) -> tuple[list[Record], int]:
    """The first entries as records, up to the first one that is ours or not plain.

    What :func:`record_of` gives for each; there may be a hundred thousand a second.

    Args:
        partition: their number.
        entries: as the server gave them.
        share: bytes after which it is enough.

    Returns:
        The records, and the size of their payloads in bytes.
    """
    records: list[Record] = []
    size, known, base, append_ts = 0, b"", 0, 0
    for place, fields in entries:
        if len(fields) != 2 or fields[0] != b"data" or size >= share:
            break
        payload = fields[1]
        ms, _, sequence = place.partition(b"-")
        if ms != known:  # many entries share their millisecond
            known, base, append_ts = ms, int(ms) << _SEQUENCE_BITS, int(ms) * _NS_PER_MS
        number = int(sequence)
        if payload.startswith(_OURS) or number >= SEQUENCES or base >= MS_LIMIT << _SEQUENCE_BITS:
            break
        records.append(Record(partition, base | number, payload, append_ts, 1))
        size += len(payload)
    return records, size


def message_of(place: bytes, fields: Sequence[bytes]) -> Record:
    """An entry of the inbox, which has no position: whatever somebody has written."""
    payload = _payload_of(fields)
    ms = min(int(place.partition(b"-")[0]), MS_LIMIT - 1)
    return Record(0, 0, payload, ms * _NS_PER_MS, 1)


def _told(fields: Sequence[bytes]) -> tuple[int, int] | None:
    """Events before an entry of ours, and inside it; None if it is somebody else's."""
    if not _is_ours(fields):
        return None
    try:
        before, count, _, _, _ = fields[3].split(b"|")
        return int(before), int(count)
    except ValueError:  # they have a field of that name too
        return None


def _is_ours(fields: Sequence[bytes]) -> bool:
    return len(fields) == 4 and fields[0] == b"data" and fields[2] == b"m"


def _payload_of(fields: Sequence[bytes]) -> bytes:
    """Field ``data``; without one, all that the entry holds, which is then set aside."""
    if fields[0] == b"data":
        return fields[1]
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    return named[b"data"] if b"data" in named else b" ".join(fields)


def _single(fields: Sequence[bytes]) -> bytes:
    """The one event of an entry that others have written; what is not one event is set aside.

    The server counts such an entry as one event, so that it can be no more and no less.
    """
    payload = _payload_of(fields)
    if not payload.startswith(_OURS):
        return payload
    detail = "an entry that says nothing of itself holds one event, as JSON or msgpack"
    return codec.encode_rejected(Rejected("bad_type", detail, payload))


@dataclass(slots=True)
class Cursor:
    """Where a reader of a partition stands.

    Attributes:
        partition: number of the partition.
        position: behind the last record.
        received: events before that; None if not known yet.
        holes: places behind which records are known to be missing.
    """

    partition: int
    position: int
    received: int | None = None
    holes: frozenset[int] = frozenset()

    def copy(self) -> Cursor:
        """One more, to go on from here."""
        return Cursor(self.partition, self.position, self.received, self.holes)

    def follow_others(self, records: Sequence[Record]) -> None:
        """Step behind records that cannot tell what was before them."""
        if records:
            self.received = None if self.received is None else self.received + len(records)
            self.position = records[-1].offset + 1

    def follow(self, topic: str, record: Record, received: int | None) -> int:
        """Step behind a record.

        Returns:
            Events that were read and that the log has lost since.

        Raises:
            LogHoleError: records between the last one and this were lost before they were read.
        """
        known = self.received
        lost = 0 if received is None or known is None else received - known
        if lost > 0 and record.offset not in self.holes:
            msg = (
                f"topic {topic!r}, partition {record.partition}: {lost} events before position "
                f"{record.offset} were removed before they were read"
            )
            raise LogHoleError(msg, record.partition, record.offset, lost)
        before = received if received is not None else known
        self.received = None if before is None else before + record.count
        self.position = record.offset + 1
        return max(0, -lost)


@dataclass(slots=True)
class Pending:
    """Records of a partition that were read and are not known to be done, for one group.

    Attributes:
        places: their positions, ascending; the first :data:`PENDING_MAX`.
        shown: those that the server was told of.
    """

    places: list[int] = field(default_factory=list)
    shown: set[int] = field(default_factory=set)

    def read(self, places: Sequence[int]) -> None:
        """Take the positions of records that somebody has read, in order."""
        full = len(self.places) >= PENDING_MAX
        if not places or (full and places[0] > self.places[-1]):
            return
        if self.places and places[0] <= self.places[-1]:  # another group has gone ahead
            self.places = sorted({*self.places, *places})[:PENDING_MAX]
        else:
            self.places += places[: PENDING_MAX - len(self.places)]

    def news(self, resume: int, counted: int, latest: Iterable[int]) -> list[int]:
        """Forget what is below `resume`; what is below `counted` and was not shown yet.

        Args:
            resume: position from which on nothing is done.
            counted: position up to which all is read.
            latest: positions that were read last; they fill the room that there is.
        """
        self.places = [place for place in self.places if place >= resume]
        if len(self.places) < PENDING_MAX:
            more = {place for place in latest if place >= resume}
            self.places = sorted(more.union(self.places))[:PENDING_MAX]
        self.shown &= set(self.places)
        return [p for p in self.places if p < counted and p not in self.shown]
