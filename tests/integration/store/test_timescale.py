"""The PostgreSQL store where TimescaleDB is to be had; in no package registry, so rarely here.

The server's programs are those of TEST_POSTGRES_BIN, or found as for the other tests; it has to be
allowed to load the extension (``shared_preload_libraries``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from tests.servers.postgres import Server, running

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import WriteCounts
from market_data_core.tables import BARS, OPTIONS, SIGNALS, Policy, Select
from market_data_core.testing._store_owning import T0, S, batch
from market_data_core.testing._store_tables import START, as_stored, by_key, row, without
from market_data_store.backends.postgres import PostgresStore

DAY = 86_400
ROLLUPS = ["bars_1d", "bars_1h", "bars_1m", "bars_5m"]
CHUNKS = """SELECT hypertable_name, time_interval FROM timescaledb_information.dimensions
    WHERE hypertable_schema = current_schema() AND hypertable_name NOT LIKE '\\_%' ORDER BY 1"""
AGGREGATES = """SELECT view_name FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = current_schema() ORDER BY 1"""
MINUTES = "SELECT symbol, open, high, low, close, volume, trade_count FROM bars_1m ORDER BY ts"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("timescaledb") as server:
        if server is None:
            pytest.skip("no TimescaleDB: see its installation guide for this system's packages")
        server.query("CREATE EXTENSION timescaledb")
        yield server


@pytest.fixture
def uri(server: Server) -> str:
    return server.new_schema()


@pytest.fixture
async def store(uri: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(uri, ManualClock(T0))
    await store.migrate()
    yield store
    await store.close()


async def test_tables_become_hypertables(server: Server, uri: str, store: PostgresStore) -> None:
    assert await store.schema_behind() == 0
    found = [(name, interval.days) for name, interval in server.query(CHUNKS, uri)]
    assert found == [("bars_ohlcv", 7), ("options_snap", 7), ("signals", 7)]
    assert [name for (name,) in server.query(AGGREGATES, uri)] == ROLLUPS
    assert await store.policies() == [
        Policy("compression", "bars_ohlcv", 90, "timescaledb"),
        Policy("compression", "signals", 30, "timescaledb"),
        *(Policy("rollup", name, None, "timescaledb") for name in ROLLUPS),
    ]
    status = await store.inspect()
    assert "timescaledb" in status.extensions
    assert [(t.rows, t.first) for t in status.tables] == [(0, None)] * 6


async def test_compressed_bars_are_bars(server: Server, uri: str, store: PostgresStore) -> None:
    """Looked up, replaced, and new ones put among them."""
    await store.write_bars([batch(*(("A", t, 1.0, 1) for t in range(5_000)))])
    server.query("SELECT compress_chunk(c) FROM show_chunks('bars_ohlcv') AS c", uri)
    mixed = batch(("A", 0, 1.0, 1), ("A", 1, 2.0, 1), ("A", 5_000, 1.0, 1), ("B", 0, 1.0, 1))
    counts = await store.write_bars([mixed])
    assert counts == WriteCounts(inserted=2, updated=1, unchanged=1)
    assert len(await store.bars()) == 5_002
    assert (await store.bars("A", end=T0 + 2 * S))["close"].to_list() == [1.0, 2.0]
    tables = {t.table: t for t in (await store.inspect()).tables}
    assert (tables["bars_ohlcv"].first, tables["bars_ohlcv"].last) == (T0, T0 + 5_000 * S)


async def test_compressed_signals_are_signals(
    server: Server, uri: str, store: PostgresStore
) -> None:
    rows = [row(SIGNALS, i) for i in range(300)]
    await store.upsert(SIGNALS, rows)
    server.query("SELECT compress_chunk(c) FROM show_chunks('signals') AS c", uri)
    assert await store.upsert(SIGNALS, rows) == WriteCounts(unchanged=300)
    rows[7] = without(rows[7], value=9.0)
    rows.append(row(SIGNALS, 300))
    counts = WriteCounts(inserted=1, updated=1, unchanged=299)
    assert await store.upsert(SIGNALS, rows) == counts
    new = without(rows[9], state="retracted")
    assert await store.replace(SIGNALS, rows[9], new)
    assert not await store.replace(SIGNALS, rows[9], new)
    rows[9] = new
    assert as_stored(await store.select(Select(SIGNALS)), SIGNALS) == by_key(SIGNALS, rows)


async def test_roll_ups_follow_the_bars(server: Server, uri: str, store: PostgresStore) -> None:
    """Also what is refreshed already."""
    await store.write_bars([batch(*(("A", t, 1.0 + t, 2) for t in range(3)))])
    assert server.query(MINUTES, uri) == [("A", 1.0, 3.0, 1.0, 3.0, 12.0, 6)]
    server.query("CALL refresh_continuous_aggregate('bars_1m', NULL, NULL)", uri)
    assert server.query(MINUTES, uri) == [("A", 1.0, 3.0, 1.0, 3.0, 12.0, 6)]
    await store.write_bars([batch(("A", 2, 9.0, 2))])
    server.query("CALL refresh_continuous_aggregate('bars_1m', NULL, NULL)", uri)
    assert server.query(MINUTES, uri) == [("A", 1.0, 9.0, 1.0, 9.0, 24.0, 6)]


async def test_old_chunks_are_dropped(server: Server, uri: str, store: PostgresStore) -> None:
    """And old rows of the one that is to stay in part."""
    days = range(0, 60, 2)
    await store.write_bars(
        [batch(*(("A", d * DAY, 1.0, 1) for d in days), interval=i) for i in ("1s", "1m")]
    )
    rows = [row(OPTIONS, i, ts=START + timedelta(days=d)) for i, d in enumerate(days)]
    await store.upsert(OPTIONS, rows)
    server.query("SELECT compress_chunk(c) FROM show_chunks('bars_ohlcv') AS c", uri)
    assert await store.retain(BARS, T0 + 20 * DAY * S, "1m") == 10
    assert await store.retain(BARS, T0 + 40 * DAY * S) == 30
    assert await store.retain(OPTIONS, T0 + 40 * DAY * S) == 20
    assert len(await store.bars()) == 20
    assert as_stored(await store.select(Select(OPTIONS)), OPTIONS) == by_key(OPTIONS, rows[20:])
    chunks = "SELECT count(*) FROM show_chunks('bars_ohlcv')"
    assert server.query(chunks, uri)[0][0] <= 4


async def test_down_and_up_again(server: Server, uri: str, store: PostgresStore) -> None:
    """Plain tables and views with the same rows; and hypertables with them again."""
    rows = [row(SIGNALS, i) for i in range(30)]
    await store.upsert(SIGNALS, rows)
    await store.write_bars([batch(*(("A", t, 1.0 + t, 2) for t in range(3)))])
    bars = (await store.bars()).rows()
    await store.migrate_down(1)
    assert server.query(AGGREGATES, uri) == []
    assert (await store.bars()).rows() == bars
    await store.migrate()
    assert [name for (name,) in server.query(AGGREGATES, uri)] == ROLLUPS
    assert server.query(MINUTES, uri) == [("A", 1.0, 3.0, 1.0, 3.0, 12.0, 6)]
    await store.migrate_down(0)
    assert server.query(CHUNKS, uri) == []
    await store.migrate()
    assert len(await store.bars()) == 0


async def test_an_extension_that_comes_later_is_used(server: Server, uri: str) -> None:
    """What is stored by then is kept."""
    store = PostgresStore(uri, ManualClock(T0))
    server.query("DROP EXTENSION timescaledb CASCADE")
    try:
        await store.migrate()
        await store.write_bars([batch(*(("A", t, 1.0 + t, 2) for t in range(3)))])
        plain = server.query(MINUTES, uri)
        assert {p.by for p in await store.policies()} == {"view"}
        server.query("CREATE EXTENSION timescaledb")
        await store.migrate()
        assert len(await store.bars()) == 3
        assert server.query(MINUTES, uri) == plain
        assert {p.by for p in await store.policies()} == {"timescaledb"}
    finally:
        server.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
        await store.close()
