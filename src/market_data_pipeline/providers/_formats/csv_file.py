"""CSV of trades or bars, with a header; separated by comma, semicolon or tab."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from market_data_core.errors import UsageError
from market_data_pipeline.providers._formats.inputs import BOM, Block, Input, line_blocks
from market_data_pipeline.providers._formats.ndjson import rejected_block
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import REJECTED_STREAM, Problems, Rows, Session
from market_data_pipeline.providers._formats.table import (
    inferred_interval,
    layout_of,
    needs_interval,
    table_rows,
)

_SEPARATORS = ",;\t"
_HEAD_BYTES = 1 << 16
_INFER_ROWS = 1_000_000


def header_of(head: bytes) -> tuple[str, list[str]]:
    """Separator and column names of the first line that is not blank.

    Returns:
        ("", []) where that line is no text with one of the separators.
    """
    lines = (line for line in head.removeprefix(BOM).split(b"\n") if line.strip())
    try:
        line = next(lines, b"").decode().rstrip("\r")
    except UnicodeDecodeError:
        return "", []
    separator = max(_SEPARATORS, key=line.count)
    if separator not in line:
        return "", []
    fields = _fields(line, separator)
    return separator, [field.strip() for field in fields or []]


class CsvFormat:
    """A CSV file; a row is a line, so a quoted field cannot span lines."""

    def __init__(self, source: Input, options: RecordingOptions) -> None:
        """Read the header.

        Raises:
            UsageError: a needed column, or the interval of bars, cannot be found.
        """
        self._source = source
        self._options = options
        self._separator, self._names = header_of(source.head(_HEAD_BYTES))
        if len(set(self._names)) < len(self._names) or not self._names:
            found = ", ".join(self._names) or "none"
            msg = f"{source.label}: the first line must name the columns, each once; found {found}"
            raise UsageError(msg)
        self._layout = layout_of(source.label, self._names, options)
        self.numbered = "trade_id" in self._layout.columns
        if needs_interval(self._layout):
            self._layout = replace(self._layout, interval=self._infer_interval())

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order (see ``Format.read``)."""
        options = self._options
        header_seen = False
        for block in line_blocks(self._source, options.chunk_events, options.max_line_bytes):
            if block.reason:
                yield rejected_block(session, block, self._source.label)
                continue
            lines = block.numbered_lines()
            if not header_seen and lines:
                header_seen = True
                del lines[0]
            if lines:
                yield self._parse(session, block, lines)

    def _parse(self, session: Session, block: Block, lines: list[tuple[int, bytes]]) -> Rows:
        problems: Problems = {}
        frame = self._plain(lines) if b'"' not in block.data else None
        if frame is None:
            frame = self._quoted(lines, problems)
        layout = self._layout
        table = frame.select(pl.col(name).alias(what) for what, name in layout.columns.items())
        label = self._source.label
        return table_rows(
            session, layout, table, problems, lambda i: (lines[i][1], f"{label}:{lines[i][0]}")
        )

    def _plain(self, lines: Sequence[tuple[int, bytes]]) -> pl.DataFrame | None:
        """Fields of lines without quotes, in which every separator separates."""
        data = b"\n".join(line.rstrip(b"\r") for _, line in lines)
        if b"\r" in data:
            return None
        try:
            frame = pl.read_csv(
                io.BytesIO(data),
                has_header=False,
                separator=self._separator,
                quote_char=None,
                schema=dict.fromkeys(self._names, pl.String),
            )
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            return None
        return frame if len(frame) == len(lines) else None

    def _quoted(self, lines: Sequence[tuple[int, bytes]], problems: Problems) -> pl.DataFrame:
        """Fields of any lines, one at a time."""
        table = []
        width = len(self._names)
        for i, (_, line) in enumerate(lines):
            try:
                fields = _fields(line.decode().rstrip("\r"), self._separator)
            except UnicodeDecodeError:
                fields = None
            if fields is None or len(fields) > width:
                found = "text that is not valid" if fields is None else f"{len(fields)} fields"
                problems[i] = ("malformed", f"{found} instead of {width} fields")
                fields = []
            table.append([field or None for field in fields] + [None] * (width - len(fields)))
        return pl.DataFrame(table, schema=dict.fromkeys(self._names, pl.String), orient="row")

    def _infer_interval(self) -> str:
        """From the bars' own times; looks at the first million rows."""
        session = Session()
        layout = self._layout
        self._layout = replace(layout, interval="1s")
        parts: list[Rows] = []
        for rows in self.read(session):
            parts.append(rows.take(rows.stream != REJECTED_STREAM))
            if sum(map(len, parts)) >= _INFER_ROWS:
                break
        rows = Rows.concat(parts or [session.rejected_rows([])]).take(slice(_INFER_ROWS))
        if not len(rows):
            return "1s"  # no bar can get a wrong interval
        return inferred_interval(self._source.label, rows.symbol, rows.src_ts)


def _fields(line: str, separator: str) -> list[str] | None:
    try:
        rows = list(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if rows else []
