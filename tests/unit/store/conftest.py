"""Stores for the tests of what is built on the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from market_data_store.opening import open_store

if TYPE_CHECKING:
    from tests.servers.postgres import Server


@pytest.fixture(params=["sqlite", "postgres"])
async def any_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store with its schema, of each backend in turn."""
    if request.param == "sqlite":
        uri = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        server: Server = request.getfixturevalue("postgres")
        uri = server.new_schema()
    store = open_store(uri)
    await store.migrate()
    await store.close()
    return uri
