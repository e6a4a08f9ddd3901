"""A recording over the time of a feed whose number of partitions changed: still one whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.faults import checks
from tests.faults.lab import ALLOW_LATE_MS, BASE_MS, EVENTS, HORIZON_MS, WINDOWS, Lab, wait_until
from tests.faults.recordings import START_NS, trades
from tests.integration.test_lane_and_live import (
    _AFTER_S,
    NAME,
    PARTITIONS,
    SECONDS,
    bars_of,
    lane_part,
    later,
    live_part,
    record,
)

from market_data_core.clock import ManualClock
from market_data_core.events import StreamEvent, Tick, parse_ts
from market_data_core.intervals import NS_PER_MS, NS_PER_S, parse_interval
from market_data_core.records import TopicInfo
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.generations import Generations, lead_ns
from market_data_pipeline.live_producer import LiveProducer
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.windows.assigner import WindowSpec

pytestmark = pytest.mark.timeout(120)

LEAD = lead_ns(NS_PER_S)
BEGIN = START_NS + 30 * NS_PER_S
NEW = f"{EVENTS}-g2"
COUNT = 7
_LENGTHS = tuple(parse_interval(window) for window in WINDOWS)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.close()


@pytest.fixture(scope="module")
def source() -> list[StreamEvent]:
    return trades(29, 1_500, SECONDS, provider=NAME)


def feed(lab: Lab, events: Sequence[StreamEvent]) -> None:
    """Append as a feed's producer does; the number of partitions changes in the middle."""
    asyncio.run(_feed(lab, events))


async def _feed(lab: Lab, events: Sequence[StreamEvent]) -> None:
    clock = ManualClock(START_NS - LEAD)
    bus = EmbeddedBus(lab.home / "bus", clock=clock)
    base_ns, late_ns = BASE_MS * NS_PER_MS, ALLOW_LATE_MS * NS_PER_MS
    settings = ProducerSettings("columnar", 10**6, 10**6 * NS_PER_S, base_ns, late_ns, "embedded")
    spec = WindowSpec(_LENGTHS, late_ns, HORIZON_MS * NS_PER_MS)
    known = Generations(bus, EVENTS, clock)
    await known.open(PARTITIONS)
    await known.enter(COUNT, BEGIN, PARTITIONS, LEAD)

    def opened(info: TopicInfo) -> Producer:
        return Producer(bus, codec, info, NAME, settings, clock)

    producer = LiveProducer(known, opened, spec, clock.now_ns())
    for second in range(_AFTER_S + 1):
        clock.time_ns = START_NS + (second + 1) * NS_PER_S
        for e in events:
            if clock.time_ns - NS_PER_S <= parse_ts(e.src_ts) < clock.time_ns:
                producer.add(Tick(e.symbol, parse_ts(e.src_ts), e.c, e.v, e.seq))
        await producer.flush()
    await producer.pause()
    await bus.close()


def catch_up(lab: Lab) -> None:
    """Let a worker read both generations until nothing of them is open."""
    worker = lab.start("stream", "micro-batch")
    wait_until(lambda: not worker.alive or _done(lab), "the log is read")
    worker.stop()


def _done(lab: Lab) -> bool:
    places = [checks.checkpoints(lab, name) for name in (EVENTS, NEW)]
    whole = [len(found) for found in places] == [PARTITIONS, COUNT]
    return whole and not any(p.holds_events for found in places for p in found.values())


def live_first(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    feed(lab, live)
    catch_up(lab)
    record(lab, lane)


def lane_first(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    record(lab, lane)
    feed(lab, live)
    catch_up(lab)


def unread(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """The lane must not close what the workers of either generation have not looked at."""
    feed(lab, live)
    record(lab, lane)
    assert checks.stored_bars(lab) == {}
    catch_up(lab)
    record(lab, lane)


@pytest.mark.parametrize("way", [live_first, lane_first, unread])
def test_a_recording_beside_two_generations(
    lab: Lab,
    source: list[StreamEvent],
    way: Callable[[Lab, list[StreamEvent], list[StreamEvent]], None],
) -> None:
    live, lane = [*live_part(source), *later()], lane_part(source)
    way(lab, live, lane)
    expected = bars_of([*live, *lane])
    assert checks.stored_bars(lab) == expected
    topics = [EVENTS, NEW, *checks.lane_topics(lab)]
    counts = {name: checks.total_counts(lab, name) for name in topics}
    assert all(c.holds() and not c.open and not c.late for c in counts.values()), counts
    early = sum(parse_ts(e.src_ts) < BEGIN for e in live)
    assert (counts[EVENTS].received, counts[NEW].received) == (early, len(live) - early)
    assert " 0 inserted, 0 updated" in record(lab, lane)
    assert "no difference" in lab.run("verify")
    assert checks.stored_bars(lab) == expected
