"""Average true range.

Wilder's average, moving by 1 / n of the distance, of ``max(high, previous close) - min(low,
previous close)`` (Wilder 1978), as TA-Lib's ATR over the newest 10 * n + 1 bars: the first average
is the mean of the oldest n ranges. What is older would weigh less than e^-9 in all. Default: 14
bars. In units of the price.

Warm-up: n + 1 bars; until there are 10 * n + 1, over those there are. Gaps: the previous close is
that of the bar before, over any hole.
"""

from __future__ import annotations

import numpy as np

from market_data_core.contracts.feature import Bars, Feature, Floats, Span
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula, bar_count, known
from market_data_pipeline.features._rolling import smoothed
from market_data_pipeline.features.rsi import WILDER_TERMS, WilderParameters


def atr(parameters: WilderParameters, _interval_ns: int) -> Feature:
    """The average range of a bar, steps between bars included."""
    bars = bar_count(parameters)
    span = Span(bars=WILDER_TERMS * bars + 1)

    def average(seen: Bars) -> Floats:
        window = seen.window(span)
        before, ranges = window.column("close")[1:], window.counts - 1
        highest = np.maximum(window.column("high")[:-1], before)
        lowest = np.minimum(window.column("low")[:-1], before)
        ranged = smoothed(highest - lowest, ranges, bars, 1 / bars)
        return known(ranged, ranges >= bars)

    return Formula(("high", "low", "close"), span, average)


BACKEND = Backend("atr", "Average true range.", WilderParameters, atr)
