"""What every store must do for those who write rows of its tables; part of the store suite."""
# ruff: noqa: S101, S608  (asserting is what this module is for, and it names tables itself)

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from market_data_core.bars import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Store, WriteCounts
from market_data_core.errors import RejectedError, UsageError
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
from market_data_core.testing._store_owning import (
    T0,
    FakeGroup,
    OpenStore,
    Query,
    S,
    batch,
    claimed,
    opened,
)

HOSTILE = (
    "'; DROP TABLE bars_ohlcv; --", 'a"b', "a\\b", "a|b/c", "%s{}$1?:x", "BTC/USDT:PERP", " A ",
    "ÄÖ-株式-\U0001f4c8", "E\u0301", "\n\t", "*", "X" * 1024, "NULL", "1e5",
)  # fmt: skip
"""Texts that are data like any other."""
RECORDS = (SIGNALS, OPTIONS, FUNDAMENTALS, NEWS, JOB_RUNS)
"""The tables that :meth:`Store.upsert` writes."""
CHOICES = {
    "state": ("active", "retracted"),
    "option_type": ("C", "P"),
    "mode": ("live", "backfill"),
    "status": ("running", "success", "failure", "cancelled"),
}
"""Columns of few values."""
START = datetime(2025, 10, 24, 14, 2, tzinfo=UTC)

each_table = pytest.mark.parametrize("table", RECORDS, ids=lambda table: table.name)


def row(table: Table, i: int = 0, /, **changes: Any) -> Any:
    """A row to be written: another for every `i`, in the key too."""
    kinds: dict[str, Any] = {
        "number": (i % 64 - 32) / 64,
        "count": i,
        "time": START + timedelta(seconds=i, microseconds=i),
        "day": date(2025, 12, 19) + timedelta(days=i % 3),
        "json": {"b": [i, 0.5, None, "ü"], "a": {}},
    }
    values = {
        column.name: CHOICES[column.name][i % len(CHOICES[column.name])]
        if column.name in CHOICES
        else kinds.get(column.kind, f"{column.name}{i}")
        for column in table.written
    }
    return SimpleNamespace(**values | changes)


def without(given: Any, **changes: Any) -> Any:
    """The same row but for `changes`."""
    return SimpleNamespace(**vars(given) | changes)


def as_stored(frame: pl.DataFrame, table: Table) -> list[Any]:
    """The rows of a frame as they were given."""
    out = []
    for found in frame.drop(table.stamps).iter_rows(named=True):
        values = {
            c.name: json.loads(found[c.name]) if c.kind == "json" else found[c.name]
            for c in table.written
        }
        out.append(SimpleNamespace(**values))
    return out


def by_key(table: Table, rows: Sequence[Any]) -> list[Any]:
    """Rows in the order in which a store gives them."""
    return sorted(
        rows,
        key=lambda r: tuple(
            value.encode() if isinstance(value, str) else value
            for value in (getattr(r, name) for name in table.key)
        ),
    )


async def read(store: Store, table: Table) -> list[Any]:
    """All rows of a table as they were given."""
    return as_stored(await store.select(Select(table)), table)


