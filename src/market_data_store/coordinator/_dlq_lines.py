"""The lines of a dead-letter file: what stands in one, and which of them are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from uuid import uuid4

import msgspec

from market_data_core.redaction import redact
from market_data_store.coordinator.item_codec import encode_items, type_name

UNREADABLE = "unreadable"
"""Reason under which lines are counted that are cut off or damaged."""

_MESSAGE_MAX = 4000


class DeadLine(msgspec.Struct, kw_only=True, frozen=True):
    """One record as it stands in the file.

    Attributes:
        v: version of this format.
        id: unique.
        ts: when it was saved, UTC.
        reason: what records are counted by.
        error_type: name of the error's type.
        error: its words.
        metadata: as given by who saved it.
        type: qualified name of the items' type.
        encoding: how the items stand there, see :data:`item_codec.Encoding`.
        items: a JSON list.
    """

    v: int = 1
    id: str
    ts: datetime
    reason: str
    error_type: str
    error: str
    metadata: dict[str, Any]
    type: str
    encoding: str
    items: msgspec.Raw

    @property
    def count(self) -> int:
        """How many items it holds."""
        return len(_list_decoder.decode(self.items))

    @property
    def replayable(self) -> bool:
        """Whether its items can be read back, where their type is known."""
        return self.encoding != "repr"


class _Head(msgspec.Struct):
    id: str


_line_encoder = msgspec.json.Encoder(enc_hook=str)
_line_decoder = msgspec.json.Decoder(DeadLine)
_head_decoder = msgspec.json.Decoder(_Head)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are meant: those that fit everything that is given.

    Attributes:
        ids: only these.
        reason: only of this reason; ``unreadable`` for lines that are damaged.
        type: only of items of this type: its name, qualified or not.
        since: only those saved then or later; has a time zone.
        before: only those saved earlier; has a time zone.
    """

    ids: frozenset[str] | None = None
    reason: str | None = None
    type: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    def fits(self, line: DeadLine | None) -> bool:
        """Whether a line is meant; None stands for a damaged one."""
        if line is None:
            about = (self.ids, self.type, self.since, self.before)
            return self.reason in (None, UNREADABLE) and about == (None,) * len(about)
        return (
            (self.ids is None or line.id in self.ids)
            and self.reason in (None, line.reason)
            and self.type in (None, line.type, line.type.rpartition(".")[2])
            and (self.since is None or line.ts >= self.since)
            and (self.before is None or line.ts < self.before)
        )


def encode_lines(
    items: Sequence[Any], error: BaseException | str, metadata: Mapping[str, Any]
) -> Iterator[bytes]:
    """Lines that keep the items, one for each run of items of one type."""
    kind = type(error).__name__ if isinstance(error, BaseException) else "str"
    for _, group in groupby(items, key=type):
        same = list(group)
        encoding, text = encode_items(same)
        line = DeadLine(
            id=uuid4().hex,
            ts=datetime.now(UTC),
            reason=str(metadata.get("reason", kind)),
            error_type=kind,
            error=shown_error(error),
            metadata=dict(metadata),
            type=type_name(type(same[0])),
            encoding=encoding,
            items=msgspec.Raw(text),
        )
        yield _line_encoder.encode(line)


def failed_again(
    raw: bytes, items: Sequence[Any], error: BaseException, metadata: Mapping[str, Any]
) -> bytes:
    """A record's line with what is left of its items, and why; its id and time stay."""
    line = _line_decoder.decode(raw)
    encoding, text = encode_items(items)
    return _line_encoder.encode(
        msgspec.structs.replace(
            line,
            reason=str(metadata.get("reason", line.reason)),
            error_type=type(error).__name__,
            error=shown_error(error),
            metadata=line.metadata | dict(metadata),
            encoding=encoding,
            items=msgspec.Raw(text),
        )
    )


def shown_error(error: BaseException | str) -> str:
    """An error's words without secrets, cut at a bound."""
    return redact(str(error))[:_MESSAGE_MAX]


def parse_line(raw: bytes) -> DeadLine | None:
    """What stands in a line; None if it is damaged."""
    try:
        return _line_decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError):
        return None


def id_of(raw: bytes) -> str | None:
    """A line's id; None if it is damaged."""
    try:
        return _head_decoder.decode(raw).id
    except (msgspec.MsgspecError, ValueError):
        return None
