"""The store suite, over every store that the registry lists."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core import registry
from market_data_core.clock import Clock
from market_data_core.contracts.store import Store
from market_data_core.testing.store_suite import OpenStore, Query, StoreSuite

if TYPE_CHECKING:
    from tests.servers.postgres import Server


@dataclass(frozen=True)
class Database:
    """An empty database of its own for one test."""

    uri: str
    query: Query


def _sqlite(request: pytest.FixtureRequest) -> Database:
    path = request.getfixturevalue("tmp_path") / "store.db"

    def query(sql: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as db:
            return db.execute(sql).fetchall()

    return Database(f"sqlite:///{path}", query)


def _postgres(request: pytest.FixtureRequest) -> Database:
    server: Server = request.getfixturevalue("postgres")
    uri = server.new_schema()
    return Database(uri, lambda sql: server.query(sql, uri))


# A backend without an entry here fails its tests.
DATABASES: dict[str, Callable[[pytest.FixtureRequest], Database]] = {
    "postgres": _postgres,
    "sqlite": _sqlite,
}


class TestStore(StoreSuite):
    @pytest.fixture(params=registry.backends("store"))
    def database(self, request: pytest.FixtureRequest) -> tuple[str, Database]:
        return request.param, DATABASES[request.param](request)

    @pytest.fixture
    def query(self, database: tuple[str, Database]) -> Query:
        return database[1].query

    @pytest.fixture
    async def open_store(self, database: tuple[str, Database]) -> AsyncIterator[OpenStore]:
        name, where = database
        opened: list[Store] = []

        def open_one(clock: Clock) -> Store:
            store: Store = registry.backend("store", name).create(where.uri, clock)
            opened.append(store)
            return store

        yield open_one
        for store in opened:
            await store.close()
