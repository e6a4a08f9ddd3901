"""Parquet of trades or bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from market_data_core.errors import UsageError
from market_data_pipeline.archive.layout import METADATA_KEY
from market_data_pipeline.providers._formats.inputs import Input
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import Rows, Session
from market_data_pipeline.providers._formats.table import (
    inferred_interval,
    layout_of,
    needs_interval,
    table_rows,
)
from market_data_pipeline.providers._formats.times import time_column

_SLICE_CHUNKS = 8  # a slice of few row groups each; decoding one twice costs more than memory
_INFER_ROWS = 1_000_000


class ParquetFormat:
    """A Parquet file, read in slices so that memory stays bounded."""

    def __init__(self, source: Input, options: RecordingOptions) -> None:
        """Read the schema.

        Raises:
            UsageError: the file is damaged, or a needed column cannot be found.
        """
        self._source = source
        self._slice_rows = options.chunk_events * _SLICE_CHUNKS
        try:
            self._scan = pl.scan_parquet(source.path, glob=False)
            names = self._scan.collect_schema().names()
            archived = METADATA_KEY in pl.read_parquet_metadata(source.path)
            self._count = int(self._scan.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UsageError(self._damaged(error)) from error
        self._layout = layout_of(source.label, names, options)
        if archived:  # its rows say themselves whether they are ticks or bars
            columns = {**self._layout.columns, "kind": "kind"}
            self._layout = replace(self._layout, columns=columns)
        self.numbered = "trade_id" in self._layout.columns
        if needs_interval(self._layout):
            self._layout = replace(self._layout, interval=self._infer_interval())

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order (see ``Format.read``)."""
        columns = [pl.col(name).alias(what) for what, name in self._layout.columns.items()]
        for start in range(0, self._count, self._slice_rows):
            part = self._scan.slice(start, self._slice_rows)
            table = self._collect(part.select(columns))
            yield table_rows(session, self._layout, table, {}, _Originals(self, part, start))

    def original(self, frame: pl.DataFrame, row: int, number: int) -> tuple[bytes, str]:
        """A row as JSON, since it has no bytes of its own, and where it stands."""
        text = json.dumps(frame.row(row, named=True), default=str, ensure_ascii=False)
        return text.encode(), f"{self._source.label}:row {number}"

    def _collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise UsageError(self._damaged(error)) from error

    def _damaged(self, error: BaseException) -> str:
        return f"{self._source.label} is damaged or is no Parquet file: {str(error)[:200]}"

    def _infer_interval(self) -> str:
        layout = self._layout
        wanted = [pl.col(n).alias(w) for w, n in layout.columns.items()]
        table = self._collect(self._scan.select(wanted).head(_INFER_ROWS))
        if not len(table):
            return "1s"  # no bar can get a wrong interval
        src_ts, details = time_column(table["timestamp"], layout.time_unit)
        names = table["symbol"] if "symbol" in table.columns else src_ts * 0
        symbols = pl.Series(names).rank("dense").fill_null(0).to_numpy()
        good = [i for i in range(len(table)) if i not in details] if details else slice(None)
        return inferred_interval(self._source.label, symbols[good], src_ts[good])


class _Originals:
    """Finds a slice's rejected rows, with all their columns, only if there are any."""

    def __init__(self, owner: ParquetFormat, part: pl.LazyFrame, start: int) -> None:
        self._owner = owner
        self._part = part
        self._start = start
        self._frame: pl.DataFrame | None = None

    def __call__(self, row: int) -> tuple[bytes, str]:
        if self._frame is None:
            self._frame = self._owner._collect(self._part)
        return self._owner.original(self._frame, row, self._start + row + 1)
