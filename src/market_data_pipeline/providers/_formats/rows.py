"""Events of any streams, and what was rejected between them, as one set of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from market_data_core.errors import UsageError
from market_data_core.events import (
    REASONS,
    EventBatch,
    Kind,
    Rejected,
    code_dtype,
    invalid_rows,
)
from market_data_core.scaled import Scaled
from market_data_core.text.codes import Coded

T = TypeVar("T")
Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Problems = dict[int, tuple[str, str]]
"""Row number -> (reason, detail) of rows that cannot become events."""

REJECTED_STREAM = 0
BEFORE_ALL = -(2**62)
"""The time of a rejected row: below every valid time, and far from overflow."""
DEFAULT_PROVIDER = "recording"


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of shape (n,) in one order; a row is an event or something rejected.

    Attributes:
        stream: uint32, number of the stream in the session; 0 for something rejected.
        symbol: uint32, number of the symbol, or of the rejected piece.
        src_ts: int64, UTC ns.
        seq: int64.
        ingest_ts: int64, UTC ns.
        close: float64 prices.
        volume: float64 sizes.
        ohl: open, high and low, float64; None where they equal `close`.
    """

    stream: Array
    symbol: Array
    src_ts: Ints
    seq: Ints
    ingest_ts: Ints
    close: Floats
    volume: Floats
    ohl: tuple[Floats, Floats, Floats] | None = None

    def __len__(self) -> int:
        return len(self.src_ts)

    def take(self, index: Array | slice) -> Rows:
        """Rows at `index` (integers, a slice or a boolean mask)."""
        columns = (column[index] for column in self._columns())
        ohl = self.ohl and tuple(column[index] for column in self.ohl)
        return Rows._of(columns, ohl)

    def prices(self) -> tuple[Floats, Floats, Floats]:
        """Open, high and low columns."""
        return self.ohl or (self.close, self.close, self.close)

    def _columns(self) -> tuple[Array, ...]:
        return (
            self.stream,
            self.symbol,
            self.src_ts,
            self.seq,
            self.ingest_ts,
            self.close,
            self.volume,
        )

    @classmethod
    def _of(cls, columns: Iterable[Array], ohl: Any) -> Rows:
        stream, symbol, src_ts, seq, ingest_ts, close, volume = columns
        return cls(stream, symbol, src_ts, seq, ingest_ts, close, volume, ohl)

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of `parts` (at least one), in the order given."""
        if len(parts) == 1:
            return parts[0]
        columns = map(np.concatenate, zip(*(p._columns() for p in parts), strict=True))
        ohl = None
        if any(p.ohl for p in parts):
            ohl = tuple(map(np.concatenate, zip(*(p.prices() for p in parts), strict=True)))
        return cls._of(columns, ohl)


class Deferred(Generic[T]):
    """Goes through `items`, and keeps the error that ends them until what is held back is out."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._failure: UsageError | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._items
        except UsageError as error:
            self._failure = error

    def check(self) -> None:
        """Raise what ended the items, if it was an error."""
        if self._failure:
            raise self._failure


