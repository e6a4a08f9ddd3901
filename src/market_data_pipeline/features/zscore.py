"""Standard score of the close.

``(close - mean) / s`` with the sample standard deviation s of the closes in the window, as of
``pandas.Series.rolling``. Default: 20 bars.

Warm-up: so many bars; two over a horizon. Gaps: bars are counted as they are, over any hole. NaN
where the price is constant.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import BarCount, FeatureParameters
from market_data_core.contracts.feature import Feature, Floats, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments

_BARS_LEAST = 2


class ZscoreParameters(FeatureParameters):
    """Parameters of ``zscore``."""

    bars: BarCount | None = Field(default=20, description="Bars in the mean and the deviation.")


def zscore(parameters: ZscoreParameters, interval_ns: int) -> Feature:
    """How far the close is from its mean, in standard deviations."""
    span = reach(parameters, interval_ns, _BARS_LEAST)
    return over_window(("close",), span, _score, _BARS_LEAST)


def _score(window: Window) -> Floats:
    closes = moments(window, "close")
    score: Floats = closes.deviations[0] / np.sqrt(closes.second / (closes.number - 1))
    return score


BACKEND = Backend("zscore", "Standard score of the close.", ZscoreParameters, zscore)
