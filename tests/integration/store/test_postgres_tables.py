"""What only the PostgreSQL store can be asked about rows of its tables and their upkeep."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from psycopg.errors import FeatureNotSupported
from tests.integration.store.conftest import Open

from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import RejectedError, TransientError, UsageError
from market_data_core.tables import BARS, JOB_RUNS, NEWS, SIGNALS, Select, Table
from market_data_core.testing._store_owning import T0, S, batch
from market_data_core.testing._store_tables import START, each_table, row, without
from market_data_store.backends import _postgres_bars, _postgres_upkeep
from market_data_store.backends._postgres_rows import Rows
from market_data_store.backends.postgres import PostgresStore

if TYPE_CHECKING:
    from tests.servers.postgres import Server

READ_ONLY = "%20-cdefault_transaction_read_only%3Don"


# ---- rows ----------------------------------------------------------------------------------


@each_table
@pytest.mark.parametrize("count", [1, 500])
async def test_unchanged_rows_write_nothing(
    open_store: Open, postgres: Server, uri: str, table: Table, count: int
) -> None:
    """Not even a lock in the row; an update of one leaves the others alone."""
    store = open_store()
    await store.migrate()
    rows = [row(table, i) for i in range(count)]
    await store.upsert(table, rows)
    stored = f"SELECT ctid, xmin, xmax FROM {table.name} ORDER BY {', '.join(table.key)}"
    before = postgres.query(stored, uri)
    assert await store.upsert(table, rows) == WriteCounts(unchanged=count)
    assert postgres.query(stored, uri) == before
    name = table.values[0]
    rows[0] = without(rows[0], **{name: getattr(row(table, 1), name)})
    assert await store.upsert(table, rows) == WriteCounts(updated=1, unchanged=count - 1)
    changed = set(postgres.query(stored, uri)) - set(before)
    assert len(changed) == 1


async def test_parallel_writers_of_the_same_rows(open_store: Open) -> None:
    """New and changed, in whatever order they have them: nobody waits for ever."""
    stores = [open_store() for _ in range(4)]
    await stores[0].migrate()
    rng = np.random.default_rng(1)

    async def work(number: int) -> int:
        written = 0
        for n in range(12):
            rows = [row(SIGNALS, i, value=float(10 * n + number)) for i in range(40 * n + 40)]
            some = [rows[i] for i in rng.permutation(len(rows)).tolist()]
            counts = await stores[number].upsert(SIGNALS, some)
            assert counts.inserted + counts.updated + counts.unchanged == len(rows)
            written += counts.inserted
        return written

    assert sum(await asyncio.gather(*map(work, range(4)))) == 480
    assert len(await stores[0].select(Select(SIGNALS))) == 480


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        (NEWS, {"title": "a\0b"}),
        (NEWS, {"summary": "\ud800"}),
        (NEWS, {"title": 7}),
        (SIGNALS, {"metadata": {"a\0": 1}}),
        (SIGNALS, {"metadata": "text"}),
        (JOB_RUNS, {"rows_written": 2**63}),
        (JOB_RUNS, {"rows_written": 1.5}),
        (JOB_RUNS, {"rows_written": -1}),
        (JOB_RUNS, {"elapsed_ms": 2**64}),
    ],
)
async def test_what_postgres_cannot_hold_is_refused(
    open_store: Open, table: Table, changes: dict[str, Any]
) -> None:
    store = open_store()
    await store.migrate()
    rows = [row(table, i) for i in range(50)]
    rows[31] = without(rows[31], **changes)
    with pytest.raises(RejectedError, match=f"{table.name} .*31") as caught:
        await store.upsert(table, rows)
    assert caught.value.reason == "unwritable"
    assert len(await store.select(Select(table))) == 0
    good, bad = row(table, 31), rows[31]
    await store.upsert(table, [good])
    with pytest.raises(RejectedError):
        await store.replace(table, good, bad)


async def test_texts_that_cannot_be_stored_are_not_found(open_store: Open) -> None:
    store = open_store()
    await store.migrate()
    await store.upsert(NEWS, [row(NEWS)])
    wanted = Select(NEWS, {"symbol": ["a\0b", "\ud800", "symbol0"]})
    assert len(await store.select(wanted)) == 1
    with pytest.raises(UsageError, match=r"no column of texts 'published_at'.*symbol"):
        await store.select(Select(NEWS, {"published_at": ["x"]}))


# ---- bars ----------------------------------------------------------------------------------


_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


async def test_a_key_in_several_batches_is_locked_in_its_turn(
    open_store: Open, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only the last of them changes it: else two writers wait for each other."""
    store, other = open_store(), open_store()
    await store.migrate()
    await store.write_bars([batch(("X", 0, 1.0, 1), ("Y", 0, 1.0, 1))])
    real, others = _postgres_bars._update, list[asyncio.Task[WriteCounts]]()

    async def update(*arguments: Any) -> None:
        if not others:
            theirs = batch(("X", 0, 3.0, 9), ("Y", 0, 3.0, 9))
            others.append(asyncio.create_task(other.write_bars([theirs])))
            while postgres.query(_WAITING) == [(0,)]:
                await asyncio.sleep(0.01)
        await real(*arguments)

    monkeypatch.setattr(_postgres_bars, "_update", update)
    mine = [batch(("X", 0, 1.0, 1), ("Y", 0, 2.0, 1)), batch(("X", 0, 2.0, 1), ("Y", 0, 2.0, 1))]
    assert await store.write_bars(mine) == WriteCounts(updated=2, unchanged=2)
    assert await others[0] == WriteCounts(updated=2)


