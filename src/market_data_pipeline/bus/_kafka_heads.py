"""What our messages tell of themselves in a header, and which of them have no effect.

A log without transactions may hold the same entry twice: two producers that each thought it was
their turn have both appended it. What tells is in the header, so every reader leaves out the same.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import msgspec
from confluent_kafka import Message

from market_data_core.records import Entry
from market_data_pipeline.bus._inbox import span_of

HEADER = "mdp"
_KEYS_MAX = 65_536
_APPENDS_MAX = 256


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The header's content.

    Attributes:
        count: events inside.
        provider: of the events, "" for several.
        min_ts: least src_ts inside, UTC ns.
        max_ts: greatest src_ts inside, UTC ns.
        source: see :class:`market_data_core.records.Entry`.
        key: likewise.
        append: the append that it is of, at random; 0 where `source` is.
    """

    count: Annotated[int, msgspec.Meta(ge=0)]
    provider: str = ""
    min_ts: int = 0
    max_ts: int = 0
    source: int = 0
    key: str = ""
    append: int = 0


FOREIGN = Head(1)
"""Of a message that is not ours."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Head).decode


def header_of(entry: Entry, append: int) -> dict[str, str | bytes | None]:
    """The headers of the message that carries an entry."""
    span = entry.provider, entry.min_ts, entry.max_ts
    own = Head(entry.count, *span, entry.source, entry.key, append if entry.source else 0)
    return {HEADER: _encode(own)}


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

    A key has effect once. A source position has effect if it is beyond all that other appends had
    brought when its own began: so all entries of one append stand or fall together.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, int] = OrderedDict()
        self.rewind()

    @property
    def source(self) -> int:
        """The greatest source position that had effect."""
        return self._source

    def rewind(self) -> None:
        """Begin at another offset: source positions are told anew, keys stay where they were."""
        self._source = 0
        self._floors: OrderedDict[int, int] = OrderedDict()

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
            floor = self._floors.setdefault(head.append, self._source)
            if len(self._floors) > _APPENDS_MAX:
                self._floors.popitem(last=False)
            if head.source <= floor:
                return False
            self._source = max(self._source, head.source)
        return True
