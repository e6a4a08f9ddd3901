"""What our messages tell of themselves in a header, and which of them have no effect.

A log without transactions may hold the same entry twice: two producers that each thought it was
their turn have both appended it. What tells is in the header, so every reader leaves out the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import msgspec
from confluent_kafka import Message

from market_data_core.records import Entry
from market_data_pipeline.bus._inbox import span_of

HEADER = "mdp"
_KEYS_MAX = 65_536


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The header's content.

    Attributes:
        count: events inside.
        provider: of the events, "" for several.
        min_ts: least src_ts inside, UTC ns.
        max_ts: greatest src_ts inside, UTC ns.
        source: see :class:`market_data_core.records.Entry`.
        key: likewise.
        settled: up to how many events of the source the partition has all of its own, once this
            message is there: less than `source` where others of the same append are to follow.
    """

    count: Annotated[int, msgspec.Meta(ge=0)]
    provider: str = ""
    min_ts: int = 0
    max_ts: int = 0
    source: int = 0
    key: str = ""
    settled: int = 0


FOREIGN = Head(1)
"""Of a message that is not ours."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Head).decode


def header_of(entry: Entry, settled: int) -> dict[str, str | bytes | None]:
    """The headers of the message that carries an entry."""
    span = entry.provider, entry.min_ts, entry.max_ts
    return {HEADER: _encode(Head(entry.count, *span, entry.source, entry.key, settled))}


def settled_by(entries: Sequence[Entry]) -> list[int]:
    """:attr:`Head.settled` of each entry of an append.

    A process may die when the log has only the first ones. So all that counts as there, before the
    last one of a partition is, ends where one that is to follow begins.
    """
    follows: dict[int, int] = {}
    settled: list[int] = []
    ends: dict[int, int] = {}
    for e in entries:
        ends[e.partition] = max(ends.get(e.partition, 0), e.source)
    for e in reversed(entries):
        settled.append(follows.get(e.partition, ends[e.partition]) if e.source else 0)
        if e.source:
            follows[e.partition] = min(follows.get(e.partition, e.begin), e.begin)
    return settled[::-1]


def head_of(message: Message) -> Head:
    """What a message tells of itself; one that is not ours counts as one event."""
    headers = message.headers()
    if not headers:
        return FOREIGN
    for header in headers:
        if header[0] == HEADER and isinstance(header[1], bytes):
            try:
                return _decode(header[1])
            except msgspec.MsgspecError:
                break
    return FOREIGN


def span_head(head: Head, payload: bytes) -> Head:
    """`head` with the provider and times of the events; of a message of others, by its payload."""
    if head is not FOREIGN:
        return head
    span = span_of(payload)
    return Head(span[3], *span[:3]) if span else Head(0)


class Admission:
    """Which messages of one partition have effect, told in the order of their offsets.

    A key has effect once. A source position has effect if the log did not have all up to there
    before: a feeder goes on where an earlier one has settled everything, so what it brings again
    is there already, whatever of the earlier one comes late.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, int] = OrderedDict()
        self._settled = 0

    def rewind(self) -> None:
        """Begin at another offset: source positions are told anew, keys stay where they were."""
        self._settled = 0

    def admits(self, offset: int, head: Head) -> bool:
        """Whether the next message has effect."""
        if head.key:
            known = self._keys.setdefault(head.key, offset)
            if known < offset:
                return False
            self._keys[head.key] = offset
            if len(self._keys) > _KEYS_MAX:
                self._keys.popitem(last=False)
        if head.source:
            if head.source <= self._settled:
                return False
            self._settled = max(self._settled, head.settled)
        return True