class StoreTablesSuite:
    """Upsert, replace, write_bars, and the schema of the tables."""

    @pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
    async def test_a_table_has_the_columns_that_are_told(
        self, open_store: OpenStore, query: Query, table: Table
    ) -> None:
        """In that order, in the database and in frames, with rows and without."""
        store = await opened(open_store)
        moment = pl.Datetime("ns", "UTC")
        types = {"number": pl.Float64, "count": pl.Int64, "time": moment, "day": pl.Date}
        schema = {column.name: types.get(column.kind, pl.String) for column in table.columns}
        assert list((await store.select(Select(table))).schema.items()) == list(schema.items())
        if table is BARS:
            await store.write_bars([batch(("A", 0, 1.0, 1))])
        else:
            await store.upsert(table, [row(table)])
        assert list((await store.select(Select(table))).schema.items()) == list(schema.items())
        names = ", ".join(schema)
        whole = query(f"SELECT * FROM {table.name}")
        assert len(whole) == 1
        assert list(map(tuple, query(f"SELECT {names} FROM {table.name}"))) == list(
            map(tuple, whole)
        )

    @each_table
    async def test_rows_come_back(self, open_store: OpenStore, table: Table) -> None:
        """Every value, and none where there may be none; times in any zone are the same times."""
        store = await opened(open_store)
        empty = {column.name: None for column in table.columns if column.nullable}
        rows = [row(table, 3), row(table, 1), row(table, 2, **empty)]
        assert await store.upsert(table, rows) == WriteCounts(inserted=3)
        assert await read(store, table) == by_key(table, rows)
        east = timezone(timedelta(hours=5, minutes=30))
        moved = {
            name: value.astimezone(east)
            for name, value in vars(rows[0]).items()
            if isinstance(value, datetime)
        }
        again = [without(rows[0], **moved), *rows[1:]]
        assert await store.upsert(table, again) == WriteCounts(unchanged=3)
        assert await store.upsert(table, []) == WriteCounts()

    @each_table
    async def test_texts_are_only_texts(self, open_store: OpenStore, table: Table) -> None:
        """Whatever stands in them: in the key, beside it, inside of JSON, and in a filter."""
        store = await opened(open_store)
        free = [c.name for c in table.written if c.kind == "text" and c.name not in CHOICES]
        rows = [
            row(
                table,
                **dict.fromkeys(free, text),
                **{c.name: {text: [text]} for c in table.written if c.kind == "json"},
            )
            for text in HOSTILE
        ]
        assert await store.upsert(table, rows) == WriteCounts(inserted=len(HOSTILE))
        assert await store.upsert(table, rows) == WriteCounts(unchanged=len(HOSTILE))
        assert await read(store, table) == by_key(table, rows)
        for one in rows:
            found = await store.select(Select(table, {n: [getattr(one, n)] for n in free}))
            assert as_stored(found, table) == [one]
        both = Select(table, {free[0]: [getattr(r, free[0]) for r in rows[:2]]})
        assert as_stored(await store.select(both), table) == by_key(table, rows[:2])

    @each_table
    async def test_only_what_differs_is_written(self, open_store: OpenStore, table: Table) -> None:
        """A change of any one value is an update, also from none and to none."""
        store = await opened(open_store)
        given, other = row(table, 1), row(table, 2)
        await store.upsert(table, [given])
        for column in table.columns:
            if column.name not in table.values:
                continue
            new = getattr(other, column.name)
            if column.kind == "json":
                new = {**new, "c": 1}
            for value in (new, None, new) if column.nullable else (new,):
                given = without(given, **{column.name: value})
                assert await store.upsert(table, [given]) == WriteCounts(updated=1), column.name
                assert await read(store, table) == [given]
        turned = {
            c.name: dict(reversed(getattr(given, c.name).items()))
            for c in table.written
            if c.kind == "json"
        }
        assert await store.upsert(table, [without(given, **turned)]) == WriteCounts(unchanged=1)

    async def test_stamps_tell_when(self, open_store: OpenStore) -> None:
        """A row was made when it was first written."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        given = row(SIGNALS)
        for value in (1.0, 1.0, 2.0):
            await store.upsert(SIGNALS, [without(given, value=value)])
            clock.advance(S)
        frame = await store.select(Select(SIGNALS))
        assert frame["created_at"].dt.epoch("ns").to_list() == [T0]
        assert frame["value"].to_list() == [2.0]

    @each_table
    async def test_of_rows_with_one_key_the_last_counts(
        self, open_store: OpenStore, table: Table
    ) -> None:
        """As if those before it had not been given; the counts add up all the same."""
        store = await opened(open_store)
        name = next(c.name for c in table.columns if c.name in table.values and c.kind != "json")
        first, last = row(table, 1), without(row(table, 1), **{name: getattr(row(table, 2), name)})
        given = [first, row(table, 5), last]
        assert await store.upsert(table, given) == WriteCounts(inserted=2, unchanged=1)
        assert await read(store, table) == by_key(table, given[1:])
        assert await store.upsert(table, given) == WriteCounts(unchanged=3)
        back = [last, last, first]
        assert await store.upsert(table, back) == WriteCounts(updated=1, unchanged=2)

    @each_table
    async def test_many_rows(self, open_store: OpenStore, table: Table) -> None:
        """New, as they were, and some of each."""
        store = await opened(open_store)
        rows = [row(table, i) for i in range(2_500)]
        assert await store.upsert(table, rows) == WriteCounts(inserted=2_500)
        assert await store.upsert(table, rows) == WriteCounts(unchanged=2_500)
        name = next(c.name for c in table.columns if c.name in table.values and c.kind != "json")
        for i in range(0, 2_500, 5):
            rows[i] = without(rows[i], **{name: getattr(row(table, i + 1), name)})
        rows += [row(table, i) for i in range(2_500, 2_600)]
        counts = WriteCounts(inserted=100, updated=500, unchanged=2_000)
        assert await store.upsert(table, rows) == counts
        assert await read(store, table) == by_key(table, rows)

    @each_table
    async def test_what_can_never_be_stored_is_refused(
        self, open_store: OpenStore, table: Table
    ) -> None:
        """By its key, and nothing of the batch is written."""
        store = await opened(open_store)
        stored = [row(table, 0), row(table, 1)]
        await store.upsert(table, stored)
        faults: list[tuple[str, Any]] = []
        for column in table.written:
            if column.kind == "number":
                faults += [(column.name, value) for value in (np.nan, np.inf, -np.inf)]
            if column.kind == "json":
                faults += [(column.name, {"a": float("nan")}), (column.name, {"a": object()})]
            if column.kind == "time":
                faults.append((column.name, datetime(2025, 1, 1)))  # noqa: DTZ001
            if column.name in {*CHOICES, *table.key} - {"period"} and column.kind == "text":
                faults.append((column.name, ""))
            if not column.nullable:
                faults.append((column.name, None))
        for name, value in faults:
            batches = [row(table, i) for i in range(1, 300)]
            batches[216] = without(batches[216], **{name: value})
            with pytest.raises(RejectedError, match=table.name) as caught:
                await store.upsert(table, batches)
            assert caught.value.reason == "unwritable"
            shown = [n for n in table.key if isinstance(getattr(row(table, 217), n), str)]
            for part in shown:
                assert str(getattr(batches[216], part)) in str(caught.value)
            assert await read(store, table) == by_key(table, stored), (name, value)

    @each_table
    async def test_a_row_is_replaced_if_it_is_still_there(
        self, open_store: OpenStore, table: Table
    ) -> None:
        """As it was read, whole; else nothing happens."""
        store = await opened(open_store)
        empty = {column.name: None for column in table.columns if column.nullable}
        old, other = row(table, 1, **empty), row(table, 9)
        new = without(row(table, 2), **{name: getattr(old, name) for name in table.key})
        assert not await store.replace(table, old, new)
        await store.upsert(table, [old, other])
        assert await store.replace(table, old, new)
        assert await read(store, table) == by_key(table, [new, other])
        assert not await store.replace(table, old, new)
        for column in table.columns:
            if column.name in table.values:
                stale = without(new, **{column.name: getattr(row(table, 3), column.name)})
                if stale != new:
                    assert not await store.replace(table, stale, old), column.name
        assert await store.replace(table, new, new)
        with pytest.raises(UsageError):
            await store.replace(table, new, other)
        assert await store.replace(table, new, old)
        assert await read(store, table) == by_key(table, [old, other])

    async def test_of_many_that_replace_a_row_one_does(self, open_store: OpenStore) -> None:
        """However they are interleaved, from one client or several."""
        stores = [await opened(open_store) for _ in range(3)]
        old = row(JOB_RUNS)
        await stores[0].upsert(JOB_RUNS, [old])
        for _ in range(5):
            news = [without(old, error_message=f"{old.error_message}{i}") for i in range(9)]
            done = await asyncio.gather(
                *(stores[i % 3].replace(JOB_RUNS, old, new) for i, new in enumerate(news))
            )
            assert sum(done) == 1
            old = news[done.index(True)]
            assert await read(stores[0], JOB_RUNS) == [old]

    async def test_bars_have_a_way_of_their_own(self, open_store: OpenStore) -> None:
        """Written as plain rows they would leave no history."""
        store = await opened(open_store)
        with pytest.raises(UsageError, match="write_bars"):
            await store.upsert(BARS, [SimpleNamespace()])
        with pytest.raises(UsageError, match="write_bars"):
            await store.replace(BARS, SimpleNamespace(), SimpleNamespace())

    async def test_bars_are_written_as_in_a_commit(
        self, open_store: OpenStore, query: Query
    ) -> None:
        """The same counts, bars and replaced versions."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        group = FakeGroup(await claimed(store), checkpoint=b"")
        rng = np.random.default_rng(7)
        states: list[Any] = ["final", "revised", "gap"]
        for _ in range(25):
            batches = [
                replace(
                    batch(
                        *(
                            (f"S{k % 4}", k // 4, float(rng.integers(3)), int(rng.integers(-1, 3)))
                            for k in rng.permutation(20)[: rng.integers(1, 20)].tolist()
                        ),
                        state=states[rng.integers(3)],
                    ),
                    only_new=bool(rng.random() < 0.2),
                )
                for _ in range(rng.integers(0, 3))
            ]
            group.bars = batches
            committed = (await store.commit([group], [])).counts
            group = group.next()
            assert await store.write_bars([_of(b, "q") for b in batches]) == committed
            clock.advance(S)
        frames = [await store.select(Select(BARS, {"provider": [p]})) for p in "pq"]
        assert frames[0].drop("provider").equals(frames[1].drop("provider"))
        assert len(frames[0]) == 20
        columns = "symbol, interval, ts, open, volume, trade_count, state, known_from, known_until"
        history = [
            query(
                f"""SELECT {columns} FROM bars_ohlcv_history WHERE provider = '{p}'
                ORDER BY symbol, ts, known_from, id"""
            )
            for p in "pq"
        ]
        assert history[0] == history[1] != []
        assert await store.outbox("q", "bars", 0) == []

    @pytest.mark.parametrize("fresh", [True, False], ids=["all new", "some stored"])
    async def test_a_bad_bar_takes_its_batches_with_it(
        self, open_store: OpenStore, fresh: bool
    ) -> None:
        """Who writes bars as such is told which it was."""
        store = await opened(open_store)
        if not fresh:
            await store.write_bars([batch(("A", 0, 1.0, 1))])
        before = (await store.select(Select(BARS))).rows()
        good, bad = batch(("A", 0, 2.0, 2)), batch(("B'", 0, 1.0, 1), ("C", 0, np.inf, 1))
        with pytest.raises(RejectedError, match="'C'") as caught:
            await store.write_bars([good, bad])
        assert caught.value.reason == "unwritable"
        assert (await store.select(Select(BARS))).rows() == before
        counts = WriteCounts(inserted=1 + fresh, updated=1 - fresh)
        assert await store.write_bars([good, bad.take(np.array([0]))]) == counts


def _of(bars: BarBatch, provider: str) -> BarBatch:
    return replace(bars, provider=provider)
