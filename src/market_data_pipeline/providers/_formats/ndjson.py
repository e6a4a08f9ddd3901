"""NDJSON of version-1 events: a column parser that is as strict as the one for single events."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl

from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import (
    EVENT_VERSION,
    Rejected,
    StreamEvent,
    is_provider,
    is_symbol,
    parse_ts,
)
from market_data_core.intervals import canonical_interval
from market_data_core.wire import decode_event
from market_data_pipeline.providers._formats.inputs import Block, Input, count_byte, line_blocks
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import (
    Coded,
    Deferred,
    Floats,
    Ints,
    Problems,
    Rows,
    Session,
    stream_column,
    text_codes,
)
from market_data_pipeline.providers._formats.times import Details, iso_column, uniform_times
from market_data_pipeline.providers._formats.uniform_json import UniformLines, uniform_lines

_NUMBERS = ("o", "h", "l", "c", "v")
_TEXTS = ("provider", "symbol", "kind", "interval", "src_ts", "ingest_ts")
_SCHEMA = {
    "ver": pl.Int64(),
    "seq": pl.Int64(),
    **dict.fromkeys(_NUMBERS, pl.Float64()),
    **dict.fromkeys(_TEXTS, pl.String()),
}
_OPTIONAL: dict[str, str | int] = {"kind": "tick", "interval": "1s", "seq": 0}
_CODED = ("symbol", "provider", "kind", "interval")
_KEYS = frozenset((*_SCHEMA, "event_id"))
_REQUIRED = _KEYS.difference(_OPTIONAL, ("ingest_ts", "event_id"))
_KINDS = frozenset({"tick", "bar"})
_STRICT_LINES = 64
_PARTS = 16
_AHEAD = 2
"""So many blocks are parsed at once, beside the one whose rows are being used."""
_QUOTE, _BRACE = ord('"'), ord("{")


class NdjsonFormat:
    """A file of version-1 events, one a line."""

    numbered = True

    def __init__(self, source: Input, options: RecordingOptions) -> None:
        self._source = source
        self._options = options

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order (see ``Format.read``)."""
        options = self._options
        blocks = Deferred(line_blocks(self._source, options.chunk_events, options.max_line_bytes))
        with ThreadPoolExecutor(_AHEAD, "ndjson") as pool:
            coming: deque[tuple[Block, Future[_Columns | None]]] = deque()
            for block in blocks:
                coming.append((block, pool.submit(_columns, block)))
                if len(coming) > _AHEAD:
                    yield self._rows(session, *coming.popleft())
            while coming:
                yield self._rows(session, *coming.popleft())
        blocks.check()

    def _rows(self, session: Session, block: Block, coming: Future[_Columns | None]) -> Rows:
        found = coming.result()
        if block.reason:
            return rejected_block(session, block, self._source.label)
        return self._parse(session, block, found)

    def _parse(self, session: Session, block: Block, found: _Columns | None) -> Rows:
        """By columns; where that refuses, in ever smaller parts, and at last line by line."""
        if block.lines <= _STRICT_LINES:
            return self._by_line(session, block)
        rows = self._by_column(session, block, found) if found else None
        if rows is not None:
            return rows
        parts = block.split(_PARTS)
        return Rows.concat([self._parse(session, part, _columns(part)) for part in parts])

    def _by_column(self, session: Session, block: Block, found: _Columns) -> Rows | None:
        """Rows of a block in which every line is one event; None if that is not certain."""
        symbols, symbol_codes = found.texts["symbol"]
        intervals, interval_codes = found.texts["interval"]
        if not (
            all(map(is_symbol, symbols))
            and all(map(is_provider, found.texts["provider"][0]))
            and _KINDS.issuperset(found.texts["kind"][0])
        ):
            return None
        try:
            intervals = [canonical_interval(text) for text in intervals]
        except UsageError:
            return None
        rows = Rows(
            stream_column(
                session,
                len(found.src_ts),
                found.texts["provider"],
                found.texts["kind"],
                (intervals, interval_codes),
            ),
            session.symbol_ids(symbols)[symbol_codes],
            found.src_ts,
            found.seq,
            found.ingest_ts,
            found.close,
            found.volume,
            found.ohl,
        )
        problems = {i: ("bad_timestamp", detail) for i, detail in found.details.items()}
        lines: list[bytes] = []

        def original(i: int) -> tuple[bytes, str]:
            lines.extend([] if lines else block.data.split(b"\n"))
            return lines[i], f"{self._source.label}:{block.line + i}"

        return session.checked(rows, problems, original)

    def _by_line(self, session: Session, block: Block) -> Rows:
        """Rows of any block; the reference for what an event is."""
        lines = block.numbered_lines()
        problems: Problems = {}
        columns: list[tuple[int, str, int, int, int, float, float, float, float, float]] = []
        for i, (_, line) in enumerate(lines):
            try:
                event = _event(line)
                src_ts = parse_ts(event.src_ts)
                ingest_ts = parse_ts(event.ingest_ts) if event.ingest_ts else src_ts
                interval = _interval(event.interval)
            except RejectedError as error:
                problems[i] = (error.reason, str(error))
                columns.append((0, "", 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0))
                continue
            stream = session.stream_id(event.provider, event.kind, interval)
            prices = (event.o, event.h, event.l, event.c, event.v)
            columns.append((stream, event.symbol, src_ts, event.seq, ingest_ts, *prices))
        streams, symbols, src, seq, ingest, *values = (
            zip(*columns, strict=True) if columns else ((),) * 10
        )
        o, h, low, close, volume = (np.array(column, np.float64) for column in values)
        same = all(np.array_equal(x, close) for x in (o, h, low))
        rows = Rows(
            np.array(streams, np.uint32),
            session.symbol_ids(symbols),
            np.array(src, np.int64),
            np.array(seq, np.int64),
            np.array(ingest, np.int64),
            close,
            volume,
            None if same else (o, h, low),
        )
        label = self._source.label
        return session.checked(rows, problems, lambda i: (lines[i][1], f"{label}:{lines[i][0]}"))


