"""Features: columns computed from closed bars, the same live, replayed and in training.

A value at a bar is a function of a fixed set of bars: that bar and those before it that lie within
a number of bars or a horizon, and within the session. It depends on nothing else, so it does not
matter where reading began, in which pieces bars came, or how many were computed at once.

Another symbol, an index, is looked at through a column of the bars themselves: its close as of each
bar. So a feature across symbols is windows and sums like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from market_data_core.intervals import NS_PER_S

Floats = NDArray[np.float64]

IndexColumn = NewType("IndexColumn", str)
"""``close@SYMBOL``: the close of that symbol's newest bar, of the same feed and interval, which
begins at or before the bar, and less than :func:`index_age_ns` before it; else NaN."""
Column = (
    Literal["open", "high", "low", "close", "volume", "vwap", "trade_count", "log_return"]
    | IndexColumn
)
"""What features may look at. ``log_return`` is ln(close / close of the bar before)."""

_INDEX = "close@"
_INDEX_AGE_NS, _INDEX_AGE_BARS = 300 * NS_PER_S, 5


def index_column(symbol: str) -> IndexColumn:
    """The column that tells of `symbol` at the bars of any other."""
    return IndexColumn(_INDEX + symbol)


def index_of(column: str) -> str | None:
    """The symbol that a column tells of; None if it is one of the bars' own."""
    return column.removeprefix(_INDEX) if column.startswith(_INDEX) else None


def index_age_ns(interval_ns: int) -> int:
    """How long a bar of an index counts if no newer one comes: 5 minutes, or 5 bars if longer."""
    return max(_INDEX_AGE_NS, _INDEX_AGE_BARS * interval_ns)


@dataclass(frozen=True, slots=True)
class Span:
    """How far back a feature looks; exactly one of the two is set.

    Attributes:
        horizon_ns: bars that begin less than this before the newest one begins.
        bars: the newest so many bars.
    """

    horizon_ns: int | None = None
    bars: int | None = None

    def depth(self, interval_ns: int) -> int:
        """The greatest number of bars it can hold."""
        if self.bars is not None:
            return self.bars
        assert self.horizon_ns is not None  # noqa: S101
        return max(1, -(-self.horizon_ns // interval_ns))


class Window(Protocol):
    """The bars of one span, for each of n rows.

    Arrays of shape (depth, n) have the newest bar in row 0 and the one before it in row 1.

    Attributes:
        depth: the greatest number of bars in it.
        counts: shape (n,), int64: how many bars it holds, at least 1; fewer than `depth` where the
            symbol is new, the session young, or bars are missing inside the horizon.
    """

    depth: int
    counts: NDArray[np.int64]

    def column(self, name: Column) -> Floats:
        """Shape (depth, n), contiguous: the bars' values, 0.0 outside the window.

        A ``vwap`` is NaN where the volume is zero. Row k of ``log_return`` leads from bar k + 1 to
        bar k; of the oldest bar in the window it is 0.0, since the bar before is not in it.
        """
        ...

    def kept(self, values: Floats, fewer: int = 0) -> Floats:
        """`values`, shape (depth, n), with 0.0 outside the newest ``counts - fewer`` rows."""
        ...

    def oldest(self, name: Column) -> Floats:
        """Shape (n,): the value of the oldest bar in the window."""
        ...


class Bars(Protocol):
    """What features look at: a bar of each of n rows, and those before it of the same symbol.

    Attributes:
        interval_ns: the bars' length.
    """

    interval_ns: int

    def __len__(self) -> int: ...

    def newest(self, name: Column) -> Floats:
        """Shape (n,): the value of the row's own bar."""
        ...

    def before(self, name: Column, horizon_ns: int) -> Floats:
        """Shape (n,): the value as of a horizon ago.

        It is that of the newest bar that begins `horizon_ns` or more before the row's own, if that
        begins less than twice as long before; else NaN.
        """
        ...

    def window(self, span: Span) -> Window:
        """The bars within `span` of each row's bar."""
        ...


class Feature(Protocol):
    """One column.

    Attributes:
        columns: what of the bars it reads.
        span: all that it reads lies within this, warm-up included.
    """

    columns: tuple[Column, ...]
    span: Span

    def compute(self, bars: Bars) -> Floats:
        """Shape (n,): the value at each row, NaN where the bars do not suffice.

        Must be made of additions, multiplications, divisions, square roots, minima, maxima and
        comparisons of whole arrays, and sums over axis 0: their results do not depend on how many
        rows are computed at once, nor on the machine.
        """
        ...
