"""Whatever crashes where, bars and counts are those of the log, each event counted once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property._harness import (
    BARS,
    EVENTS,
    GROUP,
    LETTERS,
    Crash,
    Life,
    MemoryBus,
    MemoryStore,
    Mortal,
    assert_same,
    entries_of,
    entry_of,
    expect,
    letters_of,
    mark_entry,
    total_counts,
)

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Message, OutboxItem, PartitionKey, WriteCounts
from market_data_core.errors import FencedError, TransientError
from market_data_core.events import EventBatch, Rejected
from market_data_core.intervals import NS_PER_MS, NS_PER_S, format_interval
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Mark
from market_data_core.testing.oracle import OracleEvent, batch_bars
from market_data_core.testing.strategies import PROVIDERS, START_NS, decimals, logs, to_batches
from market_data_core.wire import decode_event
from market_data_pipeline.bus import codec
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows import micro_batcher
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import decode_checkpoint
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.history import LaneHistory, RawEvents
from market_data_pipeline.windows.micro_batcher import MicroBatcher
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.recovery import recover
from market_data_pipeline.windows.settings import BatcherSettings

PARTITIONS = 2
MAX_FUTURE_NS = 5 * NS_PER_S
LEASE_NS = NS_PER_S


@pytest.fixture(autouse=True, scope="module")
def _no_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batcher, "_TICK_S", 0.0)
        yield


@dataclass
class World:
    """One log, one store, and per partition the owner of the moment and one that lost it."""

    spec: WindowSpec
    clock: ManualClock = field(default_factory=lambda: ManualClock(START_NS))

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.clock)
        self.store = MemoryStore(self.clock, base=format_interval(self.spec.base_ns))
        self.owners: dict[int, Partition] = {}
        self.members = 0
        self.topics = Topics(EVENTS, PARTITIONS, "", LETTERS)

    async def begin(self) -> None:
        await self.bus.create_topic(EVENTS, PARTITIONS)
        await self.bus.create_topic(BARS, PARTITIONS)
        await self.bus.create_topic(LETTERS, 1)

    async def own(self, number: int) -> Partition:
        """The partition, taken over if nobody has it."""
        if number not in self.owners:
            self.members += 1
            self.clock.advance(LEASE_NS + 1)
            key = PartitionKey(GROUP, EVENTS, number)
            claim = await self.store.claim(key, f"m{self.members}", LEASE_NS)
            assert claim
            found = await recover(
                self.bus,
                self.bus.infos[EVENTS],
                number,
                decode_checkpoint(claim.checkpoint) if claim.checkpoint else None,
                self.spec.base_ns,
            )
            assert not found.message
            await self.publish(await self.store.outbox(GROUP, EVENTS, number))
            self.owners[number] = Partition(
                claim, found.checkpoint, self.spec, self.topics, codec, MAX_FUTURE_NS
            )
        return self.owners[number]

    async def publish(self, items: list[OutboxItem]) -> None:
        for item in items:
            m: Message = item.message
            to = m.partition if m.partition >= 0 else item.partition
            entry = Entry(to, m.payload, m.count, m.provider, m.min_ts, m.max_ts, key=m.key)
            await self.bus.append(m.destination, [entry])

    async def poll(self, number: int, most: int) -> bool:
        partition = await self.own(number)
        records = self.bus.read(EVENTS, number, partition.position, most)
        partition.take(records, self.clock.now_ns())
        return bool(records)

    async def commit(self, number: int, outcome: str) -> None:
        """Collect what is due and write the group; crash at the chosen place."""
        partition = await self.own(number)
        for provider, stream in list(partition.ticks.items()):
            if stream.due():
                partition.collect(provider)
        if not partition.dirty:
            return
        group = partition.group()
        self.store.fail = outcome if outcome in ("before", "after") else ""
        try:
            result = await self.store.commit([group], [])
        except (TransientError, FencedError):
            self.crash(number)
            return
        if outcome == "unpublished":
            self.crash(number)
            return
        partition.committed(group, [])
        await self.publish(result.outbox)

    def crash(self, number: int) -> None:
        self.owners.pop(number, None)

    async def takeover(self, number: int) -> None:
        """Another owner writes while the old one still thinks that it owns the partition."""
        old = await self.own(number)
        del self.owners[number]
        await self.own(number)
        if old.dirty:
            try:
                await self.store.commit([old.group()], [])
            except FencedError:
                return
            raise AssertionError("a fenced owner wrote")

    async def drain(self) -> None:
        """Until every record is read and everything decided is published."""
        left = True
        while left:
            for p in range(PARTITIONS):
                await self.poll(p, 1_000)
                await self.commit(p, "done")
            # what was misplaced has come back as something to read
            owned = [(await self.own(p)).position for p in range(PARTITIONS)]
            left = owned != [self.bus.heads[EVENTS, p][0] for p in range(PARTITIONS)]


@st.composite
def specs(draw: st.DrawFn, patience_ms: tuple[int, ...] = (0, 500, 1_500)) -> WindowSpec:
    lengths_ms = draw(st.sampled_from(((2_000, 3_000), (1_000, 2_000, 5_000), (500,))))
    return WindowSpec(
        tuple(ms * NS_PER_MS for ms in lengths_ms),
        draw(st.sampled_from(patience_ms)) * NS_PER_MS,
        draw(st.sampled_from(patience_ms)) * NS_PER_MS,
    )


@st.composite
def entries(draw: st.DrawFn) -> list[list[Entry]]:
    """Appends: columnar batches, single events, misplaced ones, marks and rejected input."""
    log = draw(logs(8 * NS_PER_S, 4 * NS_PER_S, PROVIDERS, size_max=30))
    appends: list[list[Entry]] = []
    at = 0
    while at < len(log):
        size = draw(st.integers(1, 6))
        part, at = log[at : at + size], at + size
        entries: list[Entry] = []
        shape = draw(st.integers(0, 5))
        for batch in to_batches(part):
            owners = [partition_of(s, PARTITIONS) for s in batch.symbols]
            for p in range(PARTITIONS):
                mine = [owners[c] == p for c in batch.codes.tolist()]
                rows = batch.take([i for i, m in enumerate(mine) if m])  # type: ignore[arg-type]
                if len(rows):
                    to = 1 - p if shape == 5 else p
                    make = entries_of if shape in (1, 2, 5) else lambda b, q: [entry_of(b, q)]
                    entries += make(rows, to)
        appends.append(entries)
        extra = draw(st.integers(0, 9))
        if extra < 6:
            appends.append([draw(_extra(part[-1].src_ts, extra))])
    return appends


@st.composite
def _extra(draw: st.DrawFn, now: int, kind: int) -> Entry:
    partition, provider = draw(st.integers(0, PARTITIONS - 1)), draw(st.sampled_from(PROVIDERS))
    if kind == 0:
        rejected = Rejected("malformed", "broken", draw(st.binary(max_size=4)))
        return Entry(partition, codec.encode_rejected(rejected), 1)
    if kind == 1:
        return Entry(partition, b"{", 1)
    if kind == 2:
        return mark_entry(Mark(kind="pause", provider=provider), partition)
    if kind == 3:
        ts = now - draw(st.integers(0, 2)) * NS_PER_S
        return mark_entry(Mark(kind="idle", provider=provider, ts=ts), partition)
    return mark_entry(Mark(kind="progress", provider=provider, ts=now), partition)


actions = st.tuples(
    st.sampled_from(
        ("poll", "poll", "commit", "commit", "before", "after", "unpublished", "crash", "takeover")
    ),
    st.integers(0, PARTITIONS - 1),
    st.integers(1, 5),
)


async def carry(
    world: World, appends: list[list[Entry]], doing: list[list[tuple[str, int, int]]]
) -> None:
    await world.begin()
    for part, steps in zip(appends, doing, strict=True):
        world.clock.advance(NS_PER_S // 4)
        await world.bus.append(EVENTS, part)
        for name, number, most in steps:
            if name == "poll":
                await world.poll(number, most)
            elif name == "crash":
                world.crash(number)
            elif name == "takeover":
                await world.takeover(number)
            else:
                await world.commit(number, name)
    await world.drain()


@settings(max_examples=100)
@given(st.data(), specs(), entries())
def test_every_event_is_counted_once_whatever_crashes(
    data: st.DataObject, spec: WindowSpec, appends: list[list[Entry]]
) -> None:
    doing = data.draw(
        st.lists(st.lists(actions, max_size=5), min_size=len(appends), max_size=len(appends))
    )
    world = World(spec)
    asyncio.run(carry(world, appends, doing))

    expected = expect(world.bus, EVENTS, spec, MAX_FUTURE_NS)
    assert_same(world.store.kept, expected.bars)
    assert total_counts(world.store, EVENTS) == expected.counts
    found = [letter.reason for letter in letters_of(world.bus)]
    assert sorted(found) == sorted(expected.reasons.elements())
    assert set(world.store.keys.values()) <= {1}


LANE_MAX_FUTURE_NS = 10**15


@dataclass
class Lanes:
    """Lanes of one provider over one log and one store, run one after the other."""

    spec: WindowSpec
    clock: ManualClock = field(default_factory=lambda: ManualClock(START_NS))

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.clock)
        self.store = MemoryStore(self.clock, base=format_interval(self.spec.base_ns))
        self.logs: dict[str, list[OracleEvent]] = {}
        self.runs = 0

    async def feed(self, lane: str, recording: list[OracleEvent], size: int) -> None:
        """Append a whole recording and its end marks."""
        self.logs[lane] = recording
        await self.bus.create_topic(LETTERS, 1)
        await self.bus.create_topic(lane, PARTITIONS)
        for batch in to_batches(recording, tuple(range(size, len(recording), size))):
            await self.bus.append(lane, split(batch))
        marks = [mark_entry(Mark(kind="end"), p) for p in range(PARTITIONS)]
        await self.bus.append(lane, marks)

    async def run(self, lane: str, life: Life, most: int) -> WriteCounts | None:
        """Carry a lane to its end; None if the process died on the way."""
        self.runs += 1
        self.clock.advance(LEASE_NS + 1)
        bus, store = Mortal(self.bus, life), Mortal(self.store, life)
        history = LaneHistory(
            bus,
            store,
            RawEvents(bus, codec, LETTERS, LANE_MAX_FUTURE_NS, EVENTS),
            GROUP,
            lane,
            EVENTS,
            PARTITIONS,
            self.spec,
        )
        settings = BatcherSettings(
            group=GROUP,
            member=f"m{self.runs}",
            lease_ns=LEASE_NS,
            flush_timeout_ns=NS_PER_S,
            commit_interval_ns=0,
            poll_bytes=most,
            max_future_ns=None,
            retention_ns=NS_PER_S,
            retention_bytes=1,
        )
        worker = MicroBatcher(
            bus,
            store,
            codec,
            self.spec,
            self.bus.infos[lane],
            "",
            LETTERS,
            settings,
            self.clock,
            Observer(lane, GROUP, settings.member, False, 0),
            history,
        )
        try:
            await worker.run(asyncio.Event())
        except Crash:
            return None
        return worker.written

    def kept(self) -> list[OracleEvent]:
        """What was received, less what was dead-lettered."""
        aside = Counter(
            (letter.topic, letter.symbol, letter.src_ts, decode_event(letter.original).seq)
            for letter in letters_of(self.bus)
        )
        found: list[OracleEvent] = []
        for lane, recording in self.logs.items():
            for event in reversed(recording):
                key = (lane, event.symbol, event.src_ts, event.seq)
                if aside[key]:
                    aside[key] -= 1
                else:
                    found.append(event)
        return found

    def check(self) -> None:
        kept = self.kept()
        expected = {
            (format_interval(length), key): bar
            for length in {self.spec.base_ns, *self.spec.intervals_ns}
            for key, bar in batch_bars(kept, length).items()
        }
        assert_same(self.store.kept, expected)
        for lane, recording in self.logs.items():
            counts = total_counts(self.store, lane)
            assert (counts.received, counts.open) == (len(recording), 0)


def split(batch: EventBatch) -> list[Entry]:
    """A batch's rows for the partitions of their symbols."""
    owners = np.array([partition_of(s, PARTITIONS) for s in batch.symbols])[batch.codes]
    return [entry_of(batch.take(owners == p), p) for p in range(PARTITIONS) if (owners == p).any()]


