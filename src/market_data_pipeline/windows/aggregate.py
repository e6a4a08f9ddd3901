"""Columns of events in, columns of bars out: exact, in total order, without duplicates.

Everything here is a pure function of its arguments. The order is (symbol, src_ts, seq); two
stable sorts give it: by time (events come nearly sorted, so timsort is linear) and by symbol code
(16 bits, so radix sort). Equal times are then ordered by seq where they are not already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.scaled import Scaled, concat_scaled
from market_data_pipeline.windows.assigner import window_starts

Index = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one stream, symbol codes in the engine's numbering.

    Attributes:
        codes: shape (n,), uint16 (uint32 beyond 65,536 symbols).
        ts: shape (n,), int64, src_ts in UTC ns.
        seq: shape (n,), int64.
        close: trade price; `volume` size.
        ohl: open, high, low; None if all equal `close`.
        own: shape (n,), False for events that are only known from elsewhere: they make the bars
            whole but are counted where they belong. None: all are our own. In ordered events,
            also True for a known event of which we have a copy.
    """

    codes: Index
    ts: NDArray[np.int64]
    seq: NDArray[np.int64]
    close: Scaled
    volume: Scaled
    ohl: tuple[Scaled, Scaled, Scaled] | None
    own: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, index: Index) -> Events:
        """Rows at `index`."""
        return replace(
            self,
            codes=self.codes[index],
            ts=self.ts[index],
            seq=self.seq[index],
            close=self.close.take(index),
            volume=self.volume.take(index),
            ohl=tuple(c.take(index) for c in self.ohl) if self.ohl else None,  # type: ignore[arg-type]
            own=None if self.own is None else self.own[index],
        )


def concat_events(parts: Sequence[Events]) -> Events:
    """The parts one after the other."""
    if len(parts) == 1:
        return parts[0]
    ohl = None
    if any(p.ohl for p in parts):
        columns = zip(*(p.ohl or (p.close,) * 3 for p in parts), strict=True)
        ohl = tuple(concat_scaled(column) for column in columns)
    own = None
    if any(p.own is not None for p in parts):
        own = np.concatenate([np.ones(len(p), bool) if p.own is None else p.own for p in parts])
    return Events(
        codes=np.concatenate([p.codes for p in parts]),
        ts=np.concatenate([p.ts for p in parts]),
        seq=np.concatenate([p.seq for p in parts]),
        close=concat_scaled([p.close for p in parts]),
        volume=concat_scaled([p.volume for p in parts]),
        ohl=ohl,  # type: ignore[arg-type]
        own=own,
    )


@dataclass(frozen=True, slots=True)
class Ordered:
    """Events in total order, each key once.

    Attributes:
        events: the distinct events.
        arrival: shape (m,), each one's index in the input.
        duplicates: shape (d,), indices in the input of exact copies of an earlier event.
        conflicts: shape (c,), indices of events that differ from an earlier one of the same key.
    """

    events: Events
    arrival: Index
    duplicates: Index
    conflicts: Index


_NONE: Index = np.empty(0, np.intp)


def order_events(events: Events) -> Ordered:
    """Sort by (symbol, src_ts, seq) and keep the first arrival of each key."""
    order = np.argsort(events.ts, kind="stable")
    order = order[np.argsort(events.codes[order], kind="stable")]
    codes, ts = events.codes[order], events.ts[order]
    tie = (ts[1:] == ts[:-1]) & (codes[1:] == codes[:-1])
    if not tie.any():
        return Ordered(events.take(order), order, _NONE, _NONE)
    seq = events.seq[order]
    if (tie & (seq[1:] <= seq[:-1])).any():
        order = _order_ties(order, tie, seq)
        seq = events.seq[order]
    again = np.zeros(len(order), bool)
    again[1:] = tie & (seq[1:] == seq[:-1])
    if not again.any():
        return Ordered(events.take(order), order, _NONE, _NONE)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    copies, originals = order[again], order[first[again]]
    same = _same_payload(events, copies, originals)
    kept = order[~again]
    distinct = events.take(kept)
    if events.own is not None:
        # a bar is ours to write if one of our events is in it, be it a copy of a known one
        touched = originals[same & events.own[copies]]
        distinct = replace(distinct, own=events.own[kept] | np.isin(kept, touched))
    return Ordered(distinct, kept, copies[same], copies[~same])


