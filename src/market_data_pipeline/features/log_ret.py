"""Logarithmic return.

``ln(close / earlier)``, the earlier close as in ``ret``; returns of consecutive bars add up to that
over all of them. Default: since the bar before.

Warm-up and gaps: as of ``ret``. NaN where one of the closes is zero.
"""

from __future__ import annotations

from market_data_core.contracts.feature import Feature
from market_data_core.registry import Backend
from market_data_pipeline.features._log import log
from market_data_pipeline.features._returns import since
from market_data_pipeline.features.ret import RetParameters


def log_ret(parameters: RetParameters, interval_ns: int) -> Feature:
    """The return since the bar before, or as parameters say."""
    return since(parameters, interval_ns, lambda close, earlier: log(close / earlier))


BACKEND = Backend("log_ret", "Logarithmic return since the bar before.", RetParameters, log_ret)
