"""Capture, windows and delivery: from a provider to committed bars. Knows no SQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.providers.mock import MockProvider
    from market_data_pipeline.routing.rate import RateCoordinator
    from market_data_pipeline.routing.router import ProviderRouter

_MODULES = {
    "MockProvider": "market_data_pipeline.providers.mock",
    "ProviderRouter": "market_data_pipeline.routing.router",
    "RateCoordinator": "market_data_pipeline.routing.rate",
}
"""Public name -> where it is; imported when it is asked for, since ``mdp --help`` needs none."""

__all__ = ["MockProvider", "ProviderRouter", "RateCoordinator"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_MODULES[name]), name)
