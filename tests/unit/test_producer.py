"""What a producer writes: names that it refuses, and what it says at a recording's end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from market_data_core.clock import ManualClock
from market_data_core.contracts.provider import Item
from market_data_core.events import NAME_MAX, EventBatch, Rejected, Tick, make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Mark, Record
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.producer import Producer, ProducerSettings

S = 10**9
T = 1_700_000_000 * S
LONG = "L" * (NAME_MAX + 1)
SETTINGS = ProducerSettings("columnar", 1_000, 10 * S, S, 0, "embedded")


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EmbeddedBus]:
    opened = EmbeddedBus(tmp_path, clock=ManualClock(T))
    yield opened
    await opened.close()


async def producer(bus: EmbeddedBus, lane: bool = True) -> Producer:
    info = await bus.create_topic("t", 2)
    sources = [await bus.source("t", p) for p in (0, 1)] if lane else None
    return Producer(bus, codec, info, "p", SETTINGS, ManualClock(T), sources)


async def records(bus: EmbeddedBus) -> list[Record]:
    found = await bus.poll("t", {0: 0, 1: 0}, 1 << 20, 0)
    return [record for number in sorted(found) for record in found[number]]


async def written(bus: EmbeddedBus) -> tuple[list[tuple[str, int]], list[Rejected], list[Mark]]:
    """(symbol, seq) of the events, sorted; what was rejected; the marks."""
    items = [codec.decode(record.payload) for record in await records(bus)]
    events = [
        (event.symbol, event.seq)
        for item in items
        if isinstance(item, EventBatch)
        for event in item.events()
    ]
    rejected = [item for item in items if isinstance(item, Rejected)]
    return sorted(events), rejected, [item for item in items if isinstance(item, Mark)]


def batch(symbols: Sequence[str], first: int = 0, provider: str = "p") -> EventBatch:
    n = len(symbols)
    ts = [T + first + i for i in range(n)]
    return make_batch(provider, symbols, ts, range(first, first + n), [1.0] * n, [1.0] * n)


async def test_events_with_names_that_are_too_long_are_rejected_one_by_one(
    bus: EmbeddedBus,
) -> None:
    carrying = await producer(bus)
    carrying.add(batch(["A", LONG, LONG, "B", "A" * NAME_MAX]))
    carrying.add(batch(["C"], 5, provider=LONG))
    assert carrying.pending == 6
    await carrying.flush()
    events, rejected, _ = await written(bus)
    assert events == [("A", 0), ("A" * NAME_MAX, 4), ("B", 3)]
    originals = [msgspec.json.decode(item.original) for item in rejected]
    assert [(e["symbol"], e["provider"], e["seq"]) for e in originals] == [
        (LONG, "p", 1),
        (LONG, "p", 2),
        ("C", LONG, 5),
    ]
    assert {item.reason for item in rejected} == {"bad_type"}
    assert "a symbol has 1 to 64" in rejected[0].detail
    assert "a provider's name has 1 to 64" in rejected[2].detail


async def test_a_name_that_was_refused_is_not_in_what_is_written(bus: EmbeddedBus) -> None:
    carrying = await producer(bus)
    carrying.add(batch(["A"] * 40 + [LONG] + ["B"] * 40))
    await carrying.flush()
    events, rejected, _ = await written(bus)
    assert (len(events), len(rejected)) == (80, 1)


async def test_ticks_with_names_that_are_too_long_are_rejected(bus: EmbeddedBus) -> None:
    live = await producer(bus, lane=False)
    for seq, (symbol, price) in enumerate([("A", 1.0), (LONG, 1.0), ("", 1.0), (LONG, -1.0)]):
        live.add(Tick(symbol, T, price, 1.0, seq))
    await live.flush()
    events, rejected, _ = await written(bus)
    assert events == [("A", 0)]
    assert sorted(item.reason for item in rejected) == ["bad_type", "bad_type", "negative"]


@pytest.mark.parametrize("cut", range(7))
async def test_a_recording_that_is_resumed_leaves_out_nothing_and_counts_all(
    bus: EmbeddedBus, cut: int
) -> None:
    symbols = ["A", LONG, "B", "C", LONG, "D"]
    whole: list[Item] = [batch(symbols), Rejected("malformed", "", b"x")]
    early = [batch([s], i) for i, s in enumerate(symbols)]
    first = await producer(bus)
    for item in [*early, whole[1]][:cut]:  # cut into other batches than the second time
        first.add(item)
        await first.flush()
    second = await producer(bus)
    for item in whole:
        second.add(item)
    await second.end()
    events, rejected, marks = await written(bus)
    assert events == [("A", 0), ("B", 2), ("C", 3), ("D", 5)]
    assert [item.reason for item in rejected] == ["bad_type", "bad_type", "malformed"]
    here = [partition_of(s, 2) for s in "ABCD"]
    ends = [mark.count for mark in marks if mark.kind == "end"]
    assert ends == [here.count(0) + 3, here.count(1)]
    assert ends == [await bus.received("t", p, (await bus.bounds("t", p)).next) for p in (0, 1)]


async def test_the_end_tells_what_was_read_not_what_the_log_has(bus: EmbeddedBus) -> None:
    carrying = await producer(bus)
    carrying.add(batch(["A", "B", "C", "D"]))
    await carrying.flush()
    (lost,) = [r for r in await records(bus) if r.count and r.partition == partition_of("A", 2)]
    carrying._sources = [1 << 40, 1 << 40]  # as if the log had more than it has
    carrying.add(batch(["A"], 4))
    await carrying.end()
    marks = {r.partition: codec.decode(r.payload) for r in await records(bus) if not r.count}
    mark = marks[lost.partition]
    assert isinstance(mark, Mark)
    assert mark.count == lost.count + 1
