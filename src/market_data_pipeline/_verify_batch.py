"""Bars from events by a batch query, sums exact by a road of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

BAR_SCHEMA: dict[str, type[pl.DataType]] = {
    "code": pl.UInt32, "ts": pl.Int64, "open": pl.Float64, "high": pl.Float64, "low": pl.Float64,
    "close": pl.Float64, "volume": pl.Float64, "vwap": pl.Float64, "trade_count": pl.Int64,
    "closed": pl.Int64, "expected": pl.Boolean,
}  # fmt: skip
"""Columns of computed bars; `closed` is the least of the events', `expected` tells whether an
owner of one of them computes the interval."""

_INT64_MAX = 2**63 - 1
_INT128_MAX = 2**127 - 1
Exact = tuple[int, int]
"""An exact decimal: integer and number of decimal places."""


def decimals_of(values: NDArray[np.float64]) -> tuple[list[int], NDArray[np.intp], int]:
    """The decimals that the floats' shortest texts spell.

    Args:
        values: shape (n,), finite.

    Returns:
        Distinct integers, the index of each value's integer (shape (n,)), and the number of
        decimal places they share.
    """
    distinct, index = np.unique(values, return_inverse=True)
    texts = []
    for text in map(repr, distinct.tolist()):
        plain = format(Decimal(text), "f") if "e" in text else text
        whole, _, fraction = plain.partition(".")
        texts.append((whole, fraction.rstrip("0")))
    places = max((len(fraction) for _, fraction in texts), default=0)
    return [int(whole + fraction.ljust(places, "0")) for whole, fraction in texts], index, places


@dataclass(slots=True)
class _Window:
    """A window that reaches beyond a slice."""

    open: float
    high: float
    low: float
    close: float
    volume: Exact
    notional: Exact
    count: int
    closed: int
    expected: bool

    def follow(self, later: _Window) -> None:
        """Take the part of the same window from a later slice."""
        self.high, self.low = max(self.high, later.high), min(self.low, later.low)
        self.close = later.close
        self.volume = _add(self.volume, later.volume)
        self.notional = _add(self.notional, later.notional)
        self.count += later.count
        self.closed = min(self.closed, later.closed)
        self.expected |= later.expected


def _add(a: Exact, b: Exact) -> Exact:
    places = max(a[1], b[1])
    return a[0] * 10 ** (places - a[1]) + b[0] * 10 ** (places - b[1]), places


def _rounded(exact: Exact) -> float:
    return float(f"{exact[0]}e-{exact[1]}")  # text to float is one correct rounding


class BatchQuery:
    """Bars of several window lengths over slices of events handed in in time order.

    Args:
        lengths_ns: window lengths.
        owed_from: length -> source -> start (UTC ns) from which on its owner stores such windows.
    """

    def __init__(self, lengths_ns: Sequence[int], owed_from: dict[int, dict[int, int]]) -> None:
        self._owed_from = owed_from
        self._done: dict[int, list[pl.DataFrame]] = {length: [] for length in lengths_ns}
        self._open: dict[int, dict[tuple[int, int], _Window]] = {n: {} for n in lengths_ns}

    def add(self, events: pl.DataFrame, from_ts: int, to_ts: int) -> None:
        """Take all events of [from_ts, to_ts), UTC ns."""
        if len(events):
            events = events.unique(["code", "ts", "seq"], keep="any").sort("code", "ts", "seq")
            ticks = _Sums(events)
            for length in self._done:
                self._slice(ticks, length, from_ts, to_ts)
        for length, waiting in self._open.items():
            ended = [key for key in waiting if key[1] + length <= to_ts]
            rows = [(key, waiting.pop(key)) for key in ended]
            self._done[length].append(_frame(rows))

    def _slice(self, ticks: _Sums, length: int, from_ts: int, to_ts: int) -> None:
        keys, windows = ticks.windows(length, self._owed_from[length])
        inside: list[tuple[tuple[int, int], _Window]] = []
        waiting = self._open[length]
        for key, window in zip(keys, windows, strict=True):
            if key[1] >= from_ts and key[1] + length <= to_ts:
                inside.append((key, window))
            elif key in waiting:
                waiting[key].follow(window)
            else:
                waiting[key] = window
        self._done[length].append(_frame(inside))

    def bars(self, length: int) -> pl.DataFrame:
        """All windows of `length` that have ended, in the columns of :data:`BAR_SCHEMA`."""
        return pl.concat([pl.DataFrame(schema=BAR_SCHEMA), *self._done[length]])


def _frame(rows: Sequence[tuple[tuple[int, int], _Window]]) -> pl.DataFrame:
    data = []
    for (code, start), w in rows:
        volume, notional = _rounded(w.volume), _rounded(w.notional)
        vwap = notional / volume if volume else None
        prices = (w.open, w.high, w.low, w.close)
        data.append((code, start, *prices, volume, vwap, w.count, w.closed, w.expected))
    return pl.DataFrame(data, schema=BAR_SCHEMA, orient="row")


class _Sums:
    """Distinct events in order, with sizes and notionals as integers."""

    def __init__(self, events: pl.DataFrame) -> None:
        price, price_at, price_places = decimals_of(events["close"].to_numpy())
        size, size_at, size_places = decimals_of(events["volume"].to_numpy())
        self._volume_places = size_places
        self._notional_places = price_places + size_places
        top = max(map(abs, price)) * max(map(abs, size)) * len(events)
        small = max(*map(abs, price), *map(abs, size)) <= _INT64_MAX
        self._fits = small and top <= _INT128_MAX
        if self._fits:
            sizes = pl.Series("size", np.array(size, np.int64)[size_at]).cast(pl.Int128)
            prices = pl.Series("notional", np.array(price, np.int64)[price_at]).cast(pl.Int128)
            self._events = events.with_columns(sizes, prices * sizes)
        else:
            self._events = events
            self._sizes = [size[i] for i in size_at.tolist()]
            self._notionals = [
                price[i] * n for i, n in zip(price_at.tolist(), self._sizes, strict=True)
            ]

    def windows(
        self, length: int, owed_from: dict[int, int]
    ) -> tuple[list[tuple[int, int]], list[_Window]]:
        """The windows of `length` with their keys (code, start)."""
        start = (pl.col("ts") // length * length).alias("start")
        sums = [pl.col("size", "notional").sum()] if self._fits else []
        found = (
            self._events.with_columns(start)
            .group_by("code", "start", maintain_order=True)
            .agg(
                pl.col("open").first(),
                pl.col("high").max(),
                pl.col("low").min(),
                pl.col("close").last(),
                pl.len().alias("count"),
                pl.col("closed").min(),
                (pl.col("source").replace_strict(owed_from) <= pl.col("start").first())
                .any()
                .alias("expected"),
                *sums,
            )
        )
        keys = list(zip(found["code"].to_list(), found["start"].to_list(), strict=True))
        counts = found["count"].to_list()
        if self._fits:
            sizes, notionals = found["size"].to_list(), found["notional"].to_list()
        else:
            sizes = _run_sums(self._sizes, counts)
            notionals = _run_sums(self._notionals, counts)
        columns: list[list[Any]] = [found[n].to_list() for n in ("open", "high", "low", "close")]
        columns.append([(n, self._volume_places) for n in sizes])
        columns.append([(n, self._notional_places) for n in notionals])
        columns += [counts, found["closed"].to_list(), found["expected"].to_list()]
        return keys, [_Window(*row) for row in zip(*columns, strict=True)]


def _run_sums(values: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Sums over consecutive runs of the given lengths."""
    sums, at = [], 0
    for count in counts:
        sums.append(sum(values[at : at + count]))
        at += count
    return sums


def official_bars(events: pl.DataFrame) -> pl.DataFrame:
    """A vendor's own bars: of each (symbol, start) the one with the highest seq."""
    last = events.sort("seq").unique(["code", "ts"], keep="last", maintain_order=True)
    return last.with_columns(
        pl.lit(None, pl.Float64).alias("vwap"),
        pl.lit(None, pl.Int64).alias("trade_count"),
        pl.lit(value=True).alias("expected"),
    ).select(list(BAR_SCHEMA))
