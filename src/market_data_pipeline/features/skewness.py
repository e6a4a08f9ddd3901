"""Skewness of log returns.

The adjusted Fisher-Pearson coefficient G1 of the k returns between the bars of the window,
``k * sqrt(k - 1) / (k - 2) * sum(d^3) / sum(d^2)^1.5`` with d = r - mean (Joanes and Gill 1998), as
``pandas.Series.skew`` and ``scipy.stats.skew(bias=False)``. Default: 300s, or four bars where that
is longer.

Warm-up: four bars over a horizon; over a number of bars, so many. Gaps: a return leads from each
bar to the next one there is. NaN where all returns are equal, as of a constant price.
"""

from __future__ import annotations

import numpy as np

from market_data_core.contracts.feature import Feature, Floats, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments
from market_data_pipeline.features.vol import VolParameters

_BARS_LEAST = 4


def skewness(parameters: VolParameters, interval_ns: int) -> Feature:
    """The skewness of the returns in the window."""
    span = reach(parameters, interval_ns, _BARS_LEAST)
    return over_window(("log_return",), span, _skewness, _BARS_LEAST)


def _skewness(window: Window) -> Floats:
    returns = moments(window, "log_return")
    k = returns.number
    spread = returns.second * np.sqrt(returns.second)
    result: Floats = k * np.sqrt(k - 1) / (k - 2) * (returns.third / spread)
    return result


BACKEND = Backend("skewness", "Skewness of log returns.", VolParameters, skewness)
