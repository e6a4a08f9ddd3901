"""The configured bus and store, opened by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from market_data_core import registry
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Store
from market_data_pipeline.patience import patient
from market_data_store import opening


@dataclass(frozen=True, slots=True)
class Backends:
    """What a run works on."""

    bus: Bus
    store: Store
    clock: Clock


@asynccontextmanager
async def open_backends(
    settings: Settings,
    clock: Clock | None = None,
    *,
    wait: bool = True,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[Backends]:
    """The configured bus and store, ready for use, and closed at the end.

    Args:
        settings: the configuration.
        clock: tells the time.
        wait: whether to wait for a store that cannot be used yet. Whoever only looks should not.
        stop: once it is set, nobody wants to wait any more.

    Raises:
        TransientError: without `wait`, or after `stop`, the store cannot be used now.
        UsageError: a backend is not known, its driver is not installed, or a server's schema is
            of another release.
        DamagedFileError: a file is not what it should be.
    """
    clock = clock or SystemClock()
    bus = open_bus(settings, clock)
    try:
        uri = settings.store.uri
        call = partial(opening.open_ready_store, uri, clock)
        store = await (patient(call, stop=stop) if wait else call())
        try:
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
    return opening.open_store(settings.store.uri, clock)


def store_file(settings: Settings) -> Path | None:
    """The embedded store's file, whether it exists or not; None if the store is a server."""
    return opening.embedded_file(settings.store.uri)


def missing_store(settings: Settings) -> str:
    """For readers, who must create nothing: what to tell if there is no store yet, else ""."""
    file = store_file(settings)
    if file is None or (file.exists() and file.stat().st_size):
        return ""
    what = "is empty" if file.exists() else "does not exist"
    return f"no bars yet: {file} {what}; run mdp run FILE or mdp run --provider synthetic"