async def test_new_and_stored_bars_do_not_deadlock(open_store: Open) -> None:
    """One writer has the new ones in several batches, another has them beside the stored ones."""
    stores = [open_store() for _ in range(2)]
    await stores[0].migrate()
    old, new = [f"X{i}" for i in range(20)], [f"K{i}" for i in range(20)]
    await stores[0].write_bars([batch(*((s, 0, 1.0, 1) for s in old))])
    for t in range(1, 8):
        one = [
            batch(*((s, t, 1.0, 1) for s in new), *((s, 0, float(t), t) for s in old)),
            batch(*((s, t, 2.0, 2) for s in new), *((s, 0, t + 0.5, t) for s in old)),
        ]
        other = [batch(*((s, 0, t + 0.25, t) for s in old), *((s, t, 3.0, 1) for s in new))]
        done = await asyncio.gather(stores[0].write_bars(one), stores[1].write_bars(other))
        assert [sum((c.inserted, c.updated, c.unchanged, c.kept)) for c in done] == [80, 40]
    assert len(await stores[0].bars()) == 20 + 7 * 20


async def test_bars_that_cannot_be_locked_are_unpacked(
    open_store: Open, postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TimescaleDB's compressed rows, to which an INSERT has access; judged again after it."""
    real, replaced = _postgres_bars._found, list[WriteCounts]()
    store, other = open_store(), open_store()

    async def found(db: Any, rows: Rows, ranges: Any, statement: str) -> Any:
        if statement is _postgres_bars._LOCK:
            if not replaced:
                replaced.append(WriteCounts())
                replaced[0].add(await other.write_bars([batch(("A", 3, 9.0, 9))]))
            raise FeatureNotSupported
        return await real(db, rows, ranges, statement)

    monkeypatch.setattr(_postgres_bars, "_found", found)
    await store.migrate()
    await store.write_bars([batch(*(("A", t, 1.0, 2) for t in range(5)))])
    stored = "SELECT ts, created_at FROM bars_ohlcv ORDER BY ts"
    before = postgres.query(stored, uri)
    given = [("A", 0, 1.0, 2), ("A", 1, 2.0, 2), ("A", 2, 3.0, 1), ("A", 3, 2.0, 2)]
    counts = await store.write_bars([batch(*given, ("A", 9, 1.0, 1))])
    assert counts == WriteCounts(inserted=1, updated=1, unchanged=1, kept=2)
    assert replaced == [WriteCounts(updated=1)]
    assert (await store.bars())["close"].to_list() == [1.0, 2.0, 1.0, 9.0, 1.0, 1.0]
    assert postgres.query("SELECT close FROM bars_ohlcv_history", uri) == [(1.0,), (1.0,)]
    assert postgres.query(stored, uri)[: len(before)] == before


async def test_a_bar_that_is_deleted_meanwhile_is_written(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and locking, by retention."""
    store, other = open_store(), open_store()
    await store.migrate()
    await store.write_bars([batch(("A", 0, 1.0, 1), ("B", 9, 1.0, 1))])
    real = _postgres_bars._lock

    async def lock(*arguments: Any) -> None:
        await other.retain(BARS, T0 + 5 * S)
        await real(*arguments)

    monkeypatch.setattr(_postgres_bars, "_lock", lock)
    counts = await store.write_bars([batch(("A", 0, 2.0, 1), ("B", 9, 2.0, 1))])
    assert counts == WriteCounts(inserted=1, updated=1)
    assert (await store.bars())["close"].to_list() == [2.0, 2.0]


async def test_many_series_of_one_time_are_looked_up_together(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them, several times and intervals, and all as they were."""
    asked: list[int] = []
    real = _postgres_bars._found_at

    async def found(db: Any, rows: Rows, ranges: Any, some: Any) -> Any:
        asked.append(len(some))
        return await real(db, rows, ranges, some)

    monkeypatch.setattr(_postgres_bars, "_found_at", found)
    store = open_store()
    await store.migrate()
    some = batch(*((f"S{i:03}", 0, float(i), 1) for i in range(0, 100, 2)))
    await store.write_bars([some, replace(some, interval="1m")])
    assert await store.write_bars([some]) == WriteCounts(unchanged=50)
    assert asked == [50]
    both = [some, replace(some, interval="1m")]
    assert await store.write_bars(both) == WriteCounts(unchanged=100)
    assert asked == [50, 50, 50]
    more = batch(*((f"S{i:03}", 0, float(i // 3 * 3), 1) for i in range(100)))
    counts = await store.write_bars([more, batch(*((f"T{i}", 9, 1.0, 1) for i in range(20)))])
    kept = len(range(0, 100, 6))
    assert counts == WriteCounts(inserted=70, updated=50 - kept, unchanged=kept)
    assert sorted(asked[3:]) == [20, 100]
    frame = await store.select(Select(BARS, {"interval": ["1s"]}, end=T0 + S))
    assert frame["close"].to_list() == [float(i // 3 * 3) for i in range(100)]


# ---- reading -------------------------------------------------------------------------------


async def test_a_scan_holds_none_of_the_connections(open_store: Open, postgres: Server) -> None:
    """And lets go of its own, however it ends."""
    store = open_store("&pool_size=1&application_name=scanning")
    await store.migrate()
    await store.upsert(SIGNALS, [row(SIGNALS, i) for i in range(10)])
    mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'scanning'"
    async with aclosing(store.scan(Select(SIGNALS), 2)) as parts:
        async for _ in parts:
            assert await store.upsert(SIGNALS, [row(SIGNALS)]) == WriteCounts(unchanged=1)
            assert postgres.query(mine) == [(2,)]
            break
    for _ in range(200):
        if postgres.query(mine) == [(1,)]:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the scan's connection stays open")


# ---- ping ----------------------------------------------------------------------------------


async def test_ping_tells_whether_the_server_can_be_written(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_store().ping()
    with pytest.raises(TransientError, match="read-only"):
        await open_store(READ_ONLY).ping()
    with pytest.raises(TransientError):
        await PostgresStore("postgresql://postgres@127.0.0.1:1/postgres").ping()
    monkeypatch.setattr("market_data_store.backends.postgres._PING_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(TransientError, match="no answer"):
            await PostgresStore(f"postgresql://postgres@127.0.0.1:{port}/postgres").ping()


async def test_ping_does_not_wait_for_a_connection(open_store: Open) -> None:
    store = open_store("&pool_size=1")
    async with store._link.transaction():
        await store.ping()


# ---- upkeep --------------------------------------------------------------------------------


async def test_what_is_being_written_is_left_for_the_next_time(open_store: Open) -> None:
    """Retention waits for nobody."""
    store, other = open_store("&lock_timeout_ms=100"), open_store()
    await store.migrate()
    await store.upsert(SIGNALS, [row(SIGNALS, i) for i in range(10)])
    async with other._link.transaction() as db:
        await db.execute("UPDATE signals SET value = 9 WHERE name = 'name3'")
        assert await store.retain(SIGNALS, T0 + 100 * S) == 9
    assert await store.retain(SIGNALS, T0 + 100 * S) == 1


async def test_a_big_table_is_gone_through_part_by_part(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_upkeep, "_PAGES", 2)
    store = open_store()
    await store.migrate()
    rows = [row(NEWS, i, summary="x" * 200) for i in range(2_000)]
    await store.upsert(NEWS, rows)
    cut = START + timedelta(seconds=1_500)
    left = sum(r.published_at >= cut for r in rows)
    assert await store.retain(NEWS, T0 + 1_500 * S) == 2_000 - left
    assert len(await store.select(Select(NEWS))) == left


async def test_a_big_table_is_estimated(
    open_store: Open, postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_upkeep, "_COUNTED_BYTES_MAX", 0)
    store = open_store()
    await store.migrate()
    await store.upsert(SIGNALS, [row(SIGNALS, i) for i in range(1_000)])
    postgres.query("ANALYZE signals", uri)
    tables = {t.table: t for t in (await store.inspect()).tables}
    assert tables["signals"].rows == 1_000
    assert tables["signals"].size_bytes is not None
    assert tables["news"].rows == 0


# ---- bars ----------------------------------------------------------------------------------


async def test_more_series_than_are_remembered(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten is compared with what is stored."""
    monkeypatch.setattr(_postgres_bars, "_SERIES_MAX", 3)
    store = open_store()
    await store.migrate()
    for second, names in enumerate(("AB", "BCDE", "ABCDE")):
        new = [(name, second, 1.0, 1) for name in names]
        assert await store.write_bars([batch(*new)]) == WriteCounts(inserted=len(new))
    assert await store.write_bars([batch(*new)]) == WriteCounts(unchanged=5)
