"""Excess kurtosis of log returns.

The adjusted coefficient G2 of the k returns between the bars of the window, ``(k - 1) / ((k - 2) *
(k - 3)) * (k * (k + 1) * sum(d^4) / sum(d^2)^2 - 3 * (k - 1))`` with d = r - mean (Joanes and Gill
1998), as ``pandas.Series.kurt`` and ``scipy.stats.kurtosis(bias=False)``: 0 for a normal
distribution. Default: 300s, or five bars where that is longer.

Warm-up: five bars over a horizon; over a number of bars, so many. Gaps: a return leads from each
bar to the next one there is. NaN where all returns are equal, as of a constant price.
"""

from __future__ import annotations

from market_data_core.contracts.feature import Feature, Floats, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments
from market_data_pipeline.features.vol import VolParameters

_BARS_LEAST = 5


def kurtosis(parameters: VolParameters, interval_ns: int) -> Feature:
    """The excess kurtosis of the returns in the window."""
    span = reach(parameters, interval_ns, _BARS_LEAST)
    return over_window(("log_return",), span, _kurtosis, _BARS_LEAST)


def _kurtosis(window: Window) -> Floats:
    returns = moments(window, "log_return")
    k = returns.number
    shape = k * (k + 1) * (returns.fourth / (returns.second * returns.second))
    result: Floats = (k - 1) / ((k - 2) * (k - 3)) * (shape - 3 * (k - 1))
    return result


BACKEND = Backend("kurtosis", "Excess kurtosis of log returns.", VolParameters, kurtosis)
