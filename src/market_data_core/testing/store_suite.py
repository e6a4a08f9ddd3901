"""What every store must do: one class of tests, to be run over each backend.

A backend's test module inherits the class and says how its database is opened and looked into::

    class TestReplica(StoreSuite):
        @pytest.fixture
        async def open_store(self, tmp_path):
            ...
            yield open_one      # open_one(clock): another client of the same, at first empty, one
            ...                 # close them all

        @pytest.fixture
        def query(self, tmp_path):
            return lambda sql: ...      # its rows, read past the store

The tests are coroutines (pytest-asyncio in its ``auto`` mode). A ``conftest.py`` that calls
``pytest.register_assert_rewrite("market_data_core.testing")`` makes their failures show values.
"""
# ruff: noqa: S101  (asserting is what this module is for)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from market_data_core.bars import VALUE_COLUMNS, BarBatch
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import BadRow, Gap, Store, WriteCounts
from market_data_core.testing._store_owning import (
    GROUP,
    T0,
    TOPIC,
    FakeGroup,
    OpenStore,
    Query,
    Row,
    S,
    StoreOwningSuite,
    batch,
    claimed,
    everything,
    key,
    opened,
)
from market_data_core.testing._store_reading import StoreReadingSuite
from market_data_core.testing._store_signals import StoreSignalsSuite
from market_data_core.testing._store_tables import HOSTILE, StoreTablesSuite

__all__ = ["OpenStore", "Query", "StoreSuite"]


