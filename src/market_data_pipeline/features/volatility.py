"""Annualised volatility.

``vol * sqrt(year / interval)``: what the standard deviation of a year's return would be if returns
were independent. A year has ``year_days`` days of ``session_hours`` hours; the defaults are those
of a market that never closes, 252 and 6.5 those of American equities. Default: 300s, or three bars
where that is longer.

Warm-up and gaps: as of ``vol``. A return over a hole counts as one of a single bar, so holes make
the result too high.
"""

from __future__ import annotations

import math

from pydantic import Field

from market_data_core.contracts.feature import Feature
from market_data_core.intervals import NS_PER_S
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach
from market_data_pipeline.features.vol import BARS_LEAST, VolParameters, deviation


class VolatilityParameters(VolParameters):
    """Parameters of ``volatility``."""

    year_days: float = Field(
        default=365, gt=0, le=366, description="Trading days in a year, such as 252."
    )
    session_hours: float = Field(
        default=24, gt=0, le=24, description="Hours of trading in a day, such as 6.5."
    )


def volatility(parameters: VolatilityParameters, interval_ns: int) -> Feature:
    """The standard deviation of the returns in the window, scaled to a year."""
    year_ns = parameters.year_days * parameters.session_hours * 3_600 * NS_PER_S
    scale = math.sqrt(year_ns / interval_ns)
    span = reach(parameters, interval_ns, BARS_LEAST)
    return over_window(("log_return",), span, lambda window: deviation(window) * scale, BARS_LEAST)


BACKEND = Backend("volatility", "Annualised volatility.", VolatilityParameters, volatility)