def rejected_block(session: Session, block: Block, label: str) -> Rows:
    """The row of a piece that could not be cut into whole lines."""
    detail = {
        "too_long": "a piece of a line that is longer than max_line_bytes",
        "malformed": "the compressed data is cut off or damaged in this line",
    }[block.reason]
    return session.rejected_rows(
        [Rejected(block.reason, detail, block.data, f"{label}:{block.line}")]
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The fields of events, one a row.

    Attributes:
        texts: symbol, provider, kind and interval, each as distinct values and their rows.
        src_ts: UTC ns; 0 where `details` says what is wrong.
        ingest_ts: likewise.
        details: what is wrong with a row's times.
        seq: int64.
        close: float64.
        volume: float64.
        ohl: None if they equal the close.
    """

    texts: dict[str, Coded]
    src_ts: Ints
    ingest_ts: Ints
    details: Details
    seq: Ints
    close: Floats
    volume: Floats
    ohl: tuple[Floats, Floats, Floats] | None


def _columns(block: Block) -> _Columns | None:
    """The columns of a block in which every line is one event; None if that is not certain."""
    if block.reason or block.lines <= _STRICT_LINES:
        return None
    return _uniform(block) or _parsed(block)


def _uniform(block: Block) -> _Columns | None:
    """The columns of a block whose lines are all of one shape; None if they are not."""
    lines = uniform_lines(block.data, block.lines)
    if lines is None or not lines.keys <= _KEYS or not lines.keys >= _REQUIRED:
        return None
    if lines.text_keys != lines.keys & {*_TEXTS, "event_id"}:
        return None  # a number in quotes, or a text without
    texts = {}
    for name in _CODED:
        coded = lines.texts(name) if name in lines.keys else _default(name, block.lines)
        if coded is None:
            return None
        texts[name] = coded
    src_ts = _times(lines, "src_ts")
    apart = "ingest_ts" in lines.keys and not lines.same("src_ts", "ingest_ts")
    ingest_ts = _times(lines, "ingest_ts") if apart else src_ts
    seq = lines.numbers("seq") if "seq" in lines.keys else None
    if src_ts is None or ingest_ts is None or not lines.are("ver", b"%d" % EVENT_VERSION):
        return None
    if "seq" in lines.keys and (seq is None or seq.places.any()):
        return None
    prices = {"c": lines.numbers("c"), "v": lines.numbers("v")}
    for name in "ohl":
        prices[name] = prices["c"] if lines.same(name, "c") else lines.numbers(name)
    values = {name: found.to_floats() for name, found in prices.items() if found}
    if len(values) < len(prices):
        return None
    return _Columns(
        texts,
        src_ts,
        ingest_ts,
        {},
        np.zeros(block.lines, np.int64) if seq is None else seq.mantissa,
        values["c"],
        values["v"],
        _ohl(values),
    )


def _times(lines: UniformLines, key: str) -> Ints | None:
    return uniform_times(lines.words(key), lines.length(key))


def _default(name: str, rows: int) -> Coded:
    return [_OPTIONAL[name]], np.zeros(rows, np.uint32)


def _ohl(values: Mapping[str, Floats]) -> tuple[Floats, Floats, Floats] | None:
    ohl = values["o"], values["h"], values["l"]
    return None if all(np.array_equal(x, values["c"]) for x in ohl) else ohl


def _parsed(block: Block) -> _Columns | None:
    """The columns of a block that a JSON parser finds to be plain; None if it does not."""
    frame = _frame(block)
    if frame is None:
        return None
    src_ts, details = iso_column(frame["src_ts"])
    ingest_ts = src_ts
    if not frame["ingest_ts"].null_count():
        ingest_ts, more = iso_column(frame["ingest_ts"])
        details = more | details
    values = {name: frame[name].to_numpy() for name in _NUMBERS}
    return _Columns(
        {name: text_codes(frame[name]) for name in _CODED},
        src_ts,
        ingest_ts,
        details,
        frame["seq"].to_numpy(),
        values["c"],
        values["v"],
        _ohl(values),
    )


def _frame(block: Block) -> pl.DataFrame | None:
    """The block's columns, without nulls but for ingest_ts; None unless all lines are plain.

    The column parser takes a number or a list where a text should be, ignores the second of two
    equal keys and turns lone surrogates into NUL. All of that changes the number of quotes,
    braces or brackets, or needs a backslash, so the block must have exactly the quotes that the
    values found account for.
    """
    data, lines = block.data, block.lines
    if b"\\" in data or b"[" in data or count_byte(data, _BRACE) != lines:
        return None
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=_SCHEMA)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if len(frame) != lines:
        return None
    absent = {s.name for s in frame.iter_columns() if s.null_count() == lines}
    if not absent.issubset({*_OPTIONAL, "ingest_ts"}) or (absent and b"null" in data):
        return None
    if any(s.null_count() for s in frame.iter_columns() if s.name not in absent):
        return None
    quotes = 2 * lines * (len(_SCHEMA) + len(_TEXTS))
    quotes -= 2 * lines * sum(1 + (name in _TEXTS) for name in absent)
    with_event_id = quotes + 4 * lines  # "event_id":"…"
    if count_byte(data, _QUOTE) not in (quotes, with_event_id):
        return None
    if not (frame["ver"] == EVENT_VERSION).all():
        return None
    defaults = [
        pl.lit(_OPTIONAL[name], dtype=_SCHEMA[name]).alias(name)
        for name in absent.intersection(_OPTIONAL)
    ]
    return frame.with_columns(defaults) if defaults else frame


def _interval(text: str) -> str:
    try:
        return canonical_interval(text)
    except UsageError as error:
        raise RejectedError(reason="bad_type", message=str(error)) from error


def _event(line: bytes) -> StreamEvent:
    if line[0] >= 0x80:  # would be taken for msgpack
        msg = "the line is not a JSON object"
        raise RejectedError(reason="malformed", message=msg)
    return decode_event(line)