async def stored(store: Store) -> dict[tuple[str, int], tuple[float, int | None, str]]:
    """(symbol, start in s after T0) -> close, trade count, state."""
    frame = await store.bars()
    starts = ((frame["ts"].dt.epoch("ns") - T0) // S).to_list()
    columns = [frame[c].to_list() for c in ("symbol", "close", "trade_count", "state")]
    return {(s, t): (c, n, state) for t, s, c, n, state in zip(starts, *columns, strict=True)}


async def write(
    store: Store, group: FakeGroup, *batches: BarBatch
) -> tuple[FakeGroup, WriteCounts]:
    """Commit `batches` as what follows `group`; returns that and its counts."""
    following = group.next(bars=batches)
    result = await store.commit([following], [])
    return following, result.counts


async def started(store: Store) -> FakeGroup:
    """A first commit with nothing in it."""
    group = FakeGroup(await claimed(store))
    await store.commit([group], [])
    return group


class StoreSuite(StoreOwningSuite, StoreTablesSuite, StoreSignalsSuite, StoreReadingSuite):
    """The contract of :class:`market_data_core.contracts.store.Store`, test by test."""

    async def test_counts_say_what_was_done(self, open_store: OpenStore) -> None:
        """New, changed, as they were, refused; only what differs is written."""
        store = await opened(open_store)
        group = await started(store)
        first = [("A", 0, 1.0, 2), ("A", 1, 1.5, 2), ("B", 0, 2.0, 2)]
        group, counts = await write(store, group, batch(*first))
        assert counts == WriteCounts(inserted=3)
        group, counts = await write(store, group, batch(*first), batch())
        assert counts == WriteCounts(unchanged=3)
        mixed = batch(("A", 0, 1.1, 2), ("A", 1, 9.0, 1), ("B", 0, 2.0, 2), ("C", 0, 3.0, 1))
        group, counts = await write(store, group, mixed)
        assert counts == WriteCounts(inserted=1, updated=1, unchanged=1, kept=1)
        assert await stored(store) == {
            ("A", 0): (1.1, 2, "revised"),
            ("A", 1): (1.5, 2, "final"),
            ("B", 0): (2.0, 2, "final"),
            ("C", 0): (3.0, 1, "final"),
        }

    @pytest.mark.parametrize(
        ("old", "new", "outcome", "state"),
        [
            (("final", 1.0, 3), ("final", 2.0, 3), "updated", "revised"),
            (("final", 1.0, 3), ("revised", 2.0, 4), "updated", "revised"),
            (("final", 1.0, 3), ("revised", 2.0, 2), "kept", "final"),
            (("final", 1.0, 3), ("gap", 2.0, 2), "kept", "final"),
            (("final", 1.0, 3), ("revised", 1.0, 3), "unchanged", "final"),
            (("revised", 1.0, 3), ("final", 1.0, 3), "unchanged", "revised"),
            (("gap", 1.0, 3), ("final", 2.0, 2), "kept", "gap"),
            (("gap", 1.0, 3), ("final", 1.0, 3), "updated", "revised"),
            (("gap", 1.0, 3), ("gap", 2.0, 4), "updated", "gap"),
            (("gap", 1.0, 3), ("gap", 2.0, 2), "kept", "gap"),
            (("gap", 1.0, 3), ("gap", 1.0, 3), "unchanged", "gap"),
            (("final", 1.0, -1), ("final", 2.0, -1), "updated", "revised"),
            (("final", 1.0, 3), ("final", 2.0, -1), "updated", "revised"),
            (("final", 1.0, -1), ("final", 1.0, 3), "updated", "revised"),
        ],
    )
    async def test_a_bar_gives_way_to_a_better_one(
        self, open_store: OpenStore, old: Any, new: Any, outcome: str, state: str
    ) -> None:
        """Made of at least as many events, or whole where the stored one is known not to be."""
        store = await opened(open_store)
        group = await started(store)
        group, _ = await write(store, group, batch(("A", 0, *old[1:]), state=old[0]))
        group, counts = await write(store, group, batch(("A", 0, *new[1:]), state=new[0]))
        assert counts == WriteCounts(**{outcome: 1})
        values = new if outcome == "updated" else old
        count = None if values[2] < 0 else values[2]
        assert await stored(store) == {("A", 0): (values[1], count, state)}

    async def test_replaced_versions_go_to_history(
        self, open_store: OpenStore, query: Query
    ) -> None:
        """With the time until which each was known; what is unchanged leaves no trace."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        group = await started(store)
        for close in (1.0, 1.0, 2.0, 3.0):
            clock.advance(S)
            group, _ = await write(store, group, batch(("A", 0, close, 2), ("B", 0, 5.0, 1)))
        columns = "symbol, close, volume, trade_count, state"
        history = "FROM bars_ohlcv_history h"
        rows = query(f"SELECT {columns} {history} ORDER BY known_until")
        assert [tuple(row) for row in rows] == [
            ("A", 1.0, 2.0, 2, "final"),
            ("A", 2.0, 4.0, 2, "revised"),
        ]
        assert query(f"SELECT count(*) {history} WHERE known_from < known_until")[0][0] == 2
        chained = """SELECT count(*) FROM bars_ohlcv_history h, bars_ohlcv_history g, bars_ohlcv b
            WHERE h.close = 1 AND g.close = 2 AND h.known_until = g.known_from
            AND b.symbol = h.symbol AND g.known_until = b.updated_at"""
        assert query(chained)[0][0] == 1
        frame = (await store.bars("A")).select(pl.col("created_at", "updated_at").dt.epoch("ns"))
        assert frame.rows() == [(T0 + S, T0 + 4 * S)]

    async def test_a_key_twice_in_a_group(self, open_store: OpenStore, query: Query) -> None:
        """Batches are written in order; each sees what the one before it did."""
        store = await opened(open_store)
        group = FakeGroup(await claimed(store), bars_topic="bars")
        group.bars = [
            batch(("A", 0, 1.0, 1), ("B", 0, 1.0, 1)),
            batch(("A", 0, 2.0, 2), state="revised"),
            batch(("A", 0, 1.5, 1), state="revised"),
            batch(("B", 0, 1.0, 1), state="revised"),
        ]
        result = await store.commit([group], [])
        assert result.counts == WriteCounts(inserted=2, updated=1, unchanged=1, kept=1)
        assert await stored(store) == {("A", 0): (2.0, 2, "revised"), ("B", 0): (1.0, 1, "final")}
        assert len(query("SELECT 1 FROM bars_ohlcv_history")) == 1
        assert [item.message.count for item in result.outbox] == [2, 1]

    async def test_a_key_twice_in_a_batch(self, open_store: OpenStore, query: Query) -> None:
        """The second one is judged by the first, whether that was there before or not."""
        store = await opened(open_store)
        group = await started(store)
        twice = [("A", 0, 1.0, 1), ("A", 0, 1.0, 1), ("B", 0, 1.0, 9), ("B", 0, 2.0, 3)]
        group, counts = await write(store, group, batch(*twice))
        assert counts == WriteCounts(inserted=2, unchanged=1, kept=1)
        found = {("A", 0): (1.0, 1, "final"), ("B", 0): (1.0, 9, "final")}
        assert await stored(store) == found
        again = [("A", 0, 5.0, 1), ("A", 0, 1.0, 1), ("A", 0, 1.0, 1)]
        group, counts = await write(store, group, batch(*again))
        assert counts == WriteCounts(updated=2, unchanged=1)
        assert (await stored(store))["A", 0] == (1.0, 1, "revised")
        history = query("SELECT close FROM bars_ohlcv_history ORDER BY id")
        assert history == [(1.0,), (5.0,)]

    @pytest.mark.parametrize("fresh", [True, False], ids=["all new", "some stored"])
    async def test_poisoned_rows_are_found_and_left_out(
        self, open_store: OpenStore, fresh: bool
    ) -> None:
        """Of five thousand bars only those that can never be stored are not."""
        store = await opened(open_store)
        group = await started(store)
        whole = batch(*((f"S{i % 50}", i // 50, 1.0 + i, 1) for i in range(5_000)))
        if not fresh:
            group, _ = await write(store, group, whole.take(np.arange(0, 5_000, 3)))
        close, volume = whole.close.copy(), whole.volume.copy()
        close[[0, 1234]], volume[[1235, 4999]] = np.nan, np.inf
        nameless = replace(batch(("A", 0, 1.0, 1)), symbols=("",))
        following = group.next(
            bars=[batch(("A", 0, 1.0, 1)), replace(whole, close=close, volume=volume), nameless],
            bars_topic="bars",
        )
        result = await store.commit([following], [])
        bad = [(1, 0), (1, 1234), (1, 1235), (1, 4999), (2, 0)]
        assert [(b.batch, b.row) for b in result.bad[0]] == bad
        assert all(isinstance(b, BadRow) and b.error for b in result.bad[0])
        assert following.finished == [result.bad[0]]
        already = 0 if fresh else len(set(range(0, 5_000, 3)) - {0, 1234, 1235, 4999})
        counts = WriteCounts(inserted=4_997 - already, unchanged=already, bad=5)
        assert result.counts == counts
        values = await stored(store)
        rows = {i: (f"S{i % 50}", i // 50) for i in range(5_000)}
        missing = [i for i, name in rows.items() if name not in values]
        assert missing == [i for i in (0, 1234, 1235, 4999) if fresh or i % 3]
        published = sum(item.message.count for item in result.outbox)
        assert published == result.counts.inserted
        for item in result.outbox:
            message, _ = BarBatch.decode(item.message.payload)
            assert np.isfinite(message.close).all()
            assert np.isfinite(message.volume).all()
        assert (await store.status())[0].sequence == following.claim.sequence + 1

    async def test_changed_bars_are_published(self, open_store: OpenStore) -> None:
        """They alone, as they are stored, under versions that rise and keys that do not recur."""
        store = await opened(open_store)
        groups = [FakeGroup(await claimed(store, p), bars_topic="bars") for p in (0, 1)]
        groups[0].bars = [
            batch(("A", 0, 1.0, 1), ("B", 0, 2.0, 1)),
            batch(("A", 0, 1.0, 1), interval="2s"),
        ]
        groups[1].bars = [batch(("C", 5, 3.0, -1), ("C", 2, 3.0, -1))]
        items = (await store.commit(groups, [])).outbox
        again = groups[0].next(bars=groups[0].bars, bars_topic="bars")
        assert (await store.commit([again], [])).outbox == []
        changed = [batch(("B", 0, 2.5, 1), ("A", 0, 1.0, 1), ("D", 0, 4.0, 1), state="revised")]
        third = again.next(bars=changed, bars_topic="bars")
        items += (await store.commit([third], [])).outbox
        quiet = third.next(bars=[batch(("E", 0, 1.0, 1))])
        assert (await store.commit([quiet], [])).outbox == []
        other = await store.claim(key(0, "other group"), "a", 1)
        assert other is not None
        more = FakeGroup(other, [batch(("F", 0, 1.0, 1))], "bars")
        items += (await store.commit([more], [])).outbox
        messages = [item.message for item in items]
        assert [item.partition for item in items] == [0, 0, 1, 0, 0]
        assert {m.destination for m in messages} == {"bars"}
        assert len({m.key for m in messages}) == len(messages)
        assert [(m.count, m.provider, m.partition) for m in messages] == [
            (n, "p", -1) for n in (2, 1, 2, 2, 1)
        ]
        assert (messages[2].min_ts, messages[2].max_ts) == (T0 + 2 * S, T0 + 5 * S)
        decoded = [BarBatch.decode(m.payload) for m in messages]
        versions = [version for _, version in decoded]
        assert versions == sorted(set(versions))
        assert [(b.interval, b.state) for b, _ in decoded[:4]] == [
            ("1s", "final"), ("2s", "final"), ("1s", "final"), ("1s", "revised"),
        ]  # fmt: skip
        revised = decoded[3][0]
        assert dict(zip(revised.symbol_column(), revised.close.tolist(), strict=True)) == {
            "B": 2.5,
            "D": 4.0,
        }
        for name in (*VALUE_COLUMNS, "ts"):
            wanted = getattr(groups[1].bars[0], name)
            assert getattr(decoded[2][0], name).tobytes() == wanted.tobytes()

    async def test_values_come_back_bit_by_bit(self, open_store: OpenStore) -> None:
        """Any finite float64, any time of the years that are allowed, what is not known as null."""
        store = await opened(open_store)
        awkward = [0.1 + 0.2, 5e-324, 1.7976931348623157e308 / 2, 1 / 3, 1e22, 123456.78901234567]
        rows: list[Row] = [("A", i, value, 2**53 + i) for i, value in enumerate(awkward)]
        given = batch(*rows, ("A", -(10**9), 0.0, -1))
        vwap, ts = given.vwap.copy(), given.ts.copy()
        vwap[-1], ts[0] = np.nan, T0 + 123_456_000
        given = replace(given, vwap=vwap, ts=ts, volume=given.close)
        await write(store, await started(store), given)
        frame = await store.bars()
        order = np.argsort(given.ts)
        for name in ("open", "high", "low", "close", "volume"):
            assert frame[name].to_numpy().tobytes() == getattr(given, name)[order].tobytes()
        assert frame["vwap"].to_list() == [None, *given.vwap[order].tolist()[1:]]
        assert frame["trade_count"].to_list() == [None, *given.trade_count[order].tolist()[1:]]
        assert frame["ts"].dt.epoch("ns").to_list() == given.ts[order].tolist()

    async def test_names_are_only_names(self, open_store: OpenStore) -> None:
        """Whatever a provider, symbol, group or topic is called."""
        store = await opened(open_store)
        group = await started(store)
        batches = [batch(*((s, 0, 1.0, 1) for s in HOSTILE), provider=p) for p in HOSTILE]
        group, counts = await write(store, group, *batches)
        assert counts == WriteCounts(inserted=len(HOSTILE) ** 2)
        group, counts = await write(store, group, *batches)
        assert counts == WriteCounts(unchanged=len(HOSTILE) ** 2)
        pairs = {(p, s) for p in HOSTILE for s in HOSTILE}
        assert set((await store.bars()).select("provider", "symbol").iter_rows()) == pairs
        for name in HOSTILE:
            assert len(await store.bars(name)) == len(HOSTILE)
            assert (await store.bars(name, "1s", name)).select("provider", "symbol").rows() == [
                (name, name)
            ]
            claim = await store.claim(key(3, name, name), name, S)
            assert claim is not None
            await store.commit([FakeGroup(claim)], [])
            (row,) = await store.status(name, name)
            assert (row.key, row.owner, row.sequence) == (claim.key, name, 1)

    async def test_bars_are_filtered_and_ordered(self, open_store: OpenStore) -> None:
        """Any combination of filters; start is inside, end is outside; the order is the key's."""
        store = await opened(open_store)
        batches = [
            batch(*((s, t, 1.0, 1) for t in (3, 1, 2) for s in "BA"), provider=p, interval=i)
            for p in ("q", "p")
            for i in ("2s", "1s")
        ]
        await write(store, await started(store), *batches)

        async def found(*args: Any) -> list[tuple[str, str, str, int]]:
            frame = await store.bars(*args)
            starts = ((frame["ts"].dt.epoch("ns") - T0) // S).to_list()
            names = frame.select("provider", "symbol", "interval").rows()
            return [(*name, start) for name, start in zip(names, starts, strict=True)]

        whole = await found()
        assert len(whole) == 24
        assert whole == sorted(whole)
        assert await found("A") == [k for k in whole if k[1] == "A"]
        assert await found(None, "2s", "p") == [k for k in whole if (k[0], k[2]) == ("p", "2s")]
        assert await found("A", "1s", "p", T0 + S, T0 + 3 * S) == [
            ("p", "A", "1s", 1),
            ("p", "A", "1s", 2),
        ]
        assert await found(None, None, None, T0 + S + 1, None) == [k for k in whole if k[3] > 1]
        assert await found(None, None, None, None, T0 + S) == []
        assert await found("a") == []

    async def test_frames_have_one_shape(self, open_store: OpenStore) -> None:
        """The table's columns and fixed types, rows or none."""
        store = await opened(open_store)
        moment = pl.Datetime("ns", "UTC")
        schema = {
            "provider": pl.String, "symbol": pl.String, "interval": pl.String, "ts": moment,
            **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), pl.Float64),
            "trade_count": pl.Int64, "state": pl.String, "created_at": moment, "updated_at": moment,
        }  # fmt: skip
        empty = await store.bars()
        assert dict(empty.schema) == schema
        assert len(empty) == 0
        unknown = replace(batch(("A", 0, 1.0, -1)), vwap=np.array([np.nan]))
        await write(store, await started(store), unknown)
        frame = await store.bars()
        assert dict(frame.schema) == schema
        assert len(frame) == 1

    async def test_a_gap_is_entered_once(self, open_store: OpenStore) -> None:
        """However often it is found; another cause is another gap."""
        store = await opened(open_store)
        gap = Gap("p'", "*", T0, T0 + S, "log_trimmed", 'partition "0"')
        other = replace(gap, cause="log_replaced")
        group = FakeGroup(await claimed(store), gaps=[gap, gap])
        await store.commit([group], [])
        await store.commit([group.next(gaps=[replace(gap, detail="again"), other])], [])
        assert await store.gaps() == [gap, other]
        assert gap.state == "open"

    async def test_the_gap_ledger_is_read_by_anybody(self, open_store: OpenStore) -> None:
        """Nothing is in it at first; then the entries, as they were made."""
        store, other = await opened(open_store), await opened(open_store)
        assert await other.gaps() == []
        gaps = [Gap("p", symbol, T0 - S, T0, "log_trimmed", "x") for symbol in "BA"]
        await store.commit([FakeGroup(await claimed(store), gaps=gaps)], [])
        assert await other.gaps() == gaps

    async def test_everything_is_there_after_reopening(self, open_store: OpenStore) -> None:
        """Closing twice is closing; it does not disturb other clients."""
        store, other = await opened(open_store), await opened(open_store)
        group = FakeGroup(await claimed(store), [batch(("A", 0, 1.0, 1))], "bars")
        await store.commit([group], [])
        before = await everything(store)
        await store.close()
        await store.close()
        assert await everything(other) == before
        await other.close()
        again = open_store(ManualClock(T0))
        assert await everything(again) == before
        assert len(before[0]) == 1
        await again.commit([group.next()], [])
        assert len(await again.outbox(GROUP, TOPIC, 0)) == 1
