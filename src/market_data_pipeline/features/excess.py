"""Return in excess of an index.

The simple return of the close since an earlier one, minus that of the index between the same two
bars: its closes as of either. Default: over 60s, or one bar where that is longer.

Warm-up and gaps: as ``ret``. NaN where the index had no bar in the five minutes (five bars, if
longer) up to either of the two.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import IndexParameters, Interval
from market_data_core.contracts.feature import Bars, Feature, Floats, index_column
from market_data_core.registry import Backend
from market_data_pipeline.features._family import Formula
from market_data_pipeline.features._returns import earlier
from market_data_pipeline.features.ret import simple_return


class ExcessParameters(IndexParameters):
    """Parameters of ``excess``."""

    horizon: Interval | None = Field(default="60s", description="Since how long ago.")


def excess(parameters: ExcessParameters, interval_ns: int) -> Feature:
    """By how much the return is above that of the index."""
    span, before = earlier(parameters, interval_ns)
    index = index_column(parameters.index)

    def values(bars: Bars) -> Floats:
        own = simple_return(bars.newest("close"), before(bars, "close"))
        return own - simple_return(bars.newest(index), before(bars, index))

    return Formula(("close", index), span, values)


BACKEND = Backend("excess", "Return in excess of an index.", ExcessParameters, excess)
