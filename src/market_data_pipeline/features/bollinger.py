"""Bollinger bands.

``sma +- width * s`` with the population standard deviation s of the closes in the window (Bollinger
2001), as TA-Lib's BBANDS. Lines: ``upper`` and ``lower``, in units of the price; ``percent_b``,
``(close - lower) / (upper - lower)``; ``bandwidth``, ``(upper - lower) / sma``. The middle is
``sma``. Default: percent_b over 20 bars, 2 wide.

Warm-up: so many bars; two over a horizon. Gaps: bars are counted as they are, over any hole. Of a
constant price both bands are the price, the bandwidth is 0, and percent_b is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from market_data_core.config import BarCount, FeatureParameters
from market_data_core.contracts.feature import Feature, Floats, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features._rolling import moments

_BARS_LEAST = 2
_LINES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "percent_b": lambda close, mean, half: (close - mean + half) / (2 * half),
    "upper": lambda _close, mean, half: mean + half,
    "lower": lambda _close, mean, half: mean - half,
    "bandwidth": lambda _close, mean, half: 2 * half / mean,
}


class BollingerParameters(FeatureParameters):
    """Parameters of ``bollinger``."""

    bars: BarCount | None = Field(default=20, description="Bars in the average.")
    width: float = Field(
        default=2, gt=0, le=100, description="Distance of the bands, in standard deviations."
    )
    line: Literal["percent_b", "upper", "lower", "bandwidth"] = Field(
        default="percent_b", description="Place between the bands, a band, or their distance."
    )


def bollinger(parameters: BollingerParameters, interval_ns: int) -> Feature:
    """One line of the bands."""
    line = _LINES[parameters.line]

    def values(window: Window) -> Floats:
        closes = moments(window, "close")
        half = parameters.width * np.sqrt(closes.second / closes.number)
        return line(window.column("close")[0], closes.mean, half)

    span = reach(parameters, interval_ns, _BARS_LEAST)
    return over_window(("close",), span, values, _BARS_LEAST)


BACKEND = Backend("bollinger", "Bollinger bands.", BollingerParameters, bollinger)
