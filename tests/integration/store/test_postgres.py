"""What only the PostgreSQL store can be asked: its schema, its URI, and what it does not write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.integration.store.conftest import Open

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import Gap, WriteCounts
from market_data_core.errors import TransientError, UsageError
from market_data_core.testing._store_owning import (
    T0,
    FakeGroup,
    S,
    batch,
    claimed,
    key,
)
from market_data_store.backends import _postgres_bars
from market_data_store.backends._postgres_link import Options, parse
from market_data_store.backends._postgres_rows import Rows
from market_data_store.backends.postgres import PostgresStore
from market_data_store.migrations import migrations

if TYPE_CHECKING:
    from tests.servers.postgres import Server

ROWS = "SELECT symbol, ctid, xmin, xmax, close FROM bars_ohlcv ORDER BY symbol, ts"


async def ready(store: PostgresStore) -> FakeGroup:
    """A migrated store; returns a group that may write."""
    await store.migrate()
    return FakeGroup(await claimed(store))


async def write(
    store: PostgresStore, group: FakeGroup, *bars: BarBatch
) -> tuple[FakeGroup, WriteCounts]:
    group = replace(group, bars=bars)
    counts = (await store.commit([group], [])).counts
    return group.next(), counts


# ---- schema --------------------------------------------------------------------------------


async def test_the_schema_goes_up_and_down(open_store: Open, postgres: Server, uri: str) -> None:
    count = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    store = open_store()
    await ready(store)
    for step in reversed(migrations("postgres")):
        postgres.query(step.down, uri)
    postgres.query("DROP TABLE mdp_schema", uri)
    assert postgres.query(count, uri) == [(0,)]
    await store.migrate()
    assert await store.bars() is not None
    assert await store.schema_behind() == 0


async def test_a_newer_schema_is_refused(open_store: Open, postgres: Server, uri: str) -> None:
    store = open_store()
    await ready(store)
    postgres.query("INSERT INTO mdp_schema VALUES ('postgres', 99, 'x')", uri)
    for call in (store.migrate, store.schema_behind):
        with pytest.raises(UsageError, match=r"has schema 99.*use a newer release"):
            await call()


async def test_no_schema_is_said_so(open_store: Open) -> None:
    with pytest.raises(UsageError, match="migrate it"):
        await open_store().bars()


# ---- URI -----------------------------------------------------------------------------------


def test_our_own_parameters_are_taken_out() -> None:
    dsn, options = parse(
        "postgresql://u:p%40ss@h:1/d?pool_size=2&sslmode=require&statement_timeout_ms=7"
        "&application_name=mine"
    )
    assert options == Options(pool_size=2, statement_timeout_ms=7)
    for part in ("sslmode=require", "application_name=mine", "fallback_application_name=mdp"):
        assert part in dsn
    assert "pool_size" not in dsn
    assert "password=p@ss" in dsn
    assert parse("postgres://h/d")[1] == Options()


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "\u00b2"])
def test_a_wrong_number_is_named(value: str) -> None:
    with pytest.raises(UsageError, match="pool_size"):
        parse(f"postgresql://h/d?pool_size={value}")


def test_a_wrong_parameter_is_named_without_the_password() -> None:
    with pytest.raises(UsageError, match="ssl_mode") as caught:
        parse("postgresql://u:geheim@h/d?ssl_mode=require")
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_no_password_is_shown(
    postgres: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    cases = [
        (f"postgresql://nobody:geheim@127.0.0.1:{postgres.port}/postgres", UsageError),
        (f"postgresql://postgres:geheim@127.0.0.1:{postgres.port}/no_such", UsageError),
        ("postgresql://postgres:geheim@127.0.0.1:1/postgres", TransientError),
    ]
    for uri, kind in cases:
        store = PostgresStore(uri)
        with pytest.raises(kind) as caught:
            await store.schema_behind()
        assert "geheim" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
        assert "127.0.0.1" in str(caught.value)
    assert "geheim" not in caplog.text + "".join(capfd.readouterr())


async def test_connections_say_who_they_are_and_are_few(open_store: Open, postgres: Server) -> None:
    store = open_store("&pool_size=2")
    await store.migrate()
    mine = """SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mdp'
        AND backend_type = 'client backend'"""
    before = postgres.query(mine)[0][0]
    await asyncio.gather(*(store.status() for _ in range(20)))
    assert postgres.query(mine)[0][0] <= before + 1
    await store.close()
    for _ in range(100):
        if postgres.query(mine)[0][0] < before:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("connections stay open")


# ---- bars ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 199, 200, 1_000])
async def test_unchanged_bars_write_nothing(
    open_store: Open, postgres: Server, uri: str, rows: int
) -> None:
    """Not even a lock in the row."""
    store = open_store()
    group = await ready(store)
    bars = batch(*((f"S{i % 7}", i, 1.0 + i, 1) for i in range(rows)))
    group, counts = await write(store, group, bars)
    assert counts == WriteCounts(inserted=rows)
    before = postgres.query(ROWS, uri)
    group, counts = await write(store, group, bars)
    assert counts == WriteCounts(unchanged=rows)
    assert postgres.query(ROWS, uri) == before


async def test_all_ways_into_the_table_store_the_same(open_store: Open) -> None:
    """Copied, inserted, and replaced; with names of all lengths and values that are not known."""
    rng = np.random.default_rng(5)
    symbols = ["A", "ÄÖ", "LONGER" * 9, "B/C:D"]
    rows = [(symbols[i % 4], i // 4, float(rng.normal()), int(i % 5) - 1) for i in range(400)]
    whole = batch(*rows)
    vwap = whole.vwap.copy()
    vwap[::3] = np.nan
    whole = replace(whole, vwap=vwap)
    frames = []
    for part in (400, 7):
        store = open_store()
        group = await ready(store)
        provider = f"p{part}"
        for at in range(0, 400, part):
            some = replace(whole.take(np.arange(at, min(at + part, 400))), provider=provider)
            group, counts = await write(store, group, some)
            assert counts == WriteCounts(inserted=len(some))
        frames.append((await store.bars(provider=provider)).drop("provider"))
    other = replace(
        whole, provider="p", close=whole.close + 1, vwap=-vwap, trade_count=np.full(400, -1)
    )
    store = open_store()
    claim = await store.claim(key(1), "a", S)
    assert claim is not None
    group, _ = await write(store, FakeGroup(claim), other)
    group, counts = await write(store, group, replace(whole, provider="p"))
    assert counts == WriteCounts(updated=400)
    frames.append((await store.bars(provider="p")).drop("provider"))
    assert frames[0].equals(frames[1])
    assert frames[0].drop("state").equals(frames[2].drop("state"))
    assert frames[0]["vwap"].null_count() == len(range(0, 400, 3))


@pytest.mark.parametrize(
    ("theirs", "counts", "close"),
    [
        ((5.0, 9), WriteCounts(kept=1, inserted=1), 5.0),
        ((1.0, 2), WriteCounts(unchanged=1, inserted=1), 1.0),
        ((5.0, 1), WriteCounts(updated=1, inserted=1), 1.0),
    ],
    ids=["better", "same", "worse"],
)
async def test_a_bar_that_others_insert_meanwhile(
    open_store: Open,
    monkeypatch: pytest.MonkeyPatch,
    theirs: tuple[float, int],
    counts: WriteCounts,
    close: float,
) -> None:
    """Between looking and writing."""
    store, other = open_store(), open_store()
    group = await ready(store)

    async def intrude() -> None:
        claim = await claimed(other, 1)
        await write(other, FakeGroup(claim), batch(("A", 0, *theirs)))

    _once_after_looking(monkeypatch, intrude)
    _, found = await write(store, group, batch(("A", 0, 1.0, 2), ("B", 0, 1.0, 2)))
    assert found == counts
    assert (await store.bars("A"))["close"].to_list() == [close]


async def test_a_bar_that_others_replace_meanwhile(
    open_store: Open, postgres: Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The better one stays, and history has each version that was replaced."""
    store, other = open_store(), open_store()
    group = await ready(store)
    group, _ = await write(store, group, batch(("A", 0, 1.0, 1), ("B", 0, 1.0, 1)))

    async def intrude() -> None:
        claim = await claimed(other, 1)
        await write(other, FakeGroup(claim), batch(("A", 0, 9.0, 9), ("B", 0, 9.0, 2)))

    _once_after_looking(monkeypatch, intrude)
    _, counts = await write(store, group, batch(("A", 0, 2.0, 2), ("B", 0, 2.0, 2)))
    assert counts == WriteCounts(kept=1, updated=1)
    assert (await store.bars())["close"].to_list() == [9.0, 2.0]
    history = "SELECT symbol, close FROM bars_ohlcv_history ORDER BY id"
    assert sorted(postgres.query(history, uri)) == [("A", 1.0), ("B", 1.0), ("B", 9.0)]


