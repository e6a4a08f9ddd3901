"""From a URI to a store: the one place that tells which backend a URI means."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from market_data_core import registry
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import StoreSettings
from market_data_core.contracts.store import Store
from market_data_core.errors import UsageError
from market_data_core.redaction import redact

_SQLITE = "sqlite:///"
_SCHEMES = {"postgresql": "postgres"}
"""Schemes of URIs that are not the name of their backend."""


def default_uri() -> str:
    """The store that an application means when it names none.

    ``MDS_DSN``, else ``MDP_STORE_URI``, else ``store.db`` in ``MDP_HOME`` (``.mdp``).
    """
    return os.environ.get("MDS_DSN") or StoreSettings().uri


def embedded_file(uri: str) -> Path | None:
    """The file of an embedded store, whether it exists or not; None if the store is a server."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def open_store(uri: str, clock: Clock | None = None) -> Store:
    """The store as it is; the caller migrates and closes it. May block.

    Raises:
        UsageError: the backend is not known, or its driver is not installed.
        DamagedFileError: the file is not what it should be.
    """
    scheme = uri.partition(":")[0]
    created: Store = registry.backend("store", _SCHEMES.get(scheme, scheme)).create(
        uri, clock or SystemClock()
    )
    return created


async def open_ready_store(uri: str, clock: Clock | None = None) -> Store:
    """The store with this release's schema; the caller closes it.

    An embedded store is migrated, and so is a server's database that has no schema of ours yet. A
    server's schema that others may be using is its operator's to change.

    Raises:
        UsageError: as :func:`open_store`, or a server's schema is of another release.
        DamagedFileError: the file is not what it should be.
        TransientError: the store cannot be used now.
    """
    store = await asyncio.to_thread(open_store, uri, clock)
    try:
        # asked before how far it is behind: another process may be making it just now
        made = embedded_file(uri) is None and (await store.inspect()).schema
        steps = await store.schema_behind()
        if steps and made:
            behind = "1 step" if steps == 1 else f"{steps} steps"
            msg = (
                f"the schema of {redact(uri)} is {behind} behind this release; "
                "run: mdp store migrate"
            )
            raise UsageError(msg)
        if steps:
            await store.migrate()
    except BaseException:
        await store.close()
        raise
    return store
