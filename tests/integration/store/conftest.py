"""PostgreSQL stores in schemas of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from market_data_core.clock import ManualClock
from market_data_core.testing._store_owning import T0
from market_data_store.backends.postgres import PostgresStore

if TYPE_CHECKING:
    from tests.servers.postgres import Server

Open = Callable[..., PostgresStore]


@pytest.fixture
def uri(postgres: Server) -> str:
    """Of an empty schema."""
    return postgres.new_schema()


@pytest.fixture
async def open_store(uri: str) -> AsyncIterator[Open]:
    """Opens stores at `uri` with more parameters; they are closed at the end."""
    opened: list[PostgresStore] = []

    def open_one(more: str = "", clock: ManualClock | None = None) -> PostgresStore:
        opened.append(PostgresStore(uri + more, clock or ManualClock(T0)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()
