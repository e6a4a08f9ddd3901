"""Relative strength index.

``100 * gain / (gain + loss)`` with Wilder's averages of the rises and falls of the close, each
moving by 1 / n of the distance (Wilder 1978), as TA-Lib's RSI over the newest 10 * n changes: the
first averages are the means of the oldest n of them. What is older would weigh less than e^-9 in
all. Default: 14 bars.

Warm-up: n changes, so n + 1 bars; until there are 10 * n changes, over those there are. Gaps: bars
are counted as they are, over any hole. 50 where the price has not moved at all (TA-Lib: 0), so that
a quiet market counts as neither overbought nor oversold.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import BarCount, CountedParameters
from market_data_core.contracts.feature import Bars, Feature, Floats, Span
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula, bar_count, known
from market_data_pipeline.features._rolling import smoothed

WILDER_TERMS = 10
"""Length of the set of changes in lengths of the average."""


class WilderParameters(CountedParameters):
    """Parameters of ``rsi`` and ``atr``."""

    bars: BarCount | None = Field(default=14, description="Length of Wilder's average, n.")


def rsi(parameters: WilderParameters, _interval_ns: int) -> Feature:
    """The rises' share in the movement, in percent."""
    bars = bar_count(parameters)
    span = Span(bars=WILDER_TERMS * bars + 1)

    def index(seen: Bars) -> Floats:
        window = seen.window(span)
        close, changes = window.column("close"), window.counts - 1
        change = close[:-1] - close[1:]
        gain = smoothed(np.maximum(change, 0.0), changes, bars, 1 / bars)
        moved = smoothed(np.abs(change), changes, bars, 1 / bars)
        values = np.where(moved == 0, 50.0, 100 * (gain / moved))
        return known(values, changes >= bars)

    return Formula(("close",), span, index)


BACKEND = Backend("rsi", "Relative strength index.", WilderParameters, rsi)
