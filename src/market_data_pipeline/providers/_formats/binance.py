"""Recorded Binance websocket messages: ``<receive time, ns> <message>``, one a line.

The message is a trade or aggregate trade, alone or as ``data`` of a combined stream, as described
in Binance's "WebSocket Streams" reference: ``T`` trade time (ms, or us where the stream was asked
for that), ``t`` (aggregates: ``a``) trade id, ``p`` price and ``q`` quantity as texts.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import polars as pl

from market_data_core.errors import RejectedError
from market_data_core.events import check_src_ts
from market_data_core.intervals import NS_PER_MS
from market_data_pipeline.providers._formats.inputs import Block, Input, line_blocks
from market_data_pipeline.providers._formats.ndjson import rejected_block
from market_data_pipeline.providers._formats.numbers import float_column
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import Problems, Rows, Session

_INTERVAL = "1s"
_MS_MIN, _MS_MAX = 10**11, 10**14  # below: not since 1973; above: microseconds
_INT64_MAX = 2**63 - 1


class _Trade(msgspec.Struct):
    e: str
    s: str
    T: int
    p: str
    q: str
    t: int | None = None
    a: int | None = None


class _Combined(msgspec.Struct):
    data: _Trade | None = None


class _Type(msgspec.Struct):
    e: str = ""


class _CombinedType(msgspec.Struct):
    e: str = ""
    data: _Type | None = None


_combined = msgspec.json.Decoder(_Combined)
_bare = msgspec.json.Decoder(_Trade)
_type = msgspec.json.Decoder(_CombinedType)
_NOTHING = (0, "", 0, 0, 0, "0", "0")


class BinanceFormat:
    """A file of recorded messages; what is not a trade is dead-lettered."""

    numbered = True

    def __init__(self, source: Input, options: RecordingOptions) -> None:
        self._source = source
        self._options = options

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order (see ``Format.read``)."""
        options = self._options
        for block in line_blocks(self._source, options.chunk_events, options.max_line_bytes):
            if block.reason:
                yield rejected_block(session, block, self._source.label)
            else:
                yield self._parse(session, block)

    def _parse(self, session: Session, block: Block) -> Rows:
        lines = block.numbered_lines()
        stream = session.stream_id(None, "tick", _INTERVAL)
        problems: Problems = {}
        parsed = []
        for i, (_, line) in enumerate(lines):
            try:
                parsed.append((stream, *_message(line)))
            except RejectedError as error:
                problems[i] = (error.reason, str(error))
                parsed.append(_NOTHING)
        streams, symbols, src, seq, ingest, price, size = (
            zip(*parsed, strict=True) if parsed else ((),) * 7
        )
        columns = []
        for name, texts in (("price", price), ("quantity", size)):
            values, bad = float_column(pl.Series(texts, dtype=pl.String))
            for i in np.flatnonzero(bad).tolist():
                problems.setdefault(i, ("bad_type", f"{name} {texts[i][:64]!r} is not a number"))
            columns.append(values)
        prices, sizes = columns
        rows = Rows(
            np.array(streams, np.uint32),
            session.symbol_ids(symbols),
            np.array(src, np.int64),
            np.array(seq, np.int64),
            np.array(ingest, np.int64),
            prices,
            sizes,
        )
        label = self._source.label
        return session.checked(rows, problems, lambda i: (lines[i][1], f"{label}:{lines[i][0]}"))


def _message(line: bytes) -> tuple[str, int, int, int, str, str]:
    """Symbol, trade time, id, receive time, price and size of one line."""
    head, space, body = line.partition(b" ")
    if line.startswith(b"{"):
        received, body = None, line
    elif space and head.isdigit() and len(head) < 20:
        received = check_src_ts(int(head))
    else:
        msg = "the line is not a receive time in nanoseconds, a space and a message"
        raise RejectedError(reason="malformed", message=msg)
    trade = _trade(body)
    number = trade.a if trade.e == "aggTrade" else trade.t
    if number is None or not -_INT64_MAX <= number <= _INT64_MAX:
        msg = f"the trade id {number} is missing or does not fit 64 bits"
        raise RejectedError(reason="bad_type", message=msg)
    if not trade.s:
        msg = "the symbol is empty"
        raise RejectedError(reason="bad_type", message=msg)
    if trade.T < _MS_MIN:
        msg = f"{trade.T} is not a plausible time in milliseconds"
        raise RejectedError(reason="bad_timestamp", message=msg)
    src_ts = check_src_ts(trade.T * (NS_PER_MS if trade.T < _MS_MAX else 1000))
    return trade.s, src_ts, number, src_ts if received is None else received, trade.p, trade.q


def _trade(body: bytes) -> _Trade:
    try:
        message = _combined.decode(body)
        trade = message.data or _bare.decode(body)
    except msgspec.ValidationError as error:
        kind = _kind(body)
        if kind in ("trade", "aggTrade"):
            raise RejectedError(reason="bad_type", message=str(error)) from error
        msg = f"a message of type {kind[:32]!r} is not a trade"
        raise RejectedError(reason="bad_type", message=msg) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(reason="malformed", message=str(error)[:200]) from error
    if trade.e not in ("trade", "aggTrade"):
        msg = f"a message of type {trade.e[:32]!r} is not a trade"
        raise RejectedError(reason="bad_type", message=msg)
    return trade


def _kind(body: bytes) -> str:
    try:
        shape = _type.decode(body)
    except msgspec.MsgspecError:
        return ""
    return shape.data.e if shape.data else shape.e
