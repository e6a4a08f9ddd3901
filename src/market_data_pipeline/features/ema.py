"""Exponential moving average of the close.

``average += 2 / (n + 1) * (close - average)`` (Hunter 1986), as TA-Lib's EMA over the newest 5 * n
bars: the first average is the mean of the oldest n of them. What is older would weigh less than
e^-9 in all. Default: 20 bars.

Warm-up: n bars; until there are 5 * n, over those there are. Gaps: bars are counted as they are,
over any hole.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import BarCount, CountedParameters
from market_data_core.contracts.feature import Bars, Feature, Floats, Span
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula, bar_count, known
from market_data_pipeline.features._rolling import smoothed

TERMS = 5
"""Length of the set of bars in lengths of the average."""


class EmaParameters(CountedParameters):
    """Parameters of ``ema``."""

    bars: BarCount | None = Field(default=20, description="Length of the average, n.")


def ema(parameters: EmaParameters, _interval_ns: int) -> Feature:
    """The exponential average of the closes."""
    bars = bar_count(parameters)
    span = Span(bars=TERMS * bars)

    def average(seen: Bars) -> Floats:
        window = seen.window(span)
        close = window.column("close")
        # measured from the newest close, so that the average of a constant price is that price
        above = smoothed(close - close[0], window.counts, bars, weight_of(bars))
        return known(close[0] + above, window.counts >= bars)

    return Formula(("close",), span, average)


def weight_of(bars: int) -> float:
    """The newest close's weight in an average of the length `bars`."""
    return 2 / (bars + 1)


BACKEND = Backend("ema", "Exponential moving average of the close.", EmaParameters, ema)
