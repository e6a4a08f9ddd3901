"""How the SQLite store does what the suite asks: by the index, in small transactions, from 0001."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import DamagedFileError, RejectedError, TransientError
from market_data_core.tables import (
    BARS,
    FUNDAMENTALS,
    JOB_RUNS,
    NEWS,
    OPTIONS,
    SIGNALS,
    TABLES,
    Select,
    Table,
)
from market_data_core.testing._store_owning import T0, S, batch
from market_data_core.testing._store_tables import read, row
from market_data_store import sqlite_file
from market_data_store.backends import _sqlite_upkeep
from market_data_store.backends._sqlite_read import query
from market_data_store.backends.sqlite import SqliteStore
from market_data_store.migrations import migrations
from market_data_store.sqlite_file import ROWS_PER_STATEMENT

Open = Callable[[], SqliteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def open_store(path: Path) -> AsyncIterator[Open]:
    opened: list[SqliteStore] = []

    def open_one() -> SqliteStore:
        opened.append(SqliteStore(path, clock=ManualClock(T0)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: Open) -> SqliteStore:
    store = open_store()
    await store.migrate()
    return store


# ---- schema --------------------------------------------------------------------------------


async def test_a_file_of_the_first_schema_keeps_its_rows(open_store: Open, path: Path) -> None:
    store = open_store()
    first = migrations("sqlite")[0]
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{first.up}; PRAGMA user_version = 1")
        db.execute("INSERT INTO bars_ohlcv VALUES ('p','A','1s',5,1,1,1,1,2,NULL,3,'final',7,8)")
        db.execute("INSERT INTO sequences VALUES ('bars', 41)")
        db.commit()
        assert await store.schema_behind() == len(migrations("sqlite")) - 1
        await store.migrate()
        assert db.execute("SELECT * FROM sequences").fetchall() == [("bars", 41)]
    assert (await store.select(Select(BARS)))["trade_count"].to_list() == [3]
    assert await store.upsert(NEWS, [row(NEWS)]) == WriteCounts(inserted=1)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
async def test_the_key_and_the_nulls_are_as_told(
    store: SqliteStore, path: Path, table: Table
) -> None:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(f"PRAGMA table_info({table.name})").fetchall()
    types = {"number": "REAL", "count": "INTEGER", "time": "INTEGER"}
    assert [(name, kind, bool(required)) for _, name, kind, required, *_ in found] == [
        (c.name, types.get(c.kind, "TEXT"), not c.nullable) for c in table.columns
    ]
    keyed = sorted((place, name) for _, name, *_, place in found if place)
    assert tuple(name for _, name in keyed) == table.key


# ---- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        (SIGNALS, {"name": "half \ud800"}),
        (SIGNALS, {"value": "much"}),
        (OPTIONS, {"oi": 2**63}),
        (OPTIONS, {"oi": 1.5}),
        (OPTIONS, {"expiry": "2025-02-30"}),
        (OPTIONS, {"option_type": "X"}),
        (NEWS, {"sentiment_score": 1.01}),
        (NEWS, {"title": b"bytes"}),
        (JOB_RUNS, {"status": "lost"}),
        (JOB_RUNS, {"mode": "other"}),
        (JOB_RUNS, {"symbols": "A"}),
        (JOB_RUNS, {"rows_written": -1}),
        (FUNDAMENTALS, {"value": 1j}),
    ],
    ids=lambda given: getattr(given, "name", None) or str(given)[-40:],
)
async def test_a_value_that_does_not_fit_is_refused(
    store: SqliteStore, table: Table, changes: dict[str, Any]
) -> None:
    bad = row(table, 1, **changes)
    await store.upsert(table, [row(table, 1), row(table, 2)])
    before = await read(store, table)
    with pytest.raises(RejectedError, match=table.name):
        await store.upsert(table, [row(table), bad])
    if not changes.keys() & {*table.key}:
        with pytest.raises(RejectedError, match=table.name):
            await store.replace(table, row(table, 1), bad)
    assert await read(store, table) == before


async def test_unchanged_rows_are_not_written(store: SqliteStore, path: Path) -> None:
    rows = [row(JOB_RUNS, i) for i in range(1_000)]
    await store.upsert(JOB_RUNS, rows)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            """CREATE TRIGGER told BEFORE UPDATE ON job_runs
                BEGIN SELECT raise(ABORT, 'written'); END"""
        )
        db.commit()
    assert await store.upsert(JOB_RUNS, rows) == WriteCounts(unchanged=1_000)
    with pytest.raises(RejectedError, match="written"):
        await store.upsert(JOB_RUNS, [*rows, row(JOB_RUNS, 3, status="failure")])


async def test_a_time_is_exact(store: SqliteStore, path: Path) -> None:
    await store.upsert(NEWS, [row(NEWS, 1)])
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT published_at FROM news").fetchall() == [(T0 + S + 1_000,)]
    assert ROWS_PER_STATEMENT * 20 < 32_766  # the widest table, SQLite's default limit


async def test_who_cannot_write_is_told_to_wait(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, open_store: Open
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_MS", 50)
    store = open_store()
    await store.upsert(NEWS, [row(NEWS)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (
            store.ping(),
            store.upsert(NEWS, [row(NEWS, 1)]),
            store.replace(NEWS, row(NEWS), row(NEWS)),
            store.write_bars([batch(("A", 0, 1.0, 1))]),
            store.retain(NEWS, T0 + S),
            store.migrate_down(1),
        ):
            with pytest.raises(TransientError, match="locked by another process"):
                await call
        assert await read(store, NEWS) == [row(NEWS)]
        other.execute("ROLLBACK")
    await store.ping()


# ---- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        Select(BARS, {"symbol": ["A"]}),
        Select(BARS, {"symbol": ["A"], "interval": ["1s"]}, start=T0),
        Select(BARS, {"symbol": ["A"]}, last=1),
        Select(BARS, last=1),
        Select(BARS, {"symbol": ["A"]}, as_of=T0),
        Select(SIGNALS, {"symbol": ["A"]}, last=1),
        Select(OPTIONS, {"symbol": ["A"]}, last=1),
        Select(FUNDAMENTALS, last=1),
        Select(SIGNALS, start=T0),
        Select(SIGNALS, {"symbol": ["A"]}, end=T0),
        Select(NEWS, start=T0),
        Select(NEWS, {"symbol": ["A"]}, start=T0, end=T0),
        Select(JOB_RUNS, start=T0),
    ],
    ids=lambda what: f"{what.table.name}-{what.where}-{what.start}-{what.last}",
)
async def test_rows_are_found_by_an_index(store: SqliteStore, path: Path, what: Select) -> None:
    """No reading of a whole table for a few of its rows."""
    sql, values = query(what)
    with closing(sqlite3.connect(path)) as db:
        plan = [step for *_, step in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    aliases = ("b", "h", "t", "g", what.table.name)
    assert [step for step in plan if step.startswith("SCAN") and step.split()[1] in aliases] == []


async def test_a_name_with_a_zero_byte_is_found(store: SqliteStore) -> None:
    names = ["nul\0inside", "nul", "nul\0", "B"]
    await store.write_bars([batch(*((name, 0, 1.0, 1) for name in names))])
    for name in names:
        for last in (None, 1):
            found = await store.select(Select(BARS, {"symbol": [name, name]}, last=last))
            assert found["symbol"].to_list() == [name]
    assert len(await store.select(Select(BARS, {"symbol": [*names, "half \ud800"]}))) == 4


async def test_a_scan_lets_go_of_its_connection(store: SqliteStore, path: Path) -> None:
    """When it is done, given up, or cancelled: the log can be folded away afterwards."""
    await store.upsert(NEWS, [row(NEWS, i) for i in range(2_000)])
    assert len([part async for part in store.scan(Select(NEWS), 100)]) == 20
    async for _ in store.scan(Select(NEWS), 100):
        break
    scan = store.scan(Select(NEWS), 100)
    task = asyncio.ensure_future(anext(scan))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await scan.aclose()
    deadline = asyncio.get_running_loop().time() + 10
    while any(thread.name.startswith("store-scan") for thread in threading.enumerate()):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    with closing(sqlite3.connect(path)) as db:
        await store.upsert(NEWS, [row(NEWS, 9_999)])
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


async def test_a_scan_of_a_file_that_was_removed(store: SqliteStore, path: Path) -> None:
    path.unlink()
    with pytest.raises(DamagedFileError, match="removed or replaced"):
        [part async for part in store.scan(Select(NEWS))]
    assert not path.exists()


# ---- upkeep --------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [BARS, SIGNALS, NEWS], ids=lambda table: table.name)
async def test_deleting_leaves_room_for_writers(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    """Many rows go in many transactions, of about the same size."""
    monkeypatch.setattr(_sqlite_upkeep, "_DELETED_MAX", 50)
    if table is BARS:
        for close in (1.0, 2.0):
            rows = [(f"S{i % 3}", i // 3, close, 1) for i in range(1_000)]
            await store.write_bars([batch(*rows)])
    else:
        await store.upsert(table, [row(table, i, symbol=f"S{i % 3}") for i in range(1_000)])
    sizes, done = list[int](), _sqlite_upkeep.delete_some

    def delete_some(*args: Any) -> int:
        sizes.append(done(*args))
        return sizes[-1]

    monkeypatch.setattr("market_data_store.backends.sqlite.delete_some", delete_some)
    cut = T0 + 300 * S
    assert await store.retain(table, cut) == sum(sizes) == (900 if table is BARS else 300)
    assert max(sizes) <= 50
    assert len(sizes) < 30
    left = await store.select(Select(table))
    assert len(left) == (100 if table is BARS else 700)
    assert left[table.time].dt.epoch("ns").min() == cut + (0 if table is BARS else 300_000)
    if table is BARS:
        history = await store._rows("SELECT count(*), min(ts) FROM bars_ohlcv_history")
        assert history == [(100, cut)]


async def test_sizes_are_told_where_sqlite_can(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.upsert(NEWS, [row(NEWS, i) for i in range(2_000)])

    class Without:
        def execute(self, *_: Any) -> None:
            msg = "no such table: dbstat"
            raise sqlite3.OperationalError(msg)

    try:
        sizes = {t.table: t.size_bytes for t in (await store.inspect()).tables}
        ((pages,),) = await store._rows("PRAGMA page_count")
        ((page_size,),) = await store._rows("PRAGMA page_size")
    finally:
        assert _sqlite_upkeep._size(Without(), NEWS) is None  # type: ignore[arg-type]
    if sizes["news"] is not None:
        assert 100_000 < sizes["news"] < pages * page_size