def _order_ties(order: Index, tie: NDArray[np.bool_], seq: NDArray[np.int64]) -> Index:
    """Order runs of equal (symbol, src_ts) by seq, equal seqs by arrival."""
    tied = np.zeros(len(order), bool)
    tied[1:] = tie
    tied[:-1] |= tie
    at = np.flatnonzero(tied)
    run = np.cumsum(~np.concatenate(([False], tie)))[at]
    order = order.copy()
    order[at] = order[at][np.lexsort((seq[at], run))]  # lexsort is stable: arrival order stays
    return order


def _same_payload(events: Events, a: Index, b: Index) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = np.ones(len(a), bool)
    for column in (events.close, events.volume, *(events.ohl or ())):
        same &= (column.mantissa[a] == column.mantissa[b]).astype(bool)
    return same


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one interval with their sums still exact; each (symbol, window) once.

    Attributes:
        codes: shape (n,), symbol codes.
        start: shape (n,), int64, start of the window, UTC ns.
        open: first price by (src_ts, seq); `close` the last; `high`, `low` the extremes.
        volume: exact sum of sizes; `notional` of price times size.
        count: shape (n,), int64, distinct events.
        own: shape (n,), int64, those of them that we have (bars with none are not ours to write).
    """

    codes: Index
    start: NDArray[np.int64]
    open: Scaled
    high: Scaled
    low: Scaled
    close: Scaled
    volume: Scaled
    notional: Scaled
    count: NDArray[np.int64]
    own: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, index: Index) -> Bars:
        """Rows at `index`."""
        columns = {name: getattr(self, name).take(index) for name in SCALED_COLUMNS}
        columns |= {name: getattr(self, name)[index] for name in PLAIN_COLUMNS}
        return Bars(**columns)


SCALED_COLUMNS = ("open", "high", "low", "close", "volume", "notional")
PLAIN_COLUMNS = ("codes", "start", "count", "own")


def concat_bars(parts: Sequence[Bars]) -> Bars:
    """The parts one after the other."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {
        name: concat_scaled([getattr(p, name) for p in parts]) for name in SCALED_COLUMNS
    }
    for name in PLAIN_COLUMNS:
        columns[name] = np.concatenate([getattr(p, name) for p in parts])
    return Bars(**columns)


def _runs(codes: Index, starts: NDArray[np.int64]) -> tuple[Index, Index]:
    """First and last index of each run of equal (symbol, window)."""
    change = np.flatnonzero((codes[1:] != codes[:-1]) | (starts[1:] != starts[:-1]))
    first = np.concatenate(([0], change + 1))
    return first, np.concatenate((change, [len(codes) - 1]))


def bars_of(events: Events, length_ns: int) -> Bars:
    """Bars of windows of `length_ns` over non-empty events from :func:`order_events`."""
    start = window_starts(events.ts, length_ns)
    first, last = _runs(events.codes, start)
    o, h, low = events.ohl or (events.close,) * 3
    count = last - first + 1
    return Bars(
        events.codes[first],
        start[first],
        o.take(first),
        Scaled(np.maximum.reduceat(h.mantissa, first), h.scale),
        Scaled(np.minimum.reduceat(low.mantissa, first), low.scale),
        events.close.take(last),
        events.volume.sum_runs(first),
        events.close.times(events.volume).sum_runs(first),
        count,
        count if events.own is None else np.add.reduceat(events.own.astype(np.int64), first),
    )


def merge_bars(bars: Bars, length_ns: int) -> Bars:
    """Wider bars over bars of disjoint shorter windows, in any order."""
    order = np.lexsort((bars.start, bars.codes))
    bars = bars.take(order)
    start = window_starts(bars.start, length_ns)
    first, last = _runs(bars.codes, start)
    return Bars(
        bars.codes[first],
        start[first],
        bars.open.take(first),
        Scaled(np.maximum.reduceat(bars.high.mantissa, first), bars.high.scale),
        Scaled(np.minimum.reduceat(bars.low.mantissa, first), bars.low.scale),
        bars.close.take(last),
        bars.volume.sum_runs(first),
        bars.notional.sum_runs(first),
        np.add.reduceat(bars.count, first),
        np.add.reduceat(bars.own, first),
    )
