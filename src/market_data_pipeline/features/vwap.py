"""Volume-weighted average price.

``sum(vwap * volume) / sum(volume)`` over the window, of each bar's own vwap: up to rounding the
price of all that was traded in it (Berkowitz, Logue and Noser 1988). Default: 60s.

Warm-up: none over a horizon; over a number of bars, so many. Gaps: a bar without volume weighs
nothing, and so does one that is missing. NaN where nothing was traded, and where a bar has volume
but no vwap (vendors' own bars).
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import FeatureParameters, Interval
from market_data_core.contracts.feature import Bars, Feature, Floats
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula, enough, known, reach


class VwapParameters(FeatureParameters):
    """Parameters of ``vwap``."""

    horizon: Interval | None = Field(default="60s", description="How far back it looks.")


def vwap(parameters: VwapParameters, interval_ns: int) -> Feature:
    """The average price of what was traded in the window."""
    span = reach(parameters, interval_ns)

    def average(bars: Bars) -> Floats:
        window, close = bars.window(span), bars.newest("close")
        volume = window.column("volume")
        # measured from the close, so that the average of a constant price is that price
        above = np.where(volume > 0, (window.column("vwap") - close) * volume, 0.0)
        values = close + np.add.reduce(above, axis=0) / np.add.reduce(volume, axis=0)
        return known(values, enough(window, span))

    return Formula(("vwap", "volume", "close"), span, average)


BACKEND = Backend("vwap", "Volume-weighted average price.", VwapParameters, vwap)
