"""Moving average convergence divergence.

``macd = ema(fast) - ema(slow)``; its ``signal`` is the exponential average of it, its ``hist``
macd - signal (Appel 1979), as TA-Lib's MACD over the newest 5 * (slow + signal) bars: both averages
begin at the oldest ``slow`` bars, the fast one as the mean of the newest ``fast`` of them, and the
signal as the mean of the first ``signal`` differences. Default: 12, 26 and 9 bars.

Warm-up: slow + signal - 1 bars, for each line. Gaps: bars are counted as they are, over any hole.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from market_data_core.config import BarCount, CountedParameters
from market_data_core.contracts.feature import Bars, Feature, Floats, Span
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula, bar_count, known
from market_data_pipeline.features._rolling import smoothing
from market_data_pipeline.features.ema import TERMS, weight_of


class MacdParameters(CountedParameters):
    """Parameters of ``macd``."""

    bars: BarCount | None = Field(default=26, description="Length of the slow average.")
    fast: BarCount = Field(default=12, description="Length of the fast average, in bars.")
    signal: BarCount = Field(default=9, description="Length of the signal's average, in bars.")
    line: Literal["macd", "signal", "hist"] = Field(
        default="macd", description="The difference, its average, or what it is above that."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.fast >= bar_count(self):
            msg = f"fast ({self.fast}) must be less than bars ({self.bars}), the slow average's"
            raise ValueError(msg)
        return self


def macd(parameters: MacdParameters, _interval_ns: int) -> Feature:
    """One line of the indicator."""
    fast, slow, signal = parameters.fast, bar_count(parameters), parameters.signal
    span = Span(bars=TERMS * (slow + signal))

    def values(bars: Bars) -> Floats:
        window = bars.window(span)
        close, counts = window.column("close"), window.counts
        above = close - close[0]  # so that there is exactly no difference while prices stand still
        later = slow - fast  # the fast average begins with the slow one's newest bars
        difference = smoothing(above[: len(above) - later], counts - later, fast, weight_of(fast))
        difference -= smoothing(above, counts, slow, weight_of(slow))
        line = difference[0]
        if parameters.line != "macd":
            average = smoothing(difference, counts - (slow - 1), signal, weight_of(signal))[0]
            line = average if parameters.line == "signal" else line - average
        return known(line, counts >= slow + signal - 1)

    return Formula(("close",), span, values)


BACKEND = Backend("macd", "Moving average convergence divergence.", MacdParameters, macd)
