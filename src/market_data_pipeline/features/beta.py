"""Beta to an index (Sharpe 1964).

``Σ(x - mean x)(y - mean y) / Σ(x - mean x)²`` of the simple returns y of the symbol and x of the
index, from each bar of the window to the next one: the slope of the least-squares line, as
``scipy.stats.linregress``. The index's returns are between its closes as of the same bars. Default:
300s, or three bars where that is longer.

Warm-up: three bars over a horizon; over a number of bars, so many. Gaps: a return leads from each
bar to the next one there is, over any hole; pairs in which the index had no bar in the five minutes
(five bars, if longer) up to either bar are left out. NaN with fewer than two pairs, and where the
index has not moved.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import IndexParameters, Interval
from market_data_core.contracts.feature import Feature, Floats
from market_data_core.registry import Backend
from market_data_pipeline.features._pairs import Products, over_pairs


class BetaParameters(IndexParameters):
    """Parameters of ``beta``."""

    horizon: Interval | None = Field(default="300s", description="How far back it looks.")


def beta(parameters: BetaParameters, interval_ns: int) -> Feature:
    """How much the symbol moves with the index."""
    return over_pairs(parameters, interval_ns, _slope)


def _slope(sums: Products) -> Floats:
    return sums.both / sums.index


BACKEND = Backend("beta", "Beta to an index.", BetaParameters, beta)
