"""What features look at: windows over stored bars, gathered for many rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from market_data_core.contracts.feature import Column, Floats, Span

Index = NDArray[np.intp]

ROWS_MIN = 16
"""NumPy adds up a single column pairwise, several ones row by row: so there are always several."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Where a column's values stand in memory, for each of n rows.

    Attributes:
        values: shape (any,): all stored values.
        newest: shape (n,): index of the row's own bar; k bars before it stands ``newest - k *
            step``, around the end where that is negative.
        step: distance between neighbours.
    """

    values: NDArray[Any]
    newest: Index
    step: int

    def back(self, depth: int) -> NDArray[Any]:
        """Shape (depth, n), contiguous: row k is k bars back; whatever stands there."""
        if (np.diff(self.newest) == 1).all():  # neighbours: slices, not indices
            found = self._of_neighbours(int(self.newest[0]), len(self.newest), depth)
            if found is not None:
                return found
        offsets = np.arange(depth, dtype=np.intp)[:, None] * self.step
        return self.values.take(self.newest - offsets, mode="wrap")

    def _of_neighbours(self, first: int, n: int, depth: int) -> NDArray[Any] | None:
        """Of rows that stand side by side, in rings that turn together or one after the other."""
        if self.step == 1:
            if first + 1 < depth:
                return None
            run = self.values[first - depth + 1 : first + n]
            return np.ascontiguousarray(sliding_window_view(run, n)[::-1])
        grid = self.values.reshape(-1, self.step)
        row, column = divmod(first % len(self.values), self.step)
        if column + n > self.step or depth > len(grid):
            return None
        found = np.empty((depth, n), self.values.dtype)
        here = min(row + 1, depth)  # before the ring's end is met
        columns = slice(column, column + n)
        found[:here] = grid[row + 1 - here : row + 1, columns][::-1]
        if depth > here:
            found[here:] = grid[len(grid) - (depth - here) :, columns][::-1]
        return found

    def one(self, back: Index) -> NDArray[Any]:
        """Shape (n,): the value `back` bars before each row."""
        return self.values.take(self.newest - back * self.step, mode="wrap")


class _Columns:
    """The columns of some rows, each gathered once as deep as anything looks at it.

    Bars and their windows share it, and do not know each other: what refers to itself in a circle
    is freed only when somebody looks for garbage, and these are megabytes.
    """

    def __init__(self, strips: Mapping[str, Strip], depths: Mapping[str, int]) -> None:
        self._strips, self._depths = strips, depths
        self._gathered: dict[str, Floats] = {}

    def gathered(self, name: Column, depth: int) -> Floats:
        """Shape (depth, n), contiguous: a column as it is stored, outside of windows anything."""
        found = self._gathered.get(name)
        if found is None or len(found) < depth:
            most = max(depth, self._depths.get(name, 0))
            found = self._gathered[name] = self._strips[name].back(most)
        return found[:depth]


class StoredBars:
    """Implements :class:`market_data_core.contracts.feature.Bars`.

    Args:
        interval_ns: the bars' length.
        strips: where each column stands, ``ts`` among them.
        available: shape (n,): how many bars each row has in its session, itself included.
        depths: how far back each column is looked at, at most.

    Raises:
        ValueError: there are fewer than :data:`ROWS_MIN` rows; fill up with copies of one.
    """

    def __init__(
        self,
        interval_ns: int,
        strips: Mapping[str, Strip],
        available: NDArray[np.int64],
        depths: Mapping[str, int],
    ) -> None:
        if len(available) < ROWS_MIN:
            msg = f"{len(available)} rows are too few, at least {ROWS_MIN} are needed"
            raise ValueError(msg)
        self.interval_ns = interval_ns
        self._strips, self._available = strips, available
        self._columns = _Columns(strips, depths)
        self._windows: dict[Span, StoredWindow] = {}
        self._ts: NDArray[np.int64] = strips["ts"].one(np.zeros(len(available), np.intp))

    def __len__(self) -> int:
        return len(self._available)

    def newest(self, name: Column) -> Floats:
        """Shape (n,): the value of the row's own bar."""
        strip = self._strips[name]
        return strip.values.take(strip.newest, mode="wrap")

    def window(self, span: Span) -> StoredWindow:
        """The bars within `span` of each row's bar."""
        found = self._windows.get(span)
        if found is None:
            depth = span.depth(self.interval_ns)
            if span.bars is not None:
                counts = np.minimum(self._available, depth)
            else:
                counts = self._younger(span.horizon_ns or 0, depth)
            found = self._windows[span] = StoredWindow(self._columns, depth, counts)
        return found

    def before(self, name: Column, horizon_ns: int) -> Floats:
        """Shape (n,): the value as of a horizon ago, NaN where none is known."""
        back = self._younger(horizon_ns, Span(horizon_ns).depth(self.interval_ns))
        known = back < self._available
        back = np.where(known, back, 0)
        known &= self._ts - self._strips["ts"].one(back) < 2 * horizon_ns
        values: Floats = np.where(known, self._strips[name].one(back), np.nan)
        return values

    def _younger(self, horizon_ns: int, depth: int) -> NDArray[np.int64]:
        """Shape (n,): how many bars begin less than `horizon_ns` before the row's own."""
        times, since = self._strips["ts"], self._ts - horizon_ns
        most = np.minimum(self._available, depth)
        if (times.one(most - 1) > since).all():  # the common case: nothing is missing
            return most
        low, high = np.ones_like(most), most  # the row's own bar always counts
        while (low < high).any():
            middle = (low + high + 1) // 2
            inside = times.one(middle - 1) > since
            low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
        return low


class StoredWindow:
    """Implements :class:`market_data_core.contracts.feature.Window`."""

    def __init__(self, columns: _Columns, depth: int, counts: NDArray[np.int64]) -> None:
        self.depth, self.counts = depth, counts
        self._stored = columns
        self._fewest = int(counts.min(initial=depth))
        self._columns: dict[str, Floats] = {}

    def column(self, name: Column) -> Floats:
        """Shape (depth, n), contiguous: the bars' values, 0.0 outside the window."""
        found = self._columns.get(name)
        if found is None:
            values = self._stored.gathered(name, self.depth)
            found = self._columns[name] = self.kept(values, fewer=name == "log_return")
        return found

    def kept(self, values: Floats, fewer: int = 0) -> Floats:
        """`values`, shape (depth, n), with 0.0 outside the newest ``counts - fewer`` rows."""
        full = self._fewest - fewer
        if full >= len(values):
            return values
        kept = values.copy()
        rows = np.arange(full, len(values))[:, None]
        kept[full:][rows >= self.counts - fewer] = 0.0
        return kept

    def oldest(self, name: Column) -> Floats:
        """Shape (n,): the value of the oldest bar in the window."""
        values = self._stored.gathered(name, self.depth)
        columns = np.arange(values.shape[1])
        oldest: Floats = values[self.counts - 1, columns]
        return oldest