@st.composite
def recordings(draw: st.DrawFn, spec: WindowSpec) -> tuple[list[OracleEvent], ...]:
    """Two recordings of one provider that overlap, each nearly in order, no contradictions."""
    values = draw(st.lists(decimals(extreme=False), min_size=10, max_size=20))
    log = [  # one symbol, so one partition, and a step that crosses every window
        OracleEvent("one", "SPY", START_NS + i * 450 * NS_PER_MS, i, *[value] * 4, value)
        for i, value in enumerate(values)
    ]
    delay_ns = draw(st.sampled_from((0, 1, 4))) * (spec.allow_late_ns + spec.revise_horizon_ns)
    size = len(log)
    delays = draw(st.lists(st.integers(0, delay_ns), min_size=size, max_size=size))
    log = [log[i] for i in sorted(range(size), key=lambda i: log[i].src_ts + delays[i])]
    where = draw(st.lists(st.sampled_from((1, 2, 3)), min_size=size, max_size=size))
    if draw(st.booleans()):  # they meet in one place rather than overlap
        at = draw(st.integers(0, size))
        where = [1 if i < at else 2 for i in range(size)]
    pairs = list(zip(log, where, strict=True))
    return [e for e, w in pairs if w & 1], [e for e, w in pairs if w & 2]


