"""Lanes over one bus and store, run one after the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from tests.property._harness import (
    EVENTS,
    GROUP,
    LANE_MAX_FUTURE_NS,
    LEASE_NS,
    LETTERS,
    PARTITIONS,
    assert_same,
    base_of,
    batcher_settings,
    coordinated,
    letters_of,
    mark_entry,
    split,
    total_counts,
)
from tests.property._memory import Crash, Life, MemoryStore, Mortal
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import (
    WriteCounts,
)
from market_data_core.intervals import format_interval
from market_data_core.records import Mark
from market_data_core.testing.oracle import (
    OracleEvent,
    batch_bars,
)
from market_data_core.testing.strategies import START_NS, to_batches
from market_data_core.wire import decode_event
from market_data_pipeline.bus import codec
from market_data_pipeline.generations import Generations
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.history import LaneHistory, RawEvents
from market_data_pipeline.windows.micro_batcher import MicroBatcher


@dataclass
class Lanes:
    """Lanes of one provider over one log and one store, run one after the other."""

    spec: WindowSpec
    clock: ManualClock = field(default_factory=lambda: ManualClock(START_NS))

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.clock)
        self.store = MemoryStore(self.clock, base=base_of(self.spec))
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
        live = Generations(bus, EVENTS, self.clock)
        history = LaneHistory(
            bus,
            store,
            RawEvents(bus, codec, LETTERS, LANE_MAX_FUTURE_NS, live),
            GROUP,
            lane,
            live,
            PARTITIONS,
            self.spec,
        )
        settings = batcher_settings(f"m{self.runs}", most, None)
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
            coordinated(store, settings.member),
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
            for length in self.spec.intervals_ns
            for key, bar in batch_bars(kept, length).items()
        }
        assert_same(self.store.kept, expected)
        for lane, recording in self.logs.items():
            counts = total_counts(self.store, lane)
            assert (counts.received, counts.open) == (len(recording), 0)
