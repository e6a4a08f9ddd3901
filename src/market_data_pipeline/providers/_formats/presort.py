"""Sorting one input by time with bounded memory: sorted runs on disk, merged by time slices."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from market_data_pipeline.providers._formats.order import Piece
from market_data_pipeline.providers._formats.rows import REJECTED_STREAM, Array, Deferred, Rows

_RECORD = np.dtype(
    [
        ("stream", np.uint32),
        ("symbol", np.uint32),
        ("src_ts", np.int64),
        ("seq", np.int64),
        ("ingest_ts", np.int64),
        ("close", np.float64),
        ("volume", np.float64),
        ("open", np.float64),
        ("high", np.float64),
        ("low", np.float64),
    ]
)
_FEW_ROWS = 1 << 10


def presorted(chunks: Iterator[Rows], buffer_events: int, spool_dir: Path) -> Iterator[Piece]:
    """One input in time order, rows of equal time in file order; what was rejected comes first.

    Args:
        chunks: the input's rows in file order.
        buffer_events: how many rows may be held in memory; more go to `spool_dir`.
        spool_dir: for one file without a name, which vanishes with the process.

    Raises:
        UsageError: the input is damaged; all before was yielded.
    """
    held: list[Rows] = []
    held_count = 0
    deferred = Deferred(chunks)
    with _RunFile(spool_dir) as runs:
        for rows in deferred:
            rejected = rows.stream == REJECTED_STREAM
            if rejected.any():
                yield _piece(rows.take(rejected))
            held.append(rows.take(~rejected) if rejected.any() else rows)
            held_count += len(held[-1])
            if held_count > buffer_events:
                runs.add(_sorted(held))
                held_count = 0
        if not runs.count:
            if held_count:
                yield _piece(_sorted(held))
        else:
            if held_count:
                runs.add(_sorted(held))
            yield from map(_piece, runs.merged(buffer_events))
    deferred.check()


def _piece(rows: Rows) -> Piece:
    return Piece(rows.src_ts, rows)


def _sorted(parts: list[Rows]) -> Rows:
    """All rows by time; empties `parts`, so that no more than two copies are in memory."""
    rows = Rows.concat(parts)
    parts.clear()
    return _piece(rows).sorted().rows


class _RunFile:
    """Sorted runs, one after the other in a file without a name."""

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._file: BinaryIO | None = None
        self._lengths: list[int] = []

    def __enter__(self) -> _RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self._lengths)

    def add(self, rows: Rows) -> None:
        """Append one run."""
        if self._file is None:
            self._spool_dir.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._spool_dir)  # noqa: SIM115
        records = np.empty(len(rows), _RECORD)
        for name in ("stream", "symbol", "src_ts", "seq", "ingest_ts", "close", "volume"):
            records[name] = getattr(rows, name)
        for name, column in zip(("open", "high", "low"), rows.prices(), strict=True):
            records[name] = column
        self._file.write(records.tobytes())
        self._file.flush()
        self._lengths.append(len(rows))

    def merged(self, buffer_events: int) -> Iterator[Rows]:
        """All rows by time; rows of equal time in the order in which they were added."""
        assert self._file is not None  # noqa: S101
        window = max(_FEW_ROWS, buffer_events // (2 * len(self._lengths)))
        first, runs = 0, []
        for length in self._lengths:
            runs.append(_Run(self._file.fileno(), first, length, window))
            first += length
        while live := [run for run in runs if run.fill()]:
            # every row below the bound is in some window, and no window holds more than its size
            bound = min(run.last_ts for run in live)
            parts = [run.pop_below(bound) for run in live]
            if not sum(map(len, parts)):
                parts = [next(run for run in live if run.first_ts == bound).pop_equal(bound)]
            records = np.concatenate(parts)
            yield _rows(records[np.argsort(records["src_ts"], kind="stable")])


class _Run:
    """A window that moves over one sorted run."""

    def __init__(self, handle: int, first: int, length: int, window: int) -> None:
        self._handle = handle
        self._next = first
        self._end = first + length
        self._window = window
        self._records = np.empty(0, _RECORD)

    def fill(self) -> bool:
        """Read on where the window is empty; False at the end of the run."""
        if not len(self._records) and self._next < self._end:
            count = min(self._window, self._end - self._next)
            size = count * _RECORD.itemsize
            data = os.pread(self._handle, size, self._next * _RECORD.itemsize)
            self._records = np.frombuffer(data, _RECORD)
            self._next += count
        return len(self._records) > 0

    @property
    def first_ts(self) -> int:
        """Least time in the window."""
        return int(self._records["src_ts"][0])

    @property
    def last_ts(self) -> int:
        """Greatest time in the window; the run has nothing below it that is not in the window."""
        return int(self._records["src_ts"][-1])

    def pop_below(self, bound: int) -> Array:
        """Take the records before `bound` out of the window."""
        return self._pop(int(np.searchsorted(self._records["src_ts"], bound, side="left")))

    def pop_equal(self, bound: int) -> Array:
        """Take the records at `bound`, with which the window begins, out of the window."""
        return self._pop(int(np.searchsorted(self._records["src_ts"], bound, side="right")))

    def _pop(self, count: int) -> Array:
        taken, self._records = self._records[:count], self._records[count:]
        return taken


def _rows(records: Array) -> Rows:
    columns = {name: np.ascontiguousarray(records[name]) for name in _RECORD.names or ()}
    ohl = tuple(columns.pop(name) for name in ("open", "high", "low"))
    same = all(np.array_equal(column, columns["close"]) for column in ohl)
    return Rows(**columns, ohl=None if same else ohl)  # type: ignore[arg-type]
