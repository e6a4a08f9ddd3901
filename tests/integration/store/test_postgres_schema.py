"""How the PostgreSQL store's schema goes up and down, with the steps of an extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.store.conftest import Open

from market_data_core.tables import SIGNALS, TABLES, Select
from market_data_core.testing._store_owning import batch
from market_data_core.testing._store_tables import row
from market_data_store.backends import _postgres_schema
from market_data_store.migrations import migrations

if TYPE_CHECKING:
    from tests.servers.postgres import Server

APACHE = "%20-ctimescaledb.license%3Dapache"


def _like_timescale(postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are taken, with something in the place of its functions."""
    monkeypatch.setattr(_postgres_schema, "EXTENSIONS", {"plpgsql": "timescale"})
    postgres.query(
        """CREATE FUNCTION create_hypertable(text, text, chunk_time_interval interval,
            create_default_indexes bool, migrate_data bool, if_not_exists bool)
            RETURNS void LANGUAGE sql AS ''""",
        uri,
    )


async def test_steps_of_an_extension_rest_on_others(
    open_store: Open, postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken back before those, and no further than they have to be; rows are kept."""
    store = open_store(APACHE)
    await store.migrate()
    await store.write_bars([batch(("A", 0, 1.0, 1), ("A", 1, 2.0, 1))])
    await store.upsert(SIGNALS, [row(SIGNALS)])
    _like_timescale(postgres, uri, monkeypatch)
    assert await store.schema_behind() == 4
    await store.migrate()
    taken = "SELECT dialect, max(number) FROM mdp_schema GROUP BY 1 ORDER BY 1"
    assert postgres.query(taken, uri) == [("postgres", 2), ("timescale", 4)]
    await store.migrate_down(1)
    assert postgres.query(taken, uri) == [("postgres", 1), ("timescale", 2)]
    await store.migrate()
    assert postgres.query(taken, uri) == [("postgres", 2), ("timescale", 4)]
    assert postgres.query("SELECT close FROM bars_1m", uri) == [(2.0,)]
    await store.migrate_down(0)
    assert postgres.query(taken, uri) == []
    await store.migrate()
    assert [t.rows for t in (await store.inspect()).tables] == [0] * len(TABLES)


async def test_going_back_to_plain_tables_keeps_rows_and_indexes(
    open_store: Open, postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(APACHE)
    await store.migrate()
    indexes = """SELECT indexname, indexdef FROM pg_indexes
        WHERE schemaname = current_schema() ORDER BY 1"""
    before = postgres.query(indexes, uri)
    await store.upsert(SIGNALS, [row(SIGNALS, i) for i in range(20)])
    rows = (await store.select(Select(SIGNALS))).rows()
    last = migrations("timescale")[-1]
    postgres.query(last.down, uri)
    assert postgres.query(indexes, uri) == before
    assert (await store.select(Select(SIGNALS))).rows() == rows


async def test_roll_ups_of_an_earlier_release_are_left_alone(
    open_store: Open, postgres: Server, uri: str
) -> None:
    """They may be continuous aggregates, made before there were such views."""
    store = open_store()
    await store.migrate()
    await store.migrate_down(1)
    postgres.query("CREATE MATERIALIZED VIEW bars_1h AS SELECT 1 AS theirs", uri)
    await store.migrate()
    assert postgres.query("SELECT theirs FROM bars_1h", uri) == [(1,)]
    assert [p.table for p in await store.policies()] == ["bars_1d", "bars_1m", "bars_5m"]