def _once_after_looking(
    monkeypatch: pytest.MonkeyPatch, intrude: Callable[[], Awaitable[None]]
) -> None:
    real, done = _postgres_bars._insert, False

    async def work(*arguments: Any) -> Any:
        nonlocal done
        if not done:
            done = True
            await intrude()
        return await real(*arguments)

    monkeypatch.setattr(_postgres_bars, "_insert", work)


async def test_new_bars_are_not_looked_up(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above what is stored there is nothing to find, unless others write there as well."""
    looked: list[str] = []
    real = _postgres_bars._compare

    async def compare(db: Any, rows: Rows, wave: Any, found: str) -> None:
        looked.append(found)
        await real(db, rows, wave, found)

    monkeypatch.setattr(_postgres_bars, "_compare", compare)
    store, other = open_store(), open_store()
    group = await ready(store)
    for t in range(3):
        group, _ = await write(store, group, batch(("A", t, 1.0, 1), ("B", t, 1.0, 1)))
    assert looked == []
    group, _ = await write(store, group, batch(("A", 2, 1.0, 1), ("B", 3, 1.0, 1)))
    assert len(looked) == 1
    others = FakeGroup(await claimed(other, 1))
    others, _ = await write(other, others, batch(("A", 1, 1.0, 1)))
    assert len(looked) == 2
    others, _ = await write(other, others, batch(("A", 3, 1.0, 1)))
    group, counts = await write(store, group, batch(("A", 3, 1.0, 1), ("A", 4, 1.0, 1)))
    assert counts == WriteCounts(unchanged=1, inserted=1)
    assert len(looked) == 3


async def test_parallel_writers_of_the_same_bars(open_store: Open) -> None:
    """In whatever order they have them, nobody waits for ever and the best bars stay."""
    stores = [open_store() for _ in range(4)]
    await stores[0].migrate()
    groups = [FakeGroup(await claimed(store, i)) for i, store in enumerate(stores)]
    rng = np.random.default_rng(1)

    async def work(number: int) -> None:
        group = groups[number]
        for n in range(1, 9):
            count = 4 * n + number
            rows = [(f"S{i:02}", t, float(count), count) for i in range(20) for t in range(10)]
            order = rng.permutation(len(rows))
            whole = batch(*(rows[i] for i in order))
            both = [replace(whole, interval=i, codes=whole.codes) for i in ("1m", "1s")]
            group, _ = await write(stores[number], group, *both[:: 1 if number % 2 else -1])

    await asyncio.gather(*(work(number) for number in range(4)))
    frame = await stores[0].bars()
    assert frame["trade_count"].to_list() == [35] * 400
    assert frame["close"].to_list() == [35.0] * 400


async def test_a_time_that_cannot_be_kept_is_a_bad_row(open_store: Open) -> None:
    """It is not rounded: then it would be another bar's."""
    store = open_store()
    group = await ready(store)
    given = batch(("A", 0, 1.0, 1), ("A", 1, 1.0, 1), ("N\0", 1, 1.0, 1), ("\ud800", 1, 1.0, 1))
    ts = given.ts.copy()
    ts[1] += 1
    group.bars = [replace(given, ts=ts)]
    result = await store.commit([group], [])
    assert result.counts == WriteCounts(inserted=1, bad=3)
    errors = [(bad.row, bad.error) for bad in result.bad[0]]
    for (row, error), (wanted, word) in zip(
        errors, [(1, "microsecond"), (2, "zero byte"), (3, "no valid text")], strict=True
    ):
        assert row == wanted
        assert word in error
    assert len(await store.bars("N\0")) == 0


async def test_gaps_are_rounded_outward(open_store: Open) -> None:
    store = open_store()
    group = await ready(store)
    group.gaps = [Gap("p", "*", T0 + 1_999, T0 + S + 1, "log_trimmed", "x")]
    await store.commit([group], [])
    assert await store.gaps() == [Gap("p", "*", T0 + 1_000, T0 + S + 1_000, "log_trimmed", "x")]


async def test_much_is_read_in_parts(open_store: Open) -> None:
    """Series longer than a part come whole and in order."""
    store = open_store()
    group = await ready(store)
    rows = [(s, t, float(t), 1) for s in "AB" for t in range(25_000)]
    await write(store, group, batch(*rows))
    frame = await store.bars()
    assert frame["symbol"].to_list() == ["A"] * 25_000 + ["B"] * 25_000
    assert frame["close"].to_list() == [*map(float, range(25_000))] * 2
    assert frame["ts"].is_sorted() is False
    assert frame["ts"][:25_000].is_sorted()


async def test_bars_far_apart_are_found_without_reading_what_lies_between(
    open_store: Open,
) -> None:
    store = open_store()
    group = await ready(store)
    group, _ = await write(store, group, batch(*(("A", t, 1.0, 1) for t in range(1_000))))
    ends = batch(("A", 0, 2.0, 1), ("A", 3, 1.0, 1), ("A", 999, 2.0, 1), ("A", 5_000, 2.0, 1))
    rows = Rows([ends])
    ranges = rows.segments(np.arange(4))
    assert ((ranges.end_us - ranges.start_us) // 10**6).tolist() == [3, 0, 0]
    group, counts = await write(store, group, ends)
    assert counts == WriteCounts(inserted=1, updated=2, unchanged=1)


@pytest.fixture(autouse=True)
def _nothing_waits(postgres: Server) -> Iterator[None]:
    """No test leaves a transaction open."""
    yield
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert postgres.query(idle) == [(0,)]
