"""Simple return.

``(close - earlier) / earlier``. Default: since the bar before; with ``bars: n`` since n bars
before; with a horizon since the close as of the horizon ago.

Warm-up: that earlier close. Gaps: bars are counted as they are, over any hole. Over a horizon the
earlier close is that of the newest bar that begins at least the horizon before, and NaN if that
begins twice as long before, or longer. NaN where the earlier close is zero.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import BarCount, FeatureParameters
from market_data_core.contracts.feature import Feature, Floats
from market_data_core.registry import Backend
from market_data_pipeline.features._returns import since


class RetParameters(FeatureParameters):
    """Parameters of ``ret``."""

    bars: BarCount | None = Field(default=1, description="Since how many bars before.")


def ret(parameters: FeatureParameters, interval_ns: int) -> Feature:
    """The return since the bar before, or as parameters say."""
    return since(parameters, interval_ns, simple_return)


def simple_return(close: Floats, earlier: Floats) -> Floats:
    """Shape (n,): by how much `close` is above `earlier`, as a fraction of it."""
    return (close - earlier) / earlier


BACKEND = Backend("ret", "Simple return since the bar before.", RetParameters, ret)
