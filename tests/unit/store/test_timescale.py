"""The PostgreSQL store where TimescaleDB is to be had; in no package registry, so rarely here.

The server's programs are those of TEST_POSTGRES_BIN, or found as for the other tests; it has to be
allowed to load the extension (``shared_preload_libraries``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from tests.servers.postgres import Server, running

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import WriteCounts
from market_data_core.testing._store_owning import T0, FakeGroup, batch, claimed
from market_data_store.backends.postgres import PostgresStore
from market_data_store.migrations import migrations

TABLES = ("bars_1d", "bars_1h", "bars_1m", "bars_5m")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("timescaledb") as server:
        if server is None:
            pytest.skip("no TimescaleDB: see its installation guide for this system's packages")
        server.query("CREATE EXTENSION timescaledb")
        yield server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(server.new_schema(), ManualClock(T0))
    yield store
    await store.close()


async def test_bars_become_a_hypertable(server: Server, store: PostgresStore) -> None:
    """Also those that are there already; written, compressed, and written again they are bars."""
    await store.migrate()
    assert await store.schema_behind() == 0
    chunks = """SELECT time_interval FROM timescaledb_information.dimensions
        WHERE hypertable_name = 'bars_ohlcv'"""
    assert [row[0].days for row in server.query(chunks)] == [7]
    views = "SELECT view_name FROM timescaledb_information.continuous_aggregates ORDER BY 1"
    assert tuple(name for (name,) in server.query(views)) == TABLES
    group = FakeGroup(await claimed(store), [batch(*(("A", t, 1.0, 1) for t in range(500)))])
    assert (await store.commit([group], [])).counts == WriteCounts(inserted=500)
    server.query("SELECT compress_chunk(c) FROM show_chunks('bars_ohlcv') AS c")
    mixed = batch(("A", 0, 1.0, 1), ("A", 1, 2.0, 1), ("A", 500, 1.0, 1), ("B", 0, 1.0, 1))
    group = replace(group.next(), bars=[mixed])
    counts = (await store.commit([group], [])).counts
    assert counts == WriteCounts(inserted=2, updated=1, unchanged=1)
    assert len(await store.bars()) == 502


async def test_down_again(server: Server, store: PostgresStore) -> None:
    await store.migrate()
    async with store._link.transaction() as db:
        for step in reversed(migrations("timescale")):
            await db.execute(step.down.encode())
    assert len(await store.bars()) == 0
