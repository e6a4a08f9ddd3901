"""What every store must do for those who read, inspect and prune it; part of the store suite."""
# ruff: noqa: S101, S608  (asserting is what this module is for, and it names tables itself)

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, product
from typing import Any

import polars as pl
import pytest

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Store, WriteCounts
from market_data_core.errors import UsageError
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
from market_data_core.testing._store_tables import (
    START,
    as_stored,
    by_key,
    each_table,
    read,
    row,
    without,
)

_MINUTE = 60
_ROLLUPS = ["bars_1d", "bars_1h", "bars_1m", "bars_5m"]


def _expected(rows: list[dict[str, Any]], what: Select) -> list[dict[str, Any]]:
    """What `what` has to give of all rows, in plain Python."""
    table = what.table

    def ns(found: dict[str, Any]) -> int:
        since = found[table.time] - datetime(1970, 1, 1, tzinfo=UTC)
        return int(since / timedelta(microseconds=1)) * 1_000

    kept = [
        r
        for r in rows
        if all(r[name] in wanted for name, wanted in what.where.items())
        and (what.start is None or ns(r) >= what.start)
        and (what.end is None or ns(r) < what.end)
    ]
    if what.last is not None:
        by_series = [tuple(str(r[name]) for name in table.series) for r in kept]
        order = sorted(zip(by_series, map(ns, kept), kept, strict=True), key=lambda x: x[:2])
        kept = [
            found
            for _, group in groupby(order, key=lambda x: x[0])
            for *_, found in list(group)[-what.last :]
        ]
    return [r for r in rows if any(r is k for k in kept)]


def _questions(table: Table, rows: list[dict[str, Any]], rng: random.Random) -> Select:
    """Any combination of filters."""
    texts = [c.name for c in table.columns if c.kind == "text"]
    where = {
        name: rng.choices([*(r[name] for r in rows), "absent"], k=rng.randint(0, 5))
        for name in rng.sample(texts, rng.choice([0, 0, 1, 1, 2, 3]))
    }
    bounds = sorted(rng.randint(-10, 110) for _ in range(2))
    start, end = (rng.choice([None, T0 + at * S + rng.choice([0, 1000])]) for at in bounds)
    return Select(table, where, start, end, last=rng.choice([None, None, 1, 2, 7]))


async def _filled(store: Store, table: Table) -> list[dict[str, Any]]:
    """Rows of several series at many times, as they are read."""
    rng = random.Random(table.name)  # noqa: S311
    if table is BARS:
        pairs = list(product(("p", "q", "q'"), ("1m", "1s", "2h")))
        await store.write_bars(
            [
                batch(
                    *((f"S{k}", k * 7 + t, 1.0 + t, 1) for k in range(4) for t in range(0, 80, 9)),
                    provider=provider,
                    interval=interval,
                    state=rng.choice(["final", "revised"]),
                )
                for provider, interval in pairs
            ]
        )
    else:
        rows = []
        for i in range(300):
            few: dict[str, Any] = {
                c.name: f"{c.name}{rng.randint(0, 2)}"
                for c in table.written
                if c.name in ("provider", "symbol", "name", "metric", "period", "job_name")
            }
            if "strike" in table.key:
                few["strike"] = float(rng.randint(1, 3)) / 10
            rows.append(row(table, i, **few, **{table.time: START + timedelta(seconds=i % 100)}))
        await store.upsert(table, rows)
    return list((await store.select(Select(table))).iter_rows(named=True))


