"""The bars of a whole commit as one table of columns, in the order of their key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import UsageError
from market_data_core.intervals import parse_interval

VALUES = ("open", "high", "low", "close", "volume", "vwap")
_STATES = ("final", "revised", "gap")
_GAP = _STATES.index("gap")
_REACH = 4
"""Bars of a series that are at most so many intervals apart are looked up as one range."""

NEW, UPDATED, UNCHANGED, KEPT, BAD = range(5)
"""What became of a row, or is to become of it."""

Index = NDArray[np.intp]
Series = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """Bars as they are stored: columns of one length.

    Attributes:
        row: of which row of the table it has the key.
        values: one column for each of VALUES; NaN where there is no vwap.
        count: -1 where it is not known.
        gap: whether its state says so.
    """

    row: Index
    values: Sequence[NDArray[np.float64]]
    count: NDArray[np.int64]
    gap: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segment:
    """Ranges of keys: of `series` (an index), from `start_us` to `end_us`, both inside."""

    series: Index
    start_us: NDArray[np.int64]
    end_us: NDArray[np.int64]


class Rows:
    """Bars of several batches, sorted by key; equal keys stay in the order of their batches.

    Attributes:
        series: distinct (provider, symbol, interval), ascending.
        rank: shape (n,), index into `series`.
        ts_us: shape (n,), microseconds since 1970.
        values: columns of shape (n,), as VALUES; NaN where there is no vwap.
        count: shape (n,), -1 where it is not known.
        state: shape (n,), index into the states' names.
        batch: shape (n,), number of the batch.
        row: shape (n,), index into that batch.
        fate: shape (n,), what became of it.
        errors: row -> why it can never be stored.
    """

    def __init__(self, batches: Sequence[BarBatch]) -> None:
        known: dict[Series, int] = {}
        codes = [_codes(batch, known) for batch in batches]
        self.series = sorted(known)
        place = np.empty(len(known), np.intp)
        place[[known[series] for series in self.series]] = np.arange(len(known))
        rank = place[_joined(codes, np.intp)]
        ts = _joined([batch.ts for batch in batches], np.int64)
        sizes = [len(batch) for batch in batches]
        order = np.lexsort((ts, rank))

        def column(parts: Sequence[Any], dtype: Any) -> NDArray[Any]:
            return _joined(parts, dtype)[order]

        def each(values: Sequence[Any], dtype: Any) -> NDArray[Any]:
            return np.repeat(np.array(values, dtype), sizes)[order]

        self.rank, ts = rank[order], ts[order]
        self.ts_us = ts // 1000
        self.values = [column([getattr(b, v) for b in batches], np.float64) for v in VALUES]
        self.count = np.maximum(column([b.trade_count for b in batches], np.int64), -1)
        self.state = each([_STATES.index(b.state) for b in batches], np.int8)
        self.only_new = each([b.only_new for b in batches], np.bool_)
        self.batch = each(range(len(batches)), np.intp)
        self.row = column([np.arange(n) for n in sizes], np.intp)
        self.fate = np.full(len(order), UNCHANGED, np.int8)
        self.errors: dict[int, str] = {}
        self._refuse(ts)

    def __len__(self) -> int:
        return len(self.rank)

    def _refuse(self, ts: NDArray[np.int64]) -> None:
        """Set aside what cannot even be asked for."""
        for row in np.flatnonzero(ts != self.ts_us * 1000).tolist():
            self.refuse(row, f"ts {ts[row]} is not a whole number of microseconds")
        whole = "".join(chain.from_iterable(self.series))
        plain = whole.isascii() and "\0" not in whole
        for rank, series in enumerate(() if plain else self.series):
            error = _unspeakable(series)
            if error:
                for row in np.flatnonzero(self.rank == rank).tolist():
                    self.refuse(row, error)

    def refuse(self, row: int, error: str) -> None:
        """Note that a row can never be stored."""
        self.fate[row] = BAD
        self.errors[row] = error

    def waves(self) -> Iterator[Index]:
        """Rows that are not refused, in portions in which no key occurs twice."""
        left = np.flatnonzero(self.fate != BAD)
        while len(left):
            rank, ts = self.rank[left], self.ts_us[left]
            again = np.zeros(len(left), bool)
            again[1:] = (rank[1:] == rank[:-1]) & (ts[1:] == ts[:-1])
            yield left[~again]
            left = left[again]

    def may_change(self, rows: Index) -> NDArray[np.bool_]:
        """Whether what is stored under the key of each of `rows` is changed, now or later on."""
        fate, both = self.fate[rows], np.zeros(len(self) + 1, bool)
        both[1:-1] = (np.diff(self.rank) == 0) & (np.diff(self.ts_us) == 0)
        again = both[rows] | both[rows + 1]  # the key occurs in another batch, too
        found: NDArray[np.bool_] = (fate == UPDATED) | (again & (fate != NEW) & (fate != BAD))
        return found

    def segments(self, rows: Index, exact: bool = False) -> Segment:
        """Ranges that cover the keys of `rows`; `exact`: and no others."""
        rank, ts = self.rank[rows], self.ts_us[rows]
        reach = np.array([0 if exact else _REACH * _length_us(s[2]) for s in self.series])
        starts = np.ones(len(rows), bool)
        starts[1:] = (rank[1:] != rank[:-1]) | (ts[1:] - ts[:-1] > reach[rank[1:]])
        first = np.flatnonzero(starts)
        last = np.append(first[1:], len(rows)) - 1
        return Segment(rank[first], ts[first], ts[last])

    def together(self, ranges: Segment, size_min: int) -> list[Index]:
        """Ranges of single bars that differ in nothing but their symbols, group by group.

        None at all if there are others, or if the groups have fewer than `size_min` on average.
        """
        if (ranges.start_us != ranges.end_us).any():
            return []
        feeds: dict[tuple[str, str], int] = {}
        feed_of = np.array([feeds.setdefault((p, i), len(feeds)) for p, _, i in self.series])
        code, times = feed_of[ranges.series], 1
        if (ranges.start_us != ranges.start_us[0]).any():
            moments, time = np.unique(ranges.start_us, return_inverse=True)
            code, times = code * len(moments) + time, len(moments)
        if len(feeds) * times == 1:
            return [np.arange(len(code))] if len(code) >= size_min else []
        distinct, group = np.unique(code, return_inverse=True)
        if len(distinct) * size_min > len(code):
            return []
        return [np.flatnonzero(group == i) for i in range(len(distinct))]

    def spans(self, rows: Index) -> Segment:
        """The range of each series among `rows`."""
        rank = self.rank[rows]
        first = np.flatnonzero(np.diff(rank, prepend=-1))
        last = np.append(first[1:], len(rows)) - 1
        return Segment(rank[first], self.ts_us[rows[first]], self.ts_us[rows[last]])

    def match(self, rows: Index, rank: Index, ts_us: NDArray[np.int64]) -> tuple[Index, Index]:
        """Which stored keys are those of `rows`: (rows, indexes into the stored ones)."""
        if np.array_equal(rank, self.rank[rows]) and np.array_equal(ts_us, self.ts_us[rows]):
            return rows, np.arange(len(rows))
        both = np.concatenate((self.ts_us[rows], ts_us))
        moments, code = np.unique(both, return_inverse=True)
        wanted = self.rank[rows] * len(moments) + code[: len(rows)]
        found = rank * len(moments) + code[len(rows) :]
        at = np.minimum(np.searchsorted(wanted, found), len(rows) - 1)
        hit = np.flatnonzero(wanted[at] == found)
        return rows[at[hit]], hit

    def judge(self, rows: Index, stored: Stored) -> None:
        """Set the fate of `rows`, given what is stored under their keys."""
        self.fate[rows] = NEW
        at = stored.row
        differs = np.zeros(len(at), bool)
        for ours, theirs in zip(self.values, stored.values, strict=True):
            mine = ours[at]
            differs |= (mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))
        count = self.count[at]
        differs |= count != stored.count
        # a stored bar gives way only to one that is made of at least as many events
        enough = (count < 0) | (stored.count < 0) | (count >= stored.count)
        healed = stored.gap & (self.state[at] != _GAP)
        changed = (differs | healed) & enough & ~self.only_new[at]
        self.fate[at] = np.where(changed, UPDATED, np.where(differs, KEPT, UNCHANGED))

    def counts(self) -> WriteCounts:
        """How many rows had each fate."""
        n = np.bincount(self.fate, minlength=BAD + 1).tolist()
        return WriteCounts(n[NEW], n[UPDATED], n[UNCHANGED], n[KEPT], n[BAD])

    def states(self, rows: Index) -> list[str]:
        """States of `rows`, as they were given."""
        return [_STATES[state] for state in self.state[rows].tolist()]

    def heads(self, rows: Index) -> tuple[list[tuple[str, ...]], Index]:
        """Distinct (provider, symbol, interval, state), and which of them each row has."""
        codes, head_of = np.unique(
            self.rank[rows] * len(_STATES) + self.state[rows], return_inverse=True
        )
        heads = [
            (*self.series[code // len(_STATES)], _STATES[code % len(_STATES)])
            for code in codes.tolist()
        ]
        return heads, head_of


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _codes(batch: BarBatch, known: dict[Series, int]) -> Index:
    """Each row's number in `known`, which grows by the series that are new."""
    codes = batch.codes.astype(np.intp)
    number = np.zeros(len(batch.symbols), np.intp)
    for code in np.flatnonzero(np.bincount(codes, minlength=len(number))).tolist():
        series = (batch.provider, batch.symbols[code], batch.interval)
        number[code] = known.setdefault(series, len(known))
    return number[codes]


def _unspeakable(series: Series) -> str:
    """Why no text of the database can be one of these names, "" if each can."""
    for name in series:
        if "\0" in name:
            return f"{name!r} holds a zero byte, which PostgreSQL cannot store"
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                return f"{name!r} is no valid text: {error.reason}"
    return ""


@cache
def _length_us(interval: str) -> int:
    try:
        return parse_interval(interval) // 1000
    except UsageError:  # a vendor's own name for it: every bar is looked up alone
        return 0
