"""Realised volatility per bar.

The sample standard deviation of the log returns between the bars of the window,
``sqrt(sum((r - mean)^2) / (k - 1))`` of k returns (k is one less than the bars), as
``pandas.Series.std``. Default: 300s, or three bars where that is longer.

Warm-up: three bars over a horizon; over a number of bars, so many. Gaps: a return leads from each
bar to the next one there is, over any hole. 0 where the price is constant; NaN where a close is
zero.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import FeatureParameters, Interval
from market_data_core.contracts.feature import Feature, Floats, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments

BARS_LEAST = 3
"""Two returns are the fewest that can differ."""


class VolParameters(FeatureParameters):
    """Parameters of ``vol``."""

    horizon: Interval | None = Field(default="300s", description="How far back it looks.")


def vol(parameters: VolParameters, interval_ns: int) -> Feature:
    """The standard deviation of the returns in the window."""
    span = reach(parameters, interval_ns, BARS_LEAST)
    return over_window(("log_return",), span, deviation, BARS_LEAST)


def deviation(window: Window) -> Floats:
    """Shape (n,): the sample standard deviation of the window's log returns."""
    returns = moments(window, "log_return")
    result: Floats = np.sqrt(returns.second / (returns.number - 1))
    return result


BACKEND = Backend("vol", "Realised volatility per bar.", VolParameters, vol)
