"""Bars read from a store or an archive, side by side: for replays, exports and late changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import VALUE_COLUMNS
from market_data_core.contracts.feature import Floats
from market_data_pipeline.features._bars import Strip
from market_data_pipeline.features._log import log
from market_data_pipeline.features.levels import NO_LEVELS, Levels
from market_data_pipeline.features.selection import Selection

if TYPE_CHECKING:
    import polars as pl


class Panel:
    """Bars of one provider and interval, ordered by symbol and time.

    Args:
        interval_ns: the bars' length.
        frame: rows with the columns ``symbol``, ``ts`` and those of values, ordered by symbol and
            ts; each (symbol, ts) once.
        session_gap_ns: a hole at least this long begins a new session; 0: never.
        levels: of the symbols that others are compared with.

    Attributes:
        symbols: in order.
        codes: shape (n,): the symbol of each bar.
        ts: shape (n,), int64: start of each bar, UTC ns.
        columns: name -> shape (n,), float64, with ``log_return`` and those of `levels`.
        available: shape (n,), int64: bars of its symbol's session up to and including each.
    """

    def __init__(
        self,
        interval_ns: int,
        frame: pl.DataFrame,
        session_gap_ns: int,
        levels: Levels = NO_LEVELS,
    ) -> None:
        self.interval_ns = interval_ns
        names = frame["symbol"].to_numpy()
        n = len(names)
        first = np.ones(n, bool)
        first[1:] = names[1:] != names[:-1]
        self.symbols: tuple[str, ...] = tuple(names[first].tolist())
        self.codes: NDArray[np.intp] = np.cumsum(first) - 1
        self.ts: NDArray[np.int64] = frame["ts"].to_physical().to_numpy()
        self.columns: dict[str, Floats] = {
            name: frame[name].cast(float).fill_null(float("nan")).to_numpy()
            for name in VALUE_COLUMNS
        }
        self.columns |= levels.columns(self.ts)
        fresh = first.copy()
        if session_gap_ns:
            fresh[1:] |= np.diff(self.ts) - interval_ns >= session_gap_ns
        begins = np.maximum.accumulate(np.where(fresh, np.arange(n), 0))
        self.available: NDArray[np.int64] = np.arange(n) - begins + 1
        self.columns["log_return"] = log_returns(self.columns["close"], first)

    @classmethod
    def empty(cls, interval_ns: int) -> Panel:
        """No bars."""
        import polars as pl

        kinds = {"symbol": pl.String, "ts": pl.Int64, **dict.fromkeys(VALUE_COLUMNS, pl.Float64)}
        return cls(interval_ns, pl.DataFrame(schema=kinds), 0)

    def first_starts(self) -> dict[str, int]:
        """Symbol -> start of its first bar, UTC ns."""
        first = np.flatnonzero(np.diff(self.codes, prepend=-1))
        return dict(zip(self.symbols, self.ts[first].tolist(), strict=True))

    def select(self, rows: NDArray[np.intp]) -> Selection:
        """What is to be computed: the bars at `rows`."""
        columns = {"ts": self.ts, **self.columns}
        strips = {name: Strip(values, rows, 1) for name, values in columns.items()}
        return Selection(
            self.interval_ns, self.symbols, self.codes[rows], strips, self.available[rows]
        )


def log_returns(close: Floats, first: NDArray[np.bool_]) -> Floats:
    """Shape (n,): ln(close / close of the bar before); NaN at the `first` bar of a symbol."""
    returns = np.full(len(close), np.nan)
    if len(close) > 1:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            returns[1:] = log(close[1:] / close[:-1])
    returns[first] = np.nan
    return returns
