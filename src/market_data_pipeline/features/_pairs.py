"""Returns of a symbol beside those of an index between the same bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.config import IndexParameters
from market_data_core.contracts.feature import (
    Column,
    Feature,
    Floats,
    IndexColumn,
    Window,
    index_column,
)
from market_data_pipeline.features._family import known, over_window, reach

BARS_LEAST = 3
"""Two pairs of returns are the fewest that can differ."""


@dataclass(frozen=True, slots=True)
class Products:
    """Sums over the pairs of a window, shape (n,) each, of deviations from the means.

    Attributes:
        own: of the symbol's, squared.
        index: of the index's, squared.
        both: of one times the other.
    """

    own: Floats
    index: Floats
    both: Floats


def over_pairs(
    parameters: IndexParameters, interval_ns: int, formula: Callable[[Products], Floats]
) -> Feature:
    """The feature that `formula` makes of simple returns from each bar of the window to the next.

    Pairs in which the index is not known are left out; with fewer than two there is no value.
    """
    span, index = reach(parameters, interval_ns, BARS_LEAST), index_column(parameters.index)
    columns: tuple[Column, ...] = ("close", index)
    return over_window(columns, span, lambda w: formula(_products(w, index)), BARS_LEAST)


def _products(window: Window, index: IndexColumn) -> Products:
    closes, levels = window.column("close"), window.column(index)
    own, others = closes[:-1] / closes[1:] - 1, levels[:-1] / levels[1:] - 1
    paired = np.isfinite(own) & np.isfinite(others)  # outside the window neither is
    number = np.add.reduce(paired, axis=0, dtype=np.float64)
    own, others = _deviations(own, paired, number), _deviations(others, paired, number)
    sums = (np.add.reduce(a * b, axis=0) for a, b in ((own, own), (others, others), (own, others)))
    enough = number >= BARS_LEAST - 1
    return Products(*(known(total, enough) for total in sums))


def _deviations(values: Floats, paired: NDArray[np.bool_], number: Floats) -> Floats:
    mean = np.add.reduce(np.where(paired, values, 0.0), axis=0) / number
    kept: Floats = np.where(paired, values - mean, 0.0)
    return kept
