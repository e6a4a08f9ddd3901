"""Single events on the wire: compact JSON or msgpack, written by anybody in any language."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import (
    EVENT_VERSION,
    PROVIDER_RULE,
    REASONS,
    SRC_TS_MAX,
    SYMBOL_RULE,
    EventBatch,
    Kind,
    StreamEvent,
    invalid_rows,
    is_provider,
    is_symbol,
    make_batch,
    parse_ts,
)
from market_data_core.intervals import canonical_interval

_decoder = msgspec.json.Decoder(StreamEvent)
_msgpack_decoder = msgspec.msgpack.Decoder(StreamEvent)


class _Version(msgspec.Struct):
    ver: int | None = None


def decode_event(data: bytes) -> StreamEvent:
    """A wire event from compact JSON or msgpack, structurally sound but with values unchecked.

    Raises:
        RejectedError: ``malformed``, ``bad_version`` or ``bad_type``.
    """
    decoder, shape = _decoder, msgspec.json.decode
    if data[:1] and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        decoder, shape = _msgpack_decoder, msgspec.msgpack.decode  # type: ignore[assignment]
    try:
        event = decoder.decode(data)
    except msgspec.ValidationError as error:
        version = _version_of(data, shape)
        if version is not None and version != EVENT_VERSION:
            msg = f"version {version} is not one this release reads (it reads {EVENT_VERSION})"
            raise RejectedError(reason="bad_version", message=msg) from error
        raise RejectedError(reason="bad_type", message=str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(reason="malformed", message=str(error)[:200]) from error
    if event.ver != EVENT_VERSION:
        msg = f"version {event.ver} is not one this release reads (it reads {EVENT_VERSION})"
        raise RejectedError(reason="bad_version", message=msg)
    if not is_provider(event.provider):
        raise RejectedError(reason="bad_type", message=PROVIDER_RULE)
    if not is_symbol(event.symbol):
        raise RejectedError(reason="bad_type", message=SYMBOL_RULE)
    if not -(2**63) <= event.seq < 2**63:
        raise RejectedError(reason="bad_type", message=f"seq {event.seq} does not fit 64 bits")
    return event


def _version_of(data: bytes, decode: Any) -> int | None:
    try:
        return decode(data, type=_Version).ver  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # what follows the field that failed may be broken as well


class BatchBuilder:
    """Collects single wire events of any streams and hands them out as batches."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Kind, str], list[tuple[Any, ...]]] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(
        self,
        event: StreamEvent,
        now_ns: int,
        token: Any = None,
        latest_ns: int = SRC_TS_MAX,
    ) -> None:
        """Take one event.

        Args:
            event: the event, as decoded.
            now_ns: stands in for a missing ingest time.
            token: handed back by :meth:`build` if the event's values turn out to be invalid.
            latest_ns: greatest src_ts that is believed, UTC ns.

        Raises:
            RejectedError: a time or interval cannot be read; the event is not taken.
        """
        src_ts = parse_ts(event.src_ts)
        if src_ts > latest_ns:
            raise RejectedError(reason="future", message=REASONS["future"])
        same = event.ingest_ts == event.src_ts
        ingest = src_ts if same else parse_ts(event.ingest_ts) if event.ingest_ts else now_ns
        try:
            interval = canonical_interval(event.interval)
        except UsageError as error:
            raise RejectedError(reason="bad_type", message=str(error)) from error
        key = (event.provider, event.kind, interval if event.kind == "bar" else "")
        prices = (event.o, event.h, event.l, event.c, event.v)
        row = (event.symbol, src_ts, event.seq, ingest, *prices, interval, token)
        self._rows.setdefault(key, []).append(row)

    def build(self) -> tuple[list[EventBatch], list[tuple[Any, str]]]:
        """All events since the last call.

        Returns:
            One batch a stream, in arrival order within each, and the (token, reason) of every
            event that broke a rule.
        """
        batches, rejected = self.build_with_tokens()
        return [batch for batch, _ in batches], rejected

    def build_with_tokens(self) -> tuple[list[tuple[EventBatch, list[Any]]], list[tuple[Any, str]]]:
        """As :meth:`build`, each batch with the tokens of its rows."""
        groups, self._rows = self._rows, {}
        batches, rejected = [], []
        for key, rows in groups.items():
            columns = list(zip(*rows, strict=True))
            o, h, low, c, v = (np.array(x, np.float64) for x in columns[4:9])
            bad = invalid_rows(o, h, low, c, v, np.array(columns[1], np.int64))
            good = rows
            if bad:
                rejected += [(rows[i][-1], why) for why, m in bad.items() for i in m.nonzero()[0]]
                keep = ~np.logical_or.reduce(list(bad.values()))
                good = [row for row, kept in zip(rows, keep, strict=True) if kept]
            if good:
                batches.append((_batch_of(key, good), [row[-1] for row in good]))
        return batches, rejected


def _batch_of(key: tuple[str, Kind, str], rows: list[tuple[Any, ...]]) -> EventBatch:
    symbol, src_ts, seq, ingest, o, h, low, c, v, interval, _ = zip(*rows, strict=True)
    return make_batch(
        key[0], symbol, src_ts, seq, c, v,
        ohl=None if o == h == low == c else (o, h, low),
        ingest_ts=ingest, kind=key[1], interval=interval[0],
    )  # fmt: skip
