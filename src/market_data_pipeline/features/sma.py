"""Simple moving average of the close.

``sum(close) / bars``. Default: 20 bars.

Warm-up: so many bars; none over a horizon, where the bars there are make the average. Gaps: bars
are counted as they are, over any hole.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import BarCount, FeatureParameters
from market_data_core.contracts.feature import Feature
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments


class SmaParameters(FeatureParameters):
    """Parameters of ``sma``."""

    bars: BarCount | None = Field(default=20, description="Bars in the average.")


def sma(parameters: SmaParameters, interval_ns: int) -> Feature:
    """The mean of the closes in the window."""
    span = reach(parameters, interval_ns)
    return over_window(("close",), span, lambda window: moments(window, "close").mean)


BACKEND = Backend("sma", "Simple moving average of the close.", SmaParameters, sma)