class Format(Protocol):
    """One file, opened as one format; made before reading, so that what is wrong shows early.

    Attributes:
        numbered: whether its events bear the vendor's ids; else they are counted by the caller.
    """

    numbered: bool

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order.

        Raises:
            UsageError: the file ends too early or is damaged; all before was yielded.
        """
        ...


class Session:
    """The names and rejected pieces that the rows of one reading refer to.

    Attributes:
        rejected_bytes: size of the rejected pieces that were not yet handed out.
    """

    def __init__(self, name: str | None = None, symbols: Sequence[str] = ()) -> None:
        self._name = name
        self._wanted = frozenset(s.upper() for s in symbols)
        self._streams: dict[tuple[str, Kind, str], int] = {}
        self._stream_keys: list[tuple[str, Kind, str]] = [("", "tick", "")]
        self._symbols: dict[str, int] = {}
        self._names: list[str] = []
        self._rejected: dict[int, Rejected] = {}
        self._rejected_next = 0
        self._scales: dict[tuple[int, str], int] = {}
        self.rejected_bytes = 0

    def stream_id(self, provider: str | None, kind: Kind, interval: str) -> int:
        """Number of a stream; the session's own provider name wins over the file's."""
        key = (self._name or provider or DEFAULT_PROVIDER, kind, interval)
        if key not in self._streams:
            self._streams[key] = len(self._stream_keys)
            self._stream_keys.append(key)
        return self._streams[key]

    def symbol_ids(self, names: Iterable[str]) -> Array:
        """Numbers of symbols (made upper case), uint32."""
        ids = []
        for name in names:
            upper = name.upper()
            number = self._symbols.setdefault(upper, len(self._names))
            if number == len(self._names):
                self._names.append(upper)
            ids.append(number)
        return np.array(ids, np.uint32)

    def reject(self, piece: Rejected) -> int:
        """Keep `piece` until its row is handed out; returns its number."""
        number = self._rejected_next
        self._rejected_next = (number + 1) % 2**32
        self._rejected[number] = piece
        self.rejected_bytes += len(piece.original)
        return number

    def rejected_sizes(self, rows: Rows) -> tuple[Array, list[int]]:
        """Positions in `rows` of rejected pieces, and the size in bytes of each."""
        at = np.flatnonzero(rows.stream == REJECTED_STREAM)
        return at, [len(self._rejected[i].original) for i in rows.symbol[at].tolist()]

    def rejected_rows(self, pieces: Sequence[Rejected]) -> Rows:
        """Rows that hold nothing but `pieces`."""
        n = len(pieces)
        ids = np.array([self.reject(p) for p in pieces], np.uint32)
        times = np.full(n, BEFORE_ALL, np.int64)
        zeros = np.zeros(n)
        return Rows(np.zeros(n, np.uint32), ids, times, times, times, zeros, zeros)

    def checked(
        self,
        rows: Rows,
        problems: Problems,
        original: Callable[[int], tuple[bytes, str]],
    ) -> Rows:
        """`rows` with those that break a rule turned into rejected pieces.

        Args:
            rows: candidates, one a line; those named in `problems` may hold anything valid.
            problems: rows already known to be unusable; filled up here.
            original: gives a row's bytes and place, called for unusable rows only.
        """
        bad = invalid_rows(*rows.prices(), rows.close, rows.volume, rows.src_ts)
        for reason, mask in bad.items():
            for i in np.flatnonzero(mask).tolist():
                problems.setdefault(i, (reason, REASONS[reason]))
        if problems:
            rows = self._replaced(rows, sorted(problems.items()), original)
        if not self._wanted:
            return rows
        wanted = np.array([name in self._wanted for name in self._names], bool)
        keep = rows.stream == REJECTED_STREAM
        keep[~keep] = wanted[rows.symbol[~keep]]
        return rows if keep.all() else rows.take(keep)

    def _replaced(
        self,
        rows: Rows,
        problems: Sequence[tuple[int, tuple[str, str]]],
        original: Callable[[int], tuple[bytes, str]],
    ) -> Rows:
        pieces = [Rejected(*why, *original(i)) for i, why in problems]
        filler = self.rejected_rows(pieces)
        at = [i for i, _ in problems]
        columns = []
        for old, new in zip(rows._columns(), filler._columns(), strict=True):
            column = old.copy()
            column[at] = new
            columns.append(column)
        ohl = rows.ohl and tuple(column.copy() for column in rows.ohl)
        for column in ohl or ():
            column[at] = 0.0
        return Rows._of(columns, ohl)

    def emit(self, rows: Rows) -> Iterator[EventBatch | Rejected]:
        """Hand `rows` out: what was rejected first, then one batch a stream."""
        first = int(rows.stream[0])
        if first != REJECTED_STREAM and (rows.stream == first).all():
            yield self._batch(first, rows)
            return
        streams, starts = np.unique(rows.stream, return_index=True)
        by_appearance = streams[np.argsort(starts)].tolist()
        for stream in sorted(by_appearance, key=lambda s: s != REJECTED_STREAM):
            part = rows.take(rows.stream == stream)
            if stream != REJECTED_STREAM:
                yield self._batch(stream, part)
                continue
            for number in part.symbol.tolist():
                piece = self._rejected.pop(number)
                self.rejected_bytes -= len(piece.original)
                yield piece

    def _batch(self, stream: int, rows: Rows) -> EventBatch:
        provider, kind, interval = self._stream_keys[stream]
        present = np.flatnonzero(np.bincount(rows.symbol, minlength=len(self._names)))
        codes = np.zeros(len(self._names), code_dtype(len(present)))
        codes[present] = np.arange(len(present))
        ohl = None
        if rows.ohl and not all(np.array_equal(p, rows.close) for p in rows.ohl):
            ohl = tuple(self._scaled(stream, n, p) for n, p in zip("ohl", rows.ohl, strict=True))
        return EventBatch(
            provider=provider,
            kind=kind,
            interval=interval,
            symbols=tuple(self._names[i] for i in present.tolist()),
            codes=codes[rows.symbol],
            src_ts=rows.src_ts,
            seq=rows.seq,
            ingest_ts=rows.ingest_ts,
            close=self._scaled(stream, "c", rows.close),
            volume=self._scaled(stream, "v", rows.volume),
            ohl=ohl,  # type: ignore[arg-type]
        )

    def _scaled(self, stream: int, column: str, values: Floats) -> Scaled:
        scaled = Scaled.from_floats(values, self._scales.get((stream, column), 0))
        self._scales[stream, column] = scaled.scale
        return scaled


def stream_column(session: Session, rows: int, *columns: Coded) -> Array:
    """Stream number of every row, uint32, shape (rows,).

    Args:
        session: gives streams their numbers.
        rows: how many rows there are.
        columns: provider, kind and interval, each with its distinct values.
    """
    (providers, p), (kinds, k), (intervals, i) = columns
    joined = (p * np.int64(len(kinds)) + k) * len(intervals) + i
    if not joined.any():
        return np.full(rows, session.stream_id(providers[0], kinds[0], intervals[0]), np.uint32)
    distinct, inverse = np.unique(joined, return_inverse=True)
    ids = []
    for code in distinct.tolist():
        rest, at_interval = divmod(code, len(intervals))
        at_provider, at_kind = divmod(rest, len(kinds))
        key = providers[at_provider], kinds[at_kind], intervals[at_interval]
        ids.append(session.stream_id(*key))
    return np.array(ids, np.uint32)[inverse]


def with_seq(rows: Rows, seq: Ints) -> Rows:
    """`rows` with another seq column."""
    return replace(rows, seq=seq)