async def run_lanes(
    lanes: Lanes, inputs: tuple[list[OracleEvent], ...], runs: list[tuple[int, int]], most: int
) -> None:
    names = [f"{EVENTS}.{i}" for i, recording in enumerate(inputs) if recording]
    for name, recording in zip(names, [x for x in inputs if x], strict=True):
        await lanes.feed(name, recording, 1)
    for which, calls in runs:
        await lanes.run(names[which % len(names)], Life(calls, ("poll", "commit")), most)
    for name in names:
        assert await lanes.run(name, Life(), most)
    lanes.check()

    before = dict(lanes.store.kept)
    await lanes.feed(f"{EVENTS}.again", lanes.logs[names[0]], 3)
    written = await lanes.run(f"{EVENTS}.again", Life(), most)
    assert written
    assert (written.inserted, written.updated, written.kept) == (0, 0, 0)
    assert lanes.store.kept == before


@settings(max_examples=60)
@given(st.data(), specs(patience_ms=(0, 500)))
def test_lanes_make_one_whole_whatever_their_order_and_crashes(
    data: st.DataObject, spec: WindowSpec
) -> None:
    inputs = data.draw(recordings(spec))
    runs = data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(1, 15)), min_size=1, max_size=4)
    )
    asyncio.run(run_lanes(Lanes(spec), inputs, runs, data.draw(st.sampled_from((2, 4, 20)))))
