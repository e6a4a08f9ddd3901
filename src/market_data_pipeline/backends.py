"""The configured bus and store, opened by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from market_data_core import registry
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Store


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
        TransientError: a server cannot be reached.
    """
    clock = clock or SystemClock()
    bus: Bus = registry.backend("bus", settings.bus.type).create(settings.bus, clock)
    try:
        uri = settings.store.uri
        store: Store = registry.backend("store", uri.partition(":")[0]).create(uri, clock)
        try:
            await store.migrate()
            yield Backends(bus, store, clock)
        finally:
            await store.close()
    finally:
        await bus.close()
