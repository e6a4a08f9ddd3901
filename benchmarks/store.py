"""The store: rows into PostgreSQL and SQLite beside hand-written code, and the coordinator.

Both sides work on the same tables of one server or one file, batch by batch in turns, so that
what else the machine does meets both. The tables are those of the migrations, so constraints and
indexes are the same for all.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Contender, Figure
from market_data_core.bars import BarBatch
from market_data_core.intervals import NS_PER_S

ROWS = 5_000
_BATCHES = 16
_SYMBOLS = (50, 5_000)
_NULL_ITEMS, _NULL_ROWS = 400_000, 40_000_000
_SUSTAINED_S = float(os.environ.get("BENCH_STORE_S", "15"))
_START_S = 1_761_314_520
_COLUMNS = (
    "provider, symbol, interval, ts, open, high, low, close, volume, vwap, trade_count, state, "
    "created_at, updated_at"
)
_VALUES = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
_TYPES = ["text"] * 3 + ["timestamptz"] + ["float8"] * 6 + ["int8", "text"] + ["timestamptz"] * 2
_UPSERT = f"""ON CONFLICT (provider, symbol, interval, ts) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _VALUES)}, state = 'revised',
    updated_at = excluded.updated_at WHERE """
_PG_DIFFERS = f"""({", ".join(f"b.{name}" for name in _VALUES)}) IS DISTINCT FROM
    ({", ".join(f"excluded.{name}" for name in _VALUES)})"""
_SQLITE_DIFFERS = " OR ".join(f"b.{name} IS NOT excluded.{name}" for name in _VALUES)
Row = tuple[Any, ...]


def batch(number: int, symbols: int, provider: str = "bench") -> BarBatch:
    """The `number`-th batch: for each symbol the next bars of one second."""
    each = ROWS // symbols
    close = 100 + np.random.default_rng(number).random(ROWS)
    ts = np.tile(np.arange(each), symbols) + number * each + _START_S
    names = tuple(f"SYM{i:04}" for i in range(symbols))
    codes = np.repeat(np.arange(symbols), each).astype(np.uint16)
    prices = (close, close + 1, close - 1, close)
    count = np.full(ROWS, 7, np.int64)
    return BarBatch(
        provider, "1s", "final", names, codes, ts * NS_PER_S, *prices, close * 2, close, count
    )


def rows_of(bars: BarBatch, moment: Callable[[int], Any]) -> list[Row]:
    """The bars as a program would have them that writes rows."""
    columns = [getattr(bars, name).tolist() for name in _VALUES]
    stamps = [moment(time.time_ns())] * len(bars)
    heads = ([bars.provider] * len(bars), bars.symbol_column(), [bars.interval] * len(bars))
    ts = [moment(t) for t in bars.ts.tolist()]
    return list(zip(*heads, ts, *columns, ["final"] * len(bars), stamps, stamps, strict=True))


def _utc(ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)


Write = Callable[[BarBatch], Awaitable[None]]


async def _in_turns(ways: dict[str, Write], symbols: int) -> dict[str, float]:
    """Median rows per second of each way, fresh and once more unchanged (``… again``)."""
    spent: dict[str, list[float]] = {}
    for suffix in ("", " again"):
        for number in range(_BATCHES):
            bars = batch(number, symbols)
            for name, write in ways.items():
                began = time.perf_counter()
                await write(bars)
                spent.setdefault(name + suffix, []).append(time.perf_counter() - began)
    return {name: ROWS / statistics.median(times[2:]) for name, times in spent.items()}


@asynccontextmanager
async def _by_hand(uri: str) -> AsyncIterator[dict[str, Write]]:
    """COPY into a staging table and one merge statement; and executemany."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(uri) as db, db.cursor() as cursor:
        await cursor.execute("CREATE TEMP TABLE staged (LIKE bars_ohlcv) ON COMMIT DELETE ROWS")
        await db.commit()
        marks = ", ".join(["%s"] * len(_TYPES))
        merge = f"INSERT INTO bars_ohlcv AS b SELECT * FROM staged {_UPSERT} {_PG_DIFFERS}"
        one = f"INSERT INTO bars_ohlcv AS b ({_COLUMNS}) VALUES ({marks}) {_UPSERT} {_PG_DIFFERS}"

        async def copy_and_merge(bars: BarBatch) -> None:
            async with cursor.copy("COPY staged FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(_TYPES)
                for row in rows_of(bars, _utc):
                    await copy.write_row(("copied", *row[1:]))
            await cursor.execute(merge.encode())
            await db.commit()

        async def executemany(bars: BarBatch) -> None:
            rows = [("many", *row[1:]) for row in rows_of(bars, _utc)]
            await cursor.executemany(one.encode(), rows)
            await db.commit()

        yield {"copy": copy_and_merge, "executemany": executemany}


def _versus(what: str, rates: dict[str, float], bounds: dict[str, str]) -> list[Figure]:
    """The rate of our side, and how many times the others' it is."""
    figures = []
    for suffix in ("", " again"):
        kind = "unchanged" if suffix else "fresh"
        ours = rates[f"ours{suffix}"]
        bound = bounds.get(f"ours{suffix}", "")
        figures.append(Figure(f"{what}, {kind}", ours, "rows/s", bound))
        for name, rate in rates.items():
            if name != f"ours{suffix}" and name.endswith(" again") == bool(suffix):
                other = name.removesuffix(" again")
                bound = bounds.get(name, "")
                figures.append(
                    Figure(f"{what}, {kind}, ours ÷ {other}", ours / rate, "times", bound)
                )
    return figures


async def _on_postgres(server: Any) -> list[Figure]:
    from market_data_store.backends.postgres import PostgresStore

    figures = []
    for symbols in _SYMBOLS:
        uri = server.new_schema()
        store = PostgresStore(uri)
        await store.migrate()

        async def ours(bars: BarBatch, store: PostgresStore = store) -> None:
            await store.write_bars([bars])

        async with _by_hand(uri) as ways:
            rates = await _in_turns({"ours": ours, **ways}, symbols)
        bounds = {"copy": ">= 1.0", "executemany": ">= 2.0", "ours again": ">= 180000"}
        figures += _versus(f"PostgreSQL, {symbols:,} symbols", rates, bounds)
        await store.close()
    return figures


def postgres() -> list[Figure]:
    """Bars into PostgreSQL in batches of 5,000.

    Raises:
        SystemExit: no server is installed.
    """
    from tests.servers.postgres import MISSING, running

    with running() as server:
        if server is None:
            raise SystemExit(MISSING)
        return asyncio.run(_on_postgres(server))


async def _on_sqlite(folder: Path) -> list[Figure]:
    from market_data_store.backends.sqlite import SqliteStore

    figures = []
    for symbols in _SYMBOLS:
        stores = [SqliteStore(folder / f"{name}{symbols}.db") for name in ("ours", "raw")]
        for store in stores:
            await store.migrate()
        await stores[1].close()
        raw = sqlite3.connect(folder / f"raw{symbols}.db", isolation_level=None)
        raw.execute("PRAGMA journal_mode = wal")
        raw.execute("PRAGMA synchronous = normal")
        marks = ", ".join("?" * len(_TYPES))
        upsert = (
            f"INSERT INTO bars_ohlcv AS b ({_COLUMNS}) VALUES ({marks}) {_UPSERT} {_SQLITE_DIFFERS}"
        )

        async def ours(bars: BarBatch, store: SqliteStore = stores[0]) -> None:
            await store.write_bars([bars])

        async def executemany(
            bars: BarBatch, raw: sqlite3.Connection = raw, upsert: str = upsert
        ) -> None:
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(upsert, rows_of(bars, int))
            raw.execute("COMMIT")

        rates = await _in_turns({"ours": ours, "executemany": executemany}, symbols)
        bounds = {"executemany": ">= 0.9", "executemany again": ">= 0.9"}
        figures += _versus(f"SQLite, {symbols:,} symbols", rates, bounds)
        raw.close()
        await stores[0].close()
    return figures


def sqlite() -> list[Figure]:
    """Bars into SQLite in batches of 5,000, beside `executemany` in one transaction."""
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        return asyncio.run(_on_sqlite(Path(folder)))


class _Null:
    """Takes everything at once."""

    async def write(self, batch: Sequence[Any]) -> None:
        return


async def _to_nothing() -> list[Figure]:
    from market_data_store.coordinator import WriteCoordinator

    async with WriteCoordinator[Any](sink=_Null(), coord_id="bench") as coordinator:
        item = ("row",)
        began = time.perf_counter()
        for _ in range(_NULL_ITEMS):
            await coordinator.submit(item)
        await coordinator.flush()
        singly = _NULL_ITEMS / (time.perf_counter() - began)
    async with WriteCoordinator[Any](
        sink=_Null(), coord_id="bench", capacity=100_000, batch_size=ROWS
    ) as coordinator:
        bars = batch(0, 50)
        began = time.perf_counter()
        for _ in range(_NULL_ROWS // ROWS):
            await coordinator.submit(bars)
        await coordinator.flush()
        batches = _NULL_ROWS / (time.perf_counter() - began)
    return [
        Figure("coordinator to a null sink, singly", singly, "items/s", ">= 400000"),
        Figure("coordinator to a null sink, in batches", batches, "rows/s", ">= 3000000"),
    ]


async def _to_postgres(uri: str) -> list[Figure]:
    """Single bars, as programs submit them, for as long as it is let."""
    from market_data_store.coordinator import WriteCoordinator
    from market_data_store.sinks import BarsSink
    from mds_client import AMDS
    from mds_client.models import Bar

    times: list[float] = []
    resident = 0

    class Timed(BarsSink):
        async def write(self, batch: Sequence[Any]) -> Any:
            began = time.perf_counter()
            try:
                return await super().write(batch)
            finally:
                times.append(time.perf_counter() - began)

    count, began = 0, time.perf_counter()
    start = datetime.fromtimestamp(_START_S, UTC)
    async with (
        Timed(AMDS(uri)) as sink,
        WriteCoordinator[Bar](sink=sink, coord_id="bench", capacity=20_000) as coordinator,
    ):
        began = time.perf_counter()
        while time.perf_counter() < began + _SUSTAINED_S:
            ts = start + timedelta(seconds=count // 50)
            for i in range(50):
                symbol = f"SYM{i:04}"
                await coordinator.submit(
                    Bar(symbol=symbol, open=1, high=2, low=1, close=2, volume=3, ts=ts)
                )
            count += 50
            pages = (
                int(Path("/proc/self/statm").read_text().split()[1]) if not count % 50_000 else 0
            )
            resident = max(resident, pages * os.sysconf("SC_PAGE_SIZE"))
        await coordinator.flush()
        spent = time.perf_counter() - began
    p99 = float(np.percentile(np.array(times), 99)) * 1e3
    return [
        Figure("coordinator to PostgreSQL, single bars", count / spent, "bars/s", ">= 80000"),
        Figure("its batches, p99", p99, "ms", "< 100"),
        Figure("resident meanwhile", resident / 1e6, "MB", "< 150"),
    ]


def coordinator() -> list[Figure]:
    """The write coordinator alone, and in front of PostgreSQL.

    Raises:
        SystemExit: no server is installed.
    """
    from tests.servers.postgres import MISSING, running

    figures = asyncio.run(_to_nothing())
    with running() as server:
        if server is None:
            raise SystemExit(MISSING)
        uri = server.new_schema()
        asyncio.run(_migrated(uri))
        return figures + asyncio.run(_to_postgres(uri))


async def _migrated(uri: str) -> None:
    from market_data_store.backends.postgres import PostgresStore

    store = PostgresStore(uri)
    await store.migrate()
    await store.close()


CONTENDERS = (
    Contender("store-postgres", "store", lambda _: postgres(), rounds_max=1, ours=True),
    Contender("store-sqlite", "store", lambda _: sqlite(), rounds_max=1, ours=True),
    Contender("coordinator", "store", lambda _: coordinator(), rounds_max=1, ours=True),
)
