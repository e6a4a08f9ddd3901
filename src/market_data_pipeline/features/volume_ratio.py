"""Volume relative to the usual one.

``volume / mean volume`` of the bars before: so many of them, or those within the horizon. Default:
20 bars.

Warm-up: one bar more than are in the mean; over a horizon one bar before. Gaps: bars are counted as
they are; one that is missing is left out of the mean. NaN where the bars before have no volume.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from market_data_core.config import BarCount, FeatureParameters
from market_data_core.contracts.feature import Feature, Floats, Span, Window
from market_data_core.registry import Backend
from market_data_pipeline.features._family import over_window, reach

_BARS_LEAST = 2


class VolumeRatioParameters(FeatureParameters):
    """Parameters of ``volume_ratio``."""

    bars: BarCount | None = Field(default=20, description="Bars in the mean.")


def volume_ratio(parameters: VolumeRatioParameters, interval_ns: int) -> Feature:
    """The bar's volume as a multiple of the mean before it."""
    if parameters.bars is not None:
        span = Span(bars=parameters.bars + 1)
    else:
        span = reach(parameters, interval_ns, _BARS_LEAST)
    return over_window(("volume",), span, _ratio, _BARS_LEAST)


def _ratio(window: Window) -> Floats:
    volume = window.column("volume")
    mean = np.add.reduce(volume[1:], axis=0) / (window.counts - 1)
    ratio: Floats = volume[0] / mean
    return ratio


BACKEND = Backend(
    "volume_ratio", "Volume relative to the bars before.", VolumeRatioParameters, volume_ratio
)
