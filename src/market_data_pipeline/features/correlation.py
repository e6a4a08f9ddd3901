"""Correlation with an index (Pearson 1895).

``Σ(x - mean x)(y - mean y) / √(Σ(x - mean x)² Σ(y - mean y)²)`` of the same pairs of returns as
``beta``, as ``scipy.stats.pearsonr``. Default: 300s, or three bars where that is longer.

Warm-up and gaps: as ``beta``. NaN where either has not moved.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import IndexParameters, Interval
from market_data_core.contracts.feature import Feature, Floats
from market_data_core.registry import Backend
from market_data_pipeline.features._pairs import Products, over_pairs


class CorrelationParameters(IndexParameters):
    """Parameters of ``correlation``."""

    horizon: Interval | None = Field(default="300s", description="How far back it looks.")


def correlation(parameters: CorrelationParameters, interval_ns: int) -> Feature:
    """How closely the symbol moves with the index, from -1 to 1."""
    return over_pairs(parameters, interval_ns, _coefficient)


def _coefficient(sums: Products) -> Floats:
    root: Floats = np.sqrt(sums.own) * np.sqrt(sums.index)  # their product may underflow
    clipped: Floats = np.clip(sums.both / root, -1.0, 1.0)  # the last bit may lie beyond
    return clipped


BACKEND = Backend("correlation", "Correlation with an index.", CorrelationParameters, correlation)
