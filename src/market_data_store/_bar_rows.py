"""Bars given one by one, put into the columns in which stores take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import BarBatch
from market_data_core.errors import UsageError
from market_data_core.intervals import canonical_interval

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FEED = attrgetter("provider", "interval", "state")
_FLOATS = ("open", "high", "low", "close", "volume", "vwap")


def bar_batches(rows: Sequence[Any]) -> list[BarBatch]:
    """The bars in batches, to be written in this order: of one key the last one counts.

    Args:
        rows: bars with the attributes of the table's columns, batches, or both mixed.

    Raises:
        UsageError: a time has no zone, a number is none, or an interval is none.
    """
    batches: list[BarBatch] = []
    single: list[Any] = []
    for row in rows:
        if isinstance(row, BarBatch):
            batches += _of_rows(single)
            batches.append(row)
            single = []
        else:
            single.append(row)
    batches += _of_rows(single)
    return batches


def _of_rows(rows: list[Any]) -> Iterator[BarBatch]:
    if not rows:
        return
    feeds: dict[tuple[Any, ...], int] = {}
    feed_of = np.array([feeds.setdefault(feed, len(feeds)) for feed in map(_FEED, rows)])
    bars = _columns(rows)
    spelled = [(provider, canonical_interval(text), state) for provider, text, state in feeds]
    series: dict[tuple[Any, ...], int] = {}
    series_of = np.array([series.setdefault(feed[:2], len(series)) for feed in spelled])
    rounds = _occurrences(series_of[feed_of], bars)
    for number in range(int(rounds.max()) + 1):
        for feed, (provider, interval, state) in enumerate(spelled):
            chosen = np.flatnonzero((rounds == number) & (feed_of == feed))
            if len(chosen):
                part = bars if len(chosen) == len(bars) else bars.take(chosen)
                yield replace(part, provider=provider, interval=interval, state=state)


def _columns(rows: list[Any]) -> BarBatch:
    """All rows as one batch, whose provider, interval and state are still to be told."""
    given: dict[str, None] = dict.fromkeys(map(attrgetter("symbol"), rows))
    symbols = tuple(dict.fromkeys(name.upper() for name in given))
    code = {name: symbols.index(name.upper()) for name in given}
    counts = [-1 if n is None else n for n in map(attrgetter("trade_count"), rows)]
    try:
        codes = np.array([code[name] for name in map(attrgetter("symbol"), rows)], np.uint32)
        columns: dict[str, Any] = {
            name: np.array(list(map(attrgetter(name), rows)), np.float64) for name in _FLOATS
        }
        columns["trade_count"] = np.array(counts, np.int64)
        return BarBatch("", "", "final", symbols, codes, _times(rows), **columns)
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"rows: a bar's time has no zone, or a number is none: {error}"
        raise UsageError(msg) from error


def _times(rows: list[Any]) -> NDArray[np.int64]:
    since = [ts - _EPOCH for ts in map(attrgetter("ts"), rows)]
    micros = np.array(since, "timedelta64[us]").astype(np.int64)
    return micros * 1_000


def _occurrences(series: NDArray[Any], bars: BarBatch) -> NDArray[np.int64]:
    """For each bar, how many earlier ones have its key."""
    order = np.lexsort((bars.ts, bars.codes, series))
    again = np.zeros(len(bars), bool)
    again[1:] = True
    for column in (series, bars.codes, bars.ts):
        again[1:] &= column[order[1:]] == column[order[:-1]]
    place = np.arange(len(bars))
    found = np.empty(len(bars), np.int64)
    found[order] = place - np.maximum.accumulate(np.where(again, 0, place))
    return found
