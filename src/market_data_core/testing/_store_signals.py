"""What every store must do with the signals of a group; part of the store suite."""
# ruff: noqa: S101  (asserting is what this module is for)

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from market_data_core.bars import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Message, Store, WriteCounts
from market_data_core.errors import FencedError, RejectedError
from market_data_core.signals import Signal
from market_data_core.tables import SIGNALS, Select
from market_data_core.testing._store_owning import (
    GROUP,
    T0,
    TOPIC,
    FakeGroup,
    OpenStore,
    S,
    batch,
    claimed,
    opened,
)
from market_data_core.testing._store_tables import HOSTILE


def signal(symbol: str = "A", at: int = 0, name: str = "up", **changes: Any) -> Signal:
    """A signal of a window that ends `at` seconds after T0."""
    values: dict[str, Any] = {"value": 1.0, "score": 0.8, "metadata": {"rule": "v1", "x": 0.02}}
    return Signal(provider="p", symbol=symbol, ts=T0 + at * S, name=name, **values | changes)


def but(given: Signal, **changes: Any) -> Signal:
    """The same signal but for `changes`."""
    fields = {name: getattr(given, name) for name in given.__struct_fields__}
    return Signal(**fields | changes)


async def signals_of(store: Store) -> list[Signal]:
    """All that are stored, in the order of their key."""
    frame = (await store.select(Select(SIGNALS))).drop("created_at")
    times = frame["ts"].dt.epoch("ns").to_list()
    return [
        Signal(**found | {"ts": ts, "metadata": json.loads(found["metadata"])})
        for ts, found in zip(times, frame.iter_rows(named=True), strict=True)
    ]


def in_order(signals: Sequence[Signal]) -> list[Signal]:
    """In the order in which a store gives them."""
    return sorted(signals, key=lambda s: (s.provider, s.symbol.encode(), s.ts, s.name.encode()))


