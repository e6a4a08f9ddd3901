"""The configured bus and store, opened by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from market_data_core import registry
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Store
from market_data_pipeline.patience import patient

_SQLITE = "sqlite:///"
_SCHEMES = {"postgresql": "postgres"}
"""Schemes of URIs that are not the name of their backend."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What a run works on."""

    bus: Bus
    store: Store
    clock: Clock


@asynccontextmanager
async def open_backends(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Backends]:
    """The configured bus and store, migrated, and closed at the end.

    Raises:
        UsageError: a backend is not known, or its driver is not installed.
        DamagedFileError: a file is not what it should be.
    """
    clock = clock or SystemClock()
    bus = open_bus(settings, clock)
    try:
        store = await patient(lambda: asyncio.to_thread(open_store, settings, clock))
        try:
            await patient(store.migrate)
            yield Backends(bus, store, clock)
        finally:
            await store.close()
    finally:
        await bus.close()


def open_bus(settings: Settings, clock: Clock | None = None) -> Bus:
    """The configured bus; the caller closes it. The embedded one creates nothing by itself.

    Raises:
        UsageError: the backend is not known, or its driver is not installed.
    """
    created: Bus = registry.backend("bus", settings.bus.type).create(
        settings.bus, clock or SystemClock()
    )
    return created


def open_store(settings: Settings, clock: Clock | None = None) -> Store:
    """The configured store as it is; the caller migrates and closes it.

    Raises:
        UsageError: the backend is not known, or its driver is not installed.
        DamagedFileError: the file is not what it should be.
    """
    uri = settings.store.uri
    scheme = uri.partition(":")[0]
    created: Store = registry.backend("store", _SCHEMES.get(scheme, scheme)).create(
        uri, clock or SystemClock()
    )
    return created


def store_file(settings: Settings) -> Path | None:
    """The embedded store's file, whether it exists or not; None if the store is a server."""
    uri = settings.store.uri
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def missing_store(settings: Settings) -> str:
    """For readers, who must create nothing: what to tell if there is no store yet, else ""."""
    file = store_file(settings)
    if file is None or (file.exists() and file.stat().st_size):
        return ""
    what = "is empty" if file.exists() else "does not exist"
    return f"no bars yet: {file} {what}; run mdp run FILE or mdp run --provider synthetic"
