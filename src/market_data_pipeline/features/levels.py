"""Closes of an index, as of the bars of other symbols."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import Floats, index_age_ns, index_column, index_of

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Levels:
    """Closes of index symbols of one provider and interval, over a stretch of time.

    Attributes:
        interval_ns: the bars' length.
        first: least start of a bar that would be here, UTC ns; `last` the greatest.
        closes: symbol -> starts of its bars (UTC ns, ascending) and their closes.
    """

    interval_ns: int
    first: int
    last: int
    closes: Mapping[str, tuple[NDArray[np.int64], Floats]]

    @classmethod
    def of_bars(
        cls, interval_ns: int, first: int, last: int, symbols: Iterable[str], frame: pl.DataFrame
    ) -> Levels:
        """Those of the symbols' bars in a frame, which is in the order of time for each."""
        names = frame["symbol"].to_numpy()
        ts = frame["ts"].to_physical().to_numpy()
        close = frame["close"].to_numpy()
        closes = {s: (ts[names == s], close[names == s]) for s in symbols}
        return cls(interval_ns, first, last, closes)

    def columns(self, ts: NDArray[np.int64]) -> dict[str, Floats]:
        """Column -> shape (n,): the closes as of bars that begin at `ts`, UTC ns."""
        return {index_column(symbol): self._as_of(symbol, ts) for symbol in self.closes}

    def _as_of(self, symbol: str, ts: NDArray[np.int64]) -> Floats:
        starts, closes = self.closes[symbol]
        if not len(starts):
            return np.full(len(ts), np.nan)
        at = np.searchsorted(starts, ts, "right") - 1
        known = (at >= 0) & (ts - starts[at] < index_age_ns(self.interval_ns))
        found: Floats = np.where(known, closes[at], np.nan)
        return found

    def differences(self, other: Levels) -> dict[str, tuple[int, int]]:
        """Symbol -> starts of the first and last bar, where both tell, that they differ in."""
        first, last = max(self.first, other.first), min(self.last, other.last)
        spans: dict[str, tuple[int, int]] = {}
        for symbol in self.closes.keys() & other.closes.keys():
            mine, others = self._bars(symbol, first, last), other._bars(symbol, first, last)
            if differ := [ts for ts, _ in mine ^ others]:
                spans[symbol] = min(differ), max(differ)
        return spans

    def has(self, symbol: str, ts: int, close: float) -> bool:
        """Whether the symbol's bar that begins at `ts` is known, with that close."""
        return symbol in self.closes and (ts, close) in self._bars(symbol, ts, ts)

    def since(self, first: int) -> Levels:
        """What is known of bars that begin at `first` or later."""
        return replace(self, first=max(self.first, first))

    def _bars(self, symbol: str, first: int, last: int) -> set[tuple[int, float]]:
        """Starts and closes of the bars that begin from `first` to `last`."""
        first, last = max(first, self.first), min(last, self.last)
        starts, closes = self.closes[symbol]
        part = slice(np.searchsorted(starts, first), np.searchsorted(starts, last, "right"))
        return set(zip(starts[part].tolist(), closes[part].tolist(), strict=True))


NO_LEVELS = Levels(1, 0, 0, {})
"""Of no index."""


def indices_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The symbols that columns tell of, in order."""
    return tuple(sorted({symbol for symbol in map(index_of, columns) if symbol is not None}))
