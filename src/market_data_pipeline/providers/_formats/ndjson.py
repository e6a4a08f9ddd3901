"""NDJSON of version-1 events: a column parser that is as strict as the one for single events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import Rejected, StreamEvent, parse_ts
from market_data_core.intervals import canonical_interval
from market_data_core.text.event_lines import EventColumns, event_columns
from market_data_core.wire import decode_event
from market_data_pipeline.providers._formats.inputs import Block, Input, line_blocks
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import (
    Deferred,
    Problems,
    Rows,
    Session,
    stream_column,
)

_STRICT_LINES = 64
_PARTS = 16
_AHEAD = 2
"""So many blocks are parsed at once, beside the one whose rows are being used."""


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
            coming: deque[tuple[Block, Future[EventColumns | None]]] = deque()
            for block in blocks:
                coming.append((block, pool.submit(_columns, block)))
                if len(coming) > _AHEAD:
                    yield self._rows(session, *coming.popleft())
            while coming:
                yield self._rows(session, *coming.popleft())
        blocks.check()

    def _rows(self, session: Session, block: Block, coming: Future[EventColumns | None]) -> Rows:
        found = coming.result()
        if block.reason:
            return rejected_block(session, block, self._source.label)
        return self._parse(session, block, found)

    def _parse(self, session: Session, block: Block, found: EventColumns | None) -> Rows:
        """By columns; where that refuses, in ever smaller parts, and at last line by line."""
        if block.lines <= _STRICT_LINES:
            return self._by_line(session, block)
        if found:
            return self._by_column(session, block, found)
        parts = block.split(_PARTS)
        return Rows.concat([self._parse(session, part, _columns(part)) for part in parts])

    def _by_column(self, session: Session, block: Block, found: EventColumns) -> Rows:
        """Rows of a block in which every line is one event."""
        symbols, symbol_codes = found.texts["symbol"]
        rows = Rows(
            stream_column(
                session,
                len(found.src_ts),
                *(found.texts[name] for name in ("provider", "kind", "interval")),
            ),
            session.symbol_ids(symbols)[symbol_codes],
            found.src_ts,
            found.seq,
            found.src_ts if found.ingest_ts is None else found.ingest_ts,
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


def _columns(block: Block) -> EventColumns | None:
    if block.reason or block.lines <= _STRICT_LINES:
        return None
    return event_columns(block.data, block.lines)


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