class StoreReadingSuite:
    """Select and scan, what was known at a time, inspection and retention."""

    @pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
    async def test_rows_are_chosen_by_every_filter(
        self, open_store: OpenStore, table: Table
    ) -> None:
        """Alone and together; what is scanned is the same, in pieces."""
        store = await opened(open_store)
        rows = await _filled(store, table)
        assert len(rows) > 80
        rng = random.Random(1)  # noqa: S311
        for _ in range(60):
            what = _questions(table, rows, rng)
            frame = await store.select(what)
            assert list(frame.iter_rows(named=True)) == _expected(rows, what), what
            parts = [part async for part in store.scan(what, 17)]
            assert all(0 < len(part) <= 17 for part in parts)
            assert pl.concat([frame.clear(), *parts]).equals(frame), what

    async def test_many_names_at_once(self, open_store: OpenStore) -> None:
        """More than a statement may have variables."""
        store = await opened(open_store)
        await store.write_bars([batch(*((f"S{i}", 0, 1.0, 1) for i in range(0, 70_000, 1_000)))])
        names = [f"S{i}" for i in range(70_000)]
        for more in ({}, {"last": 1}, {"as_of": T0}):
            found = await store.select(Select(BARS, {"symbol": names}, **more))
            assert len(found) == 70, more

    async def test_a_column_that_is_not_there(self, open_store: OpenStore) -> None:
        """Is named, and so are those that are; only bars have a history."""
        store = await opened(open_store)
        for table, other in ((BARS, "metric"), (NEWS, "x; --")):
            with pytest.raises(UsageError, match=other):
                await store.select(Select(table, {other: ["a"]}))
        with pytest.raises(UsageError, match="as_of"):
            await store.select(Select(NEWS, as_of=T0))
        with pytest.raises(UsageError, match="as_of"):
            [part async for part in store.scan(Select(NEWS, as_of=T0))]

    async def test_what_was_known_at_a_time(self, open_store: OpenStore) -> None:
        """The version of that moment, none before the first; filters choose among what it was."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        rng = random.Random(3)  # noqa: S311
        versions: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for _ in range(30):
            clock.advance(S)
            close, keys = float(rng.randint(1, 3)), rng.sample(list(product("AB", range(3))), 3)
            await store.write_bars([batch(*((*k, close, 1) for k in keys), state="revised")])
            for k in keys:
                if versions.setdefault(k, [(0, 0.0)])[-1][1] != close:
                    versions[k].append((clock.now_ns(), close))
        assert max(map(len, versions.values())) > 5
        for at in range(T0 - S, clock.now_ns() + 2 * S, S // 2):
            known = {k: [v for v in vs[1:] if v[0] <= at] for k, vs in versions.items()}
            wanted = [
                (s, T0 + t * S, vs[-1][1], vs[0][0], vs[-1][0])
                for (s, t), vs in sorted(known.items())
                if vs
            ]
            frame = (await store.select(Select(BARS, as_of=at))).with_columns(
                pl.col(pl.Datetime).dt.epoch("ns")
            )
            columns = ["symbol", "ts", "close", "created_at", "updated_at"]
            assert frame.select(columns).rows() == wanted
            chosen = Select(BARS, {"symbol": ["B"]}, T0 + S, None, at, 1)
            assert (await store.select(chosen))["close"].to_list() == [
                close for s, ts, close, *_ in wanted if s == "B" and ts > T0
            ][-1:]
            parts = [part async for part in store.scan(Select(BARS, as_of=at), 2)]
            assert sum(map(len, parts)) == len(wanted)

    async def test_what_was_known_although_the_clock_went_back(self, open_store: OpenStore) -> None:
        """One version at every moment: of several the one that was written last."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        later = [(9, []), (10, [1.0]), (14, [1.0]), (15, [3.0]), (17, [3.0]), (25, [3.0])]
        steps: list[tuple[float, int, list[tuple[int, list[float]]]]] = [
            (1.0, 10, [(10, [1.0])]),
            (2.0, 20, [(17, [1.0]), (20, [2.0])]),
            (3.0, 15, later),
            (4.0, 30, [*later, (30, [4.0])]),
        ]
        for close, written, moments in steps:
            clock.time_ns = T0 + written * S
            await store.write_bars([batch(("A", 0, close, 1))])
            for at, known in moments:
                found = await store.select(Select(BARS, as_of=T0 + at * S))
                assert found["close"].to_list() == known, (written, at)

    async def test_a_scan_is_of_one_moment(self, open_store: OpenStore) -> None:
        """What is written meanwhile is not in it; nothing is held up by one that is given up."""
        store = await opened(open_store)
        rows = [row(SIGNALS, i) for i in range(500)]
        await store.upsert(SIGNALS, rows)
        changed = [without(r, value=9.0) for r in rows] + [row(SIGNALS, i) for i in (600, 700)]
        seen = list[Any]()
        async for part in store.scan(Select(SIGNALS), 100):
            if not seen:
                await store.upsert(SIGNALS, changed)
            seen += as_stored(part, SIGNALS)
        assert seen == by_key(SIGNALS, rows)
        assert await read(store, SIGNALS) == by_key(SIGNALS, changed)
        for _ in range(20):
            async with aclosing(store.scan(Select(SIGNALS), 1)) as parts:
                async for part in parts:
                    assert len(part) == 1
                    break
        assert await store.upsert(SIGNALS, rows) == WriteCounts(updated=500)
        assert [part async for part in store.scan(Select(NEWS))] == []

    # ---- upkeep ----------------------------------------------------------------------------

    async def test_going_down_and_up_keeps_bars(self, open_store: OpenStore) -> None:
        """What only newer steps have is lost; there is no way to a step that is not below."""
        store = await opened(open_store)
        await store.write_bars([batch(("A", 0, 1.0, 1)), batch(("A", 0, 2.0, 2))])
        await store.upsert(NEWS, [row(NEWS)])
        status = await store.inspect()
        assert status.schema == status.schema_known > 1
        for wrong in (-1, status.schema, status.schema + 1):
            with pytest.raises(UsageError, match=str(wrong)):
                await store.migrate_down(wrong)
        bars = (await store.select(Select(BARS))).rows()
        await store.migrate_down(1)
        below = await store.inspect()
        assert (below.schema, [t.table for t in below.tables]) == (1, ["bars_ohlcv"])
        assert await store.policies() == []
        assert await store.schema_behind() == status.schema - 1
        assert (await store.select(Select(BARS))).rows() == bars
        await store.migrate()
        assert (await store.inspect()).schema == status.schema
        assert (await store.select(Select(BARS))).rows() == bars
        assert (await store.select(Select(BARS, as_of=T0)))["close"].to_list() == [2.0]
        assert await read(store, NEWS) == []
        await store.migrate_down(0)
        assert (await store.inspect()).tables == []
        with pytest.raises(UsageError):
            await store.migrate_down(0)
        await store.migrate()
        assert await read(store, NEWS) == []

    async def test_a_store_tells_how_it_stands(self, open_store: OpenStore) -> None:
        """Its tables with rows and times; and that it can be written."""
        store = open_store(ManualClock(T0))
        await store.ping()
        assert (await store.inspect()).tables == []
        await store.migrate()
        await store.ping()
        assert [t.table for t in (await store.inspect()).tables] == list(TABLES)
        assert {(t.rows, t.first, t.last) for t in (await store.inspect()).tables} == {
            (0, None, None)
        }
        await store.write_bars([batch(("A", 3, 1.0, 1), ("B", -5, 1.0, 1))])
        await store.upsert(JOB_RUNS, [row(JOB_RUNS)])
        status = await store.inspect()
        tables = {t.table: t for t in status.tables}
        bars = tables["bars_ohlcv"]
        assert (bars.rows, bars.first, bars.last) == (2, T0 - 5 * S, T0 + 3 * S)
        assert (tables["job_runs"].rows, tables["job_runs"].first) == (1, T0)
        assert all(t.size_bytes is None or t.size_bytes > 0 for t in status.tables)
        assert status.version
        assert status.name
        rollups = [p for p in await store.policies() if p.kind == "rollup"]
        assert sorted(p.table for p in rollups) == _ROLLUPS
        assert all(p.after_days is None for p in rollups)

    @each_table
    async def test_old_rows_are_deleted(self, open_store: OpenStore, table: Table) -> None:
        """Those before a time, whatever their key; none a second time."""
        store = await opened(open_store)
        rows = [row(table, i) for i in range(400)]
        await store.upsert(table, rows)
        before = START + timedelta(seconds=250, microseconds=250)
        cut = T0 + 250 * S + 250_000
        assert await store.retain(table, cut) == 250
        left = [r for r in rows if getattr(r, table.time) >= before]
        assert await read(store, table) == by_key(table, left)
        assert await store.retain(table, cut) == 0
        with pytest.raises(UsageError, match="interval"):
            await store.retain(table, cut, "1s")

    async def test_old_bars_are_deleted_with_their_history(
        self, open_store: OpenStore, query: Query
    ) -> None:
        """Of one interval or of all; what is newer stays, and so does its history."""
        store = await opened(open_store)
        for close in (1.0, 2.0, 3.0):
            rows = [(s, t, close, 1) for s in "AB" for t in range(10)]
            bars = batch(*rows)
            await store.write_bars([bars, replace(bars, interval="1m")])
        assert await store.retain(BARS, T0 + 4 * S, "1m") == 8
        assert query("SELECT interval, count(*) FROM bars_ohlcv_history GROUP BY 1 ORDER BY 1") == [
            ("1m", 24),
            ("1s", 40),
        ]
        frame = await store.select(Select(BARS, {"interval": ["1m"]}))
        assert frame["ts"].dt.epoch("ns").min() == T0 + 4 * S
        assert await store.retain(BARS, T0 + 9 * S) == 28
        assert len(await store.select(Select(BARS))) == 4
        assert query("SELECT count(*) FROM bars_ohlcv_history") == [(8,)]
        assert len(await store.select(Select(BARS, as_of=T0))) == 4
        assert await store.retain(BARS, T0 + 9 * S, "5m") == 0

    async def test_wider_bars_can_be_read(self, open_store: OpenStore, query: Query) -> None:
        """They follow what is stored; a minute begins with its first bar and ends with its last."""
        store = await opened(open_store)
        group = FakeGroup(await claimed(store))
        first = [("A", t, 1.0 + (t * 7 % 11), 2) for t in range(-_MINUTE - 20, _MINUTE + 40)]
        await store.commit([replace(group, bars=[batch(*first, ("B", 0, 5.0, -1))])], [])
        for width, name in ((60, "1m"), (300, "5m"), (3600, "1h"), (86_400, "1d")):
            for close in (1.0, 50.0):
                changed = [(s, t, close if t == 5 else c, n) for s, t, c, n in first]
                await store.write_bars([batch(*changed)])
                wanted = []
                for _, found in groupby(changed, key=lambda r: (T0 // S + r[1]) // width):
                    part = [c for _, _, c, _ in found]
                    volume = sum(2 * c for c in part)
                    vwap = sum(2 * c * c for c in part) / volume
                    wanted.append(
                        ("A", part[0], max(part), min(part), part[-1], volume, vwap, 2 * len(part))
                    )
                rows = query(
                    f"""SELECT symbol, open, high, low, close, volume, vwap, trade_count
                    FROM bars_{name} WHERE base_interval = '1s' AND provider = 'p'
                    ORDER BY symbol, ts"""
                )
                assert [tuple(r[:6]) for r in rows[:-1]] == [w[:6] for w in wanted]
                assert [r[6] for r in rows[:-1]] == pytest.approx([w[6] for w in wanted])
                assert [r[7] for r in rows[:-1]] == [w[7] for w in wanted]
                assert tuple(rows[-1]) == ("B", 5.0, 5.0, 5.0, 5.0, 10.0, 5.0, None)

    async def test_runs_are_summed_up(self, open_store: OpenStore, query: Query) -> None:
        """Those that began in the last 24 hours, for each job, provider and mode."""
        store = await opened(open_store)
        now = datetime.now(UTC)
        rows = [
            row(
                JOB_RUNS, i, id=f"run{i}", job_name="bars", provider="p", mode="live",
                started_at=now - timedelta(hours=age), elapsed_ms=10 * i if i else None,
            )
            for i, age in enumerate((1, 2, 3, 23, 25))
        ]  # fmt: skip
        await store.upsert(JOB_RUNS, [*rows, without(rows[0], id="other", mode="backfill")])
        found = query(
            """SELECT job_name, provider, mode, runs, running, success, failure, cancelled,
            rows_written, rows_failed, elapsed_ms_avg FROM job_runs_summary ORDER BY mode"""
        )
        assert [tuple(r) for r in found] == [
            ("bars", "p", "backfill", 1, 1, 0, 0, 0, 0, 0, None),
            ("bars", "p", "live", 4, 1, 1, 1, 1, 6, 6, 20),
        ]

    async def test_the_newest_of_each_series(self, open_store: OpenStore) -> None:
        """What a series is depends on the table; all of it where there is less."""
        store = await opened(open_store)
        for table, per in ((SIGNALS, "name"), (FUNDAMENTALS, "metric"), (OPTIONS, "option_type")):
            values = ("C", "P") if table is OPTIONS else ("a", "b")
            fixed = {n: getattr(row(table), n) for n in table.series} | {"symbol": "S"}
            rows = [
                row(table, i, **fixed | {per: value, table.time: START + timedelta(seconds=t)})
                for i, (value, t) in enumerate([(values[0], t) for t in range(5)])
            ] + [row(table, 9, **fixed | {per: values[1], table.time: START})]
            await store.upsert(table, rows)
            found = as_stored(await store.select(Select(table, last=2)), table)
            assert found == by_key(table, [*rows[3:5], rows[5]])
