"""Sums and averages over windows, for all rows at once.

Every result depends on its own row's bars alone, to the last bit: arrays are added up along axis 0,
bar by bar, and recursions go bar by bar as well.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import Column, Floats, Window


class Moments:
    """Mean and sums of powers of the deviations from it, computed when they are asked for.

    Two passes: the mean first, then the deviations (Chan, Golub and LeVeque 1983). Prices are
    measured from the newest one, so that those of a constant price are exactly zero.

    Args:
        window: the bars.
        name: the column; of ``log_return`` all but the oldest bar's.

    Attributes:
        number: shape (n,), float64: how many values there are.
        mean: shape (n,).
        deviations: shape (depth, n), of ``log_return`` (depth - 1, n): values minus mean, 0.0
            outside.
    """

    def __init__(self, window: Window, name: Column) -> None:
        values = window.column(name)
        if name == "log_return":
            fewer, origin, values = 1, np.zeros(values.shape[1]), values[:-1]
        else:
            fewer, origin = 0, values[0]
            values = window.kept(values - origin)
        self.number: Floats = (window.counts - fewer).astype(np.float64)
        mean = np.add.reduce(values, axis=0) / self.number
        self.mean: Floats = origin + mean
        self.deviations: Floats = window.kept(values - mean, fewer)

    @cached_property
    def _squares(self) -> Floats:
        return self.deviations * self.deviations

    @cached_property
    def second(self) -> Floats:
        """Shape (n,): the sum of squares."""
        total: Floats = np.add.reduce(self._squares, axis=0)
        return total

    @cached_property
    def third(self) -> Floats:
        """Shape (n,): the sum of third powers."""
        total: Floats = np.add.reduce(self._squares * self.deviations, axis=0)
        return total

    @cached_property
    def fourth(self) -> Floats:
        """Shape (n,): the sum of fourth powers."""
        total: Floats = np.add.reduce(self._squares * self._squares, axis=0)
        return total


_MOMENTS: WeakKeyDictionary[Window, dict[Column, Moments]] = WeakKeyDictionary()


def moments(window: Window, name: Column) -> Moments:
    """The moments of a column; features over the same window share them."""
    shared = _MOMENTS.setdefault(window, {})
    if name not in shared:
        shared[name] = Moments(window, name)
    return shared[name]


def smoothed(values: Floats, counts: NDArray[np.int64], bars: int, weight: float) -> Floats:
    """Exponential average as of the newest value, begun at the oldest one.

    The first average is the mean of the oldest `bars` values; each later value takes the share
    `weight` of it. That is a sum with fixed weights, and as such several times faster than bar by
    bar.

    Args:
        values: shape (depth, n), newest first, finite.
        counts: shape (n,): how many of them there are; the rest is left out.
        bars: how many values the first average is made of.
        weight: above 0, at most 1.

    Returns:
        Shape (n,): of no meaning where fewer than `bars` values are there.
    """
    depth = len(values)
    shares, first = _weights(depth, bars, weight)
    later = np.maximum(counts - bars, 0)
    if (later == depth - bars).all():
        weights = np.where(np.arange(depth) < depth - bars, shares, first[-1])[:, None]
    else:
        row = np.arange(depth)[:, None]
        weights = np.where(row < later, shares[:, None], np.where(row < counts, first[later], 0.0))
    average: Floats = np.add.reduce(values * weights, axis=0)
    return average


@lru_cache(256)
def _weights(depth: int, bars: int, weight: float) -> tuple[Floats, Floats]:
    """Of each value by its age, and of each of the first `bars` by how many values came later."""
    powers = [1.0]
    for _ in range(depth - 1):  # by multiplication, which is the same on every machine
        powers.append(powers[-1] * (1 - weight))
    every = np.array(powers)
    return every * weight, every[: depth - bars + 1] / bars


def smoothing(values: Floats, counts: NDArray[np.int64], bars: int, weight: float) -> Floats:
    """The averages of :func:`smoothed` as of each value.

    Args:
        values: shape (depth, n), newest first, finite.
        counts: shape (n,): how many of them there are; the rest is left out.
        bars: how many values the first average is made of.
        weight: above 0, at most 1.

    Returns:
        Shape (depth - bars + 1, n), newest first; of no meaning where fewer than `bars` values are
        there, and before the first average.
    """
    depth, fewest = len(values), int(counts.min(initial=len(values)))
    oldest = values[depth - bars :]
    if fewest < depth:
        rows = np.maximum(counts - bars, 0) + np.arange(bars)[:, None]
        oldest = np.ascontiguousarray(np.take_along_axis(values, rows, axis=0))
    averages = np.empty((depth - bars + 1, values.shape[1]))
    averages[-1] = np.add.reduce(oldest, axis=0) / bars
    shares, kept = values * weight, 1 - weight
    for row in range(depth - bars - 1, -1, -1):
        average, before = averages[row], averages[row + 1]
        np.multiply(before, kept, out=average)
        average += shares[row]
        if row >= fewest - bars:  # where smoothing has not begun yet, nothing changes
            np.copyto(average, before, where=row >= counts - bars)
    return averages
