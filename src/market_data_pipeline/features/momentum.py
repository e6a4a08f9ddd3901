"""Momentum: the simple return over a horizon.

``ret`` with a horizon of its own. Default: 60s, or one bar where bars are longer.

Warm-up and gaps: as of ``ret``.
"""

from __future__ import annotations

from pydantic import Field

from market_data_core.config import FeatureParameters, Interval
from market_data_core.contracts.feature import Feature
from market_data_core.registry import Backend
from market_data_pipeline.features._returns import since
from market_data_pipeline.features.ret import simple_return


class MomentumParameters(FeatureParameters):
    """Parameters of ``momentum``."""

    horizon: Interval | None = Field(default="60s", description="How far back the return goes.")


def momentum(parameters: MomentumParameters, interval_ns: int) -> Feature:
    """The return over the horizon."""
    return since(parameters, interval_ns, simple_return)


BACKEND = Backend("momentum", "Simple return over a minute.", MomentumParameters, momentum)
