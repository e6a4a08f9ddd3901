"""The database: the only place with SQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_store._client_sync import StoreClient
    from market_data_store._fingerprint import compute_config_fingerprint
    from market_data_store.client import AsyncStoreClient
    from market_data_store.jobs import JobRunTracker
    from market_data_store.signals import SignalsStoreClient

_MODULES = {
    "AsyncStoreClient": "market_data_store.client",
    "JobRunTracker": "market_data_store.jobs",
    "SignalsStoreClient": "market_data_store.signals",
    "StoreClient": "market_data_store._client_sync",
    "compute_config_fingerprint": "market_data_store._fingerprint",
}
"""Public name -> where it is; imported when it is asked for, since ``mdp --help`` needs none."""

__all__ = [
    "AsyncStoreClient",
    "JobRunTracker",
    "SignalsStoreClient",
    "StoreClient",
    "compute_config_fingerprint",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_MODULES[name]), name)