class StoreSignalsSuite:
    """Signals in a commit: one transaction with the position, upserted by key."""

    async def test_who_tells_all_publishes_unchanged_bars_too(self, open_store: OpenStore) -> None:
        """But none whose stored bar stays another one."""
        store = await opened(open_store)
        first = FakeGroup(await claimed(store), [batch(("A", 0, 1.0, 2), ("B", 0, 1.0, 2))])
        await store.commit([first], [])
        bars = [batch(("A", 0, 1.0, 2), ("B", 0, 3.0, 1), ("C", 0, 1.0, 2))]
        second = first.next(bars=bars, bars_topic="bars", tells_all=True)
        result = await store.commit([second], [])
        assert result.counts == WriteCounts(inserted=1, unchanged=1, kept=1)
        (told,) = [BarBatch.decode(item.message.payload)[0] for item in result.outbox]
        assert sorted(told.symbol_column()) == ["A", "C"]
        third = second.next(bars=bars, bars_topic="bars", tells_all=True)
        (item,) = (await store.commit([third], [])).outbox
        assert sorted(BarBatch.decode(item.message.payload)[0].symbol_column()) == ["A", "C"]

    async def test_signals_are_committed_with_the_position(self, open_store: OpenStore) -> None:
        """With bars or without; messages are what the group says, none of the store's own."""
        store = await opened(open_store)
        message = Message("signals", "key/1", signal().encode(), 1, 0, "p", T0, T0)
        group = FakeGroup(await claimed(store), bars_topic="bars", messages=[message])
        group.signals = [signal("B"), signal("A", 1), signal("A", 0)]
        result = await store.commit([group], [])
        assert (result.counts, result.signals) == (WriteCounts(), WriteCounts(inserted=3))
        assert [item.message for item in result.outbox] == [message]
        assert await signals_of(store) == [signal("A", 0), signal("A", 1), signal("B")]
        both = group.next(bars=[batch(("A", 0, 1.0, 1))], signals=[signal("C")])
        result = await store.commit([both], [])
        assert result.counts == result.signals == WriteCounts(inserted=1)
        assert (await store.status())[0].sequence == 2
        assert (await store.commit([both.next()], [])).signals == WriteCounts()

    @pytest.mark.parametrize("reason", ["token", "sequence", "guard"])
    async def test_a_fenced_commit_writes_no_signal(
        self, open_store: OpenStore, reason: str
    ) -> None:
        """Not even those of the groups beside the one that was lost."""
        store, other = await opened(open_store), await opened(open_store)
        held, lost = await claimed(store, 0), await claimed(store, 1)
        before = [signal("A"), signal("B", value=-1.0)]
        await store.commit([FakeGroup(held, signals=before)], [])
        held, guard = replace(held, sequence=1), None
        if reason == "token":
            await claimed(other, 1)
        elif reason == "sequence":
            await other.commit([FakeGroup(lost)], [])
        else:
            guard, lost = lost, await claimed(other, 1)
        groups = [
            FakeGroup(held, signals=[but(before[0], state="retracted"), signal("C")]),
            FakeGroup(lost, signals=[signal("D")]),
        ]
        with pytest.raises(FencedError):
            await store.commit(groups, [], guard)
        assert await signals_of(other) == before
        assert (await store.status())[0].sequence == 1
        await store.commit(groups[:1], [])
        assert await signals_of(other) == [groups[0].signals[0], before[1], signal("C")]

    async def test_a_signal_that_can_never_be_stored_stops_the_commit(
        self, open_store: OpenStore
    ) -> None:
        """It is named, and nothing is written: neither bars, position nor other signals."""
        store = await opened(open_store)
        group = FakeGroup(await claimed(store), [batch(("A", 0, 1.0, 1))], "bars")
        faults: list[dict[str, Any]] = [
            {"value": float("nan")},
            {"score": float("inf")},
            {"name": ""},
            {"state": "unsure"},
            {"metadata": {"x": float("nan")}},
            {"ts": 2**63},
        ]
        for fault in faults:
            group.signals = [*(signal(f"S{i}") for i in range(600)), but(signal("BAD"), **fault)]
            with pytest.raises(RejectedError, match="'BAD'") as caught:
                await store.commit([group], [])
            assert caught.value.reason == "unwritable", fault
        assert await signals_of(store) == []
        assert len(await store.bars()) == 0
        assert await store.outbox(GROUP, TOPIC, 0) == []
        assert (await store.status())[0].sequence == 0

    async def test_signals_are_upserted(self, open_store: OpenStore) -> None:
        """Again is unchanged; any value, score, state or metadata that differs is put in place."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        given = [signal("A"), signal("B"), signal("C", score=None, metadata={})]
        group = FakeGroup(await claimed(store), signals=given)
        assert (await store.commit([group], [])).signals == WriteCounts(inserted=3)
        created = (await store.select(Select(SIGNALS)))["created_at"]
        clock.advance(S)
        group = group.next(signals=given)
        assert (await store.commit([group], [])).signals == WriteCounts(unchanged=3)
        for change in ({"value": -1.0}, {"score": None}, {"score": 0.5}, {"metadata": {"n": [1]}}):
            given[0] = but(given[0], **change)
            group = group.next(signals=[*given, signal("D", len(given))])
            counts = (await store.commit([group], [])).signals
            assert (counts.updated, counts.inserted + counts.unchanged) == (1, 3), change
            assert await signals_of(store) == [*given, signal("D", 3)]
        assert (await store.select(Select(SIGNALS)))["created_at"][:3].equals(created)

    async def test_a_signal_is_retracted_and_comes_back(self, open_store: OpenStore) -> None:
        """It stays in the table, with its state; others of the time or name are left alone."""
        store = await opened(open_store)
        others = [signal("A", 0, "down"), signal("A", 1), signal("B")]
        group = FakeGroup(await claimed(store), signals=[signal("A"), *others])
        await store.commit([group], [])
        retracted = but(signal("A"), state="retracted")
        for now, counts in (
            (retracted, WriteCounts(updated=1)),
            (retracted, WriteCounts(unchanged=1)),
            (but(signal("A"), value=2.0), WriteCounts(updated=1)),
            (but(retracted, value=2.0), WriteCounts(updated=1)),
        ):
            group = group.next(signals=[now])
            assert (await store.commit([group], [])).signals == counts
            assert await signals_of(store) == in_order([now, *others])

    async def test_the_last_of_a_key_counts(self, open_store: OpenStore) -> None:
        """Within a group and across the groups of a commit."""
        store = await opened(open_store)
        groups = [FakeGroup(await claimed(store, p)) for p in (0, 1)]
        retracted = but(signal(), state="retracted")
        groups[0].signals = [signal(), signal("B"), retracted]
        groups[1].signals = [but(signal("B"), value=5.0), but(signal("B"), value=6.0)]
        counts = (await store.commit(groups, [])).signals
        assert counts == WriteCounts(inserted=2, unchanged=3)
        assert await signals_of(store) == [retracted, but(signal("B"), value=6.0)]

    async def test_signals_come_back_bit_by_bit(self, open_store: OpenStore) -> None:
        """Any finite float64, any text, any JSON; what is not known as null."""
        store = await opened(open_store)
        fine = [0.1 + 0.2, 5e-324, 1 / 3, -123456.78901234567]
        awkward = [*fine, 1.7976931348623157e308, -1e22]
        numbers = [
            signal("A", i, value=value, score=-value if i % 2 else None, metadata={"x": fine})
            for i, value in enumerate(awkward)
        ]
        texts = [
            signal("B", i, text, metadata={text: [text, {"a": None, "b": True, "c": 2**53}]})
            for i, text in enumerate(HOSTILE)
        ]
        edges = [signal("C", -(10**9)), but(signal("C"), ts=T0 + 123_456_000)]
        given = [*texts, *numbers, *edges]
        group = FakeGroup(await claimed(store), signals=given)
        assert (await store.commit([group], [])).signals == WriteCounts(inserted=len(given))
        found = await signals_of(store)
        assert found == in_order(given)
        assert [s.value.hex() for s in found] == [s.value.hex() for s in in_order(given)]
        again = group.next(signals=given)
        assert (await store.commit([again], [])).signals == WriteCounts(unchanged=len(given))

    async def test_writers_of_several_partitions_do_not_wait_for_each_other(
        self, open_store: OpenStore
    ) -> None:
        """New, changed and unchanged signals of two partitions each, in any order, at once."""
        stores = [await opened(open_store) for _ in range(3)]
        groups = [[FakeGroup(await claimed(stores[w], 2 * w + p)) for p in (0, 1)] for w in (0, 1)]
        for step in range(6):
            for w, mine in enumerate(groups):
                for p, group in enumerate(mine):
                    names = [f"S{(7 * i) % 100:02}/{w}{p}" for i in range(100)]
                    at = [*range(step), step]
                    group.signals = [
                        signal(name, t, value=float(step - t)) for t in at[-2:] for name in names
                    ][:: 1 if (step + w) % 2 else -1]
            # the third client writes the same rows as such
            table = [s for mine in groups for group in mine for s in group.signals][::-1]
            results = await asyncio.gather(
                *(stores[w].commit(mine, []) for w, mine in enumerate(groups)),
                stores[2].upsert(SIGNALS, table),
            )
            assert isinstance(results[2], WriteCounts)
            groups = [[group.next() for group in mine] for mine in groups]
        found = await signals_of(stores[2])
        assert len(found) == 4 * 100 * 6
        assert all(s.value == (0.0 if s.ts == T0 + 5 * S else 1.0) for s in found)

    async def test_thousands_of_signals_in_a_commit(self, open_store: OpenStore) -> None:
        """More than a statement takes, some of them stored; and what a warm start reads of them."""
        store = await opened(open_store)
        first = [signal(f"S{i:04}", 0) for i in range(0, 9_000, 3)]
        group = FakeGroup(await claimed(store), signals=first)
        await store.commit([group], [])
        whole = [signal(f"S{i:04}", 0, value=1.0 if i % 2 else 2.0) for i in range(9_000)]
        later = [signal(f"S{i:04}", 60) for i in range(0, 9_000, 2)]
        group = group.next(signals=[*later, *whole])
        counts = (await store.commit([group], [])).signals
        assert counts == WriteCounts(inserted=4_500 + 6_000, updated=1_500, unchanged=1_500)
        names = [f"S{i:04}" for i in range(0, 9_000, 4)]
        wanted = {"provider": ["p"], "symbol": names}
        for bounds in ({}, {"start": T0}, {"start": T0 + 1, "end": T0 + 61 * S}):
            frame = await store.select(Select(SIGNALS, wanted, **bounds))
            assert len(frame) == (1 if bounds.get("end") else 2) * len(names)
        newest = await store.select(Select(SIGNALS, wanted | {"name": ["up"]}, last=1))
        assert newest["ts"].dt.epoch("ns").to_list() == [T0 + 60 * S] * len(names)
