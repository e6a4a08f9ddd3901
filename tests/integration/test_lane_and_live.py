"""A recording and a live feed of one name over the same time: together they make whole bars."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from tests.faults import checks
from tests.faults.lab import (
    ALLOW_LATE_MS,
    BARS,
    BASE_MS,
    EVENTS,
    HORIZON_MS,
    WINDOWS,
    Lab,
    wait_until,
)
from tests.faults.recordings import START_NS, trade, trades
from tests.faults.stores import SqliteFile

from market_data_core.clock import SystemClock
from market_data_core.events import StreamEvent, Tick, parse_ts
from market_data_core.intervals import NS_PER_MS, NS_PER_S, parse_interval
from market_data_core.testing.oracle import OracleBar, OracleEvent, batch_bars
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.producer import Producer, ProducerSettings

pytestmark = pytest.mark.timeout(120)

NAME, PARTITIONS, SECONDS = "rec", 4, 60
_WIDEST_NS = max(parse_interval(window) for window in WINDOWS)
_NOW_S = 33.3
"""Where the feed is when the recording comes, if it comes in the middle."""
_AFTER_S = 100
"""When the feed goes on after the recording; every window of the recording is final then."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.close()


@pytest.fixture(scope="module")
def source() -> list[StreamEvent]:
    return trades(23, 1_500, SECONDS, provider=NAME)


def live_part(source: Sequence[StreamEvent]) -> list[StreamEvent]:
    """Two of three trades: the lane has half of them too, and some that the feed missed."""
    return [e for e in source if e.seq % 6 not in (0, 1)]


def lane_part(source: Sequence[StreamEvent]) -> list[StreamEvent]:
    """Two of three trades, so that every window has some of each alone."""
    return [e for e in source if e.seq % 6 not in (4, 5)]


def between(events: Iterable[StreamEvent], begin_s: float, end_s: float) -> list[StreamEvent]:
    begin, end = (START_NS + int(s * NS_PER_S) for s in (begin_s, end_s))
    return [e for e in events if begin <= parse_ts(e.src_ts) < end]


def split_late(events: Sequence[StreamEvent]) -> tuple[list[StreamEvent], list[StreamEvent]]:
    """Some of the last ones come after windows of theirs have closed, and restate them."""
    late = [e for e in between(events, _NOW_S - 5, _NOW_S) if e.seq % 4 == 2]
    return [e for e in events if e not in late], late


def later() -> list[StreamEvent]:
    """What the feed sends when the time of the recording is long over."""
    return [trade(NAME, "S00", START_NS + _AFTER_S * NS_PER_S, 10**6, 10.5, 1.0)]


def feed(lab: Lab, *parts: Sequence[StreamEvent]) -> None:
    """Append to the live topic as a feed's producer does, each part in one batch, then pause."""
    asyncio.run(_feed(lab, parts))


async def _feed(lab: Lab, parts: Sequence[Sequence[StreamEvent]]) -> None:
    bus = EmbeddedBus(lab.home / "bus")
    info = await bus.create_topic(EVENTS, PARTITIONS)
    base_ns, late_ns = BASE_MS * NS_PER_MS, ALLOW_LATE_MS * NS_PER_MS
    settings = ProducerSettings("columnar", 10**6, NS_PER_S, base_ns, late_ns, "embedded")
    producer = Producer(bus, codec, info, NAME, settings, SystemClock())
    for part in parts:
        for e in part:
            producer.add(Tick(e.symbol, parse_ts(e.src_ts), e.c, e.v, e.seq))
        await producer.flush()
    await producer.pause()
    await bus.close()


def catch_up(lab: Lab) -> None:
    """Let a worker read the live topic to its end."""
    worker = lab.start("stream", "micro-batch")
    wait_until(lambda: not worker.alive or _all_read(lab), "the log is read")
    worker.stop()


def _all_read(lab: Lab) -> bool:
    places = checks.checkpoints(lab, EVENTS)
    heads = SqliteFile(lab.topic_file(EVENTS)).query("SELECT partition, next FROM heads")
    return bool(heads) and all(
        int(str(p)) in places and places[int(str(p))].counted == int(str(end)) for p, end in heads
    )


def record(lab: Lab, events: Sequence[StreamEvent]) -> str:
    """Carry a recording under the feed's name."""
    path = lab.path / "rec.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [msgspec.json.encode(msgspec.structs.replace(e, provider="other")) for e in events]
    path.write_bytes(b"\n".join(lines))
    return lab.run("run", str(path), "--as", NAME)


def bars_of(events: Iterable[StreamEvent]) -> dict[checks.StoredKey, OracleBar]:
    """What a batch computation over the events gives, each of them once."""
    distinct = {
        (e.symbol, e.src_ts, e.seq): OracleEvent(
            NAME, e.symbol, parse_ts(e.src_ts), e.seq, e.o, e.h, e.l, e.c, e.v
        )
        for e in events
    }
    return {
        (provider, symbol, window, ts): bar
        for window in WINDOWS
        for (provider, symbol, ts), bar in batch_bars(
            distinct.values(), parse_interval(window)
        ).items()
    }


def check(lab: Lab, source: Sequence[StreamEvent]) -> None:
    """Bars are those of the union, each event counts as stored once, and nothing is missing."""
    union = [*live_part(source), *lane_part(source)]
    expected = bars_of(union)
    assert set(expected) == set(bars_of(source))
    assert checks.stored_bars(lab) == expected
    topics = [EVENTS, *checks.lane_topics(lab)]
    counts = {name: checks.total_counts(lab, name) for name in topics}
    assert all(c.holds() for c in counts.values()), counts
    base = [bar.trade_count for key, bar in expected.items() if key[2] == WINDOWS[0]]
    assert sum(c.stored for c in counts.values()) == sum(base)
    assert counts[EVENTS].received == len(live_part(source)) + len(later())
    assert counts[EVENTS].open == len(later())  # its window is open, it lies behind them all
    for name in topics:
        unused = (counts[name].late, counts[name].dead_lettered, counts[name].lost)
        assert unused == (0, 0, 0), name
        assert counts[name].open == (len(later()) if name == EVENTS else 0), name
    checks.check_published(lab, [name.replace(EVENTS, BARS) for name in topics])
    checks.check_files(lab)


def unread(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """The feed's log holds everything, and nobody has read any of it."""
    feed(lab, between(live, 0, 30), between(live, 30, SECONDS), later())
    record(lab, lane)
    assert checks.stored_bars(lab) == {}  # the windows may still become the feed's
    catch_up(lab)
    record(lab, lane)


def lane_first(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """The recording was carried to its end before the feed began."""
    record(lab, lane)
    assert checks.stored_bars(lab) == bars_of(lane)
    feed(lab, between(live, 0, 30), between(live, 30, SECONDS), later())
    catch_up(lab)


def in_the_middle(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """Some of the feed's windows are final, some closed, some open, when the recording comes."""
    soon, late = split_late(between(live, 15, _NOW_S))
    feed(lab, between(live, 0, 15), soon)
    catch_up(lab)
    closed_s = _NOW_S - ALLOW_LATE_MS / 1e3
    assert checks.total_counts(lab, EVENTS).open
    record(lab, lane)
    final_s = closed_s - HORIZON_MS / 1e3
    whole = START_NS + int(final_s * NS_PER_S) // _WIDEST_NS * _WIDEST_NS
    known, union = checks.stored_bars(lab), bars_of([*live, *lane])
    below = {key for key in union if key[3] + parse_interval(key[2]) <= whole}
    assert {key: known.get(key) for key in below} == {key: union[key] for key in below}
    feed(lab, late, between(live, _NOW_S, SECONDS), later())
    catch_up(lab)
    record(lab, lane)


def in_the_middle_and_unread(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """Likewise, and some of what the feed has written was not read."""
    soon, late = split_late(between(live, 15, _NOW_S))
    feed(lab, between(live, 0, 15), soon)
    catch_up(lab)
    feed(lab, late, between(live, _NOW_S, 40))
    record(lab, lane)
    feed(lab, between(live, 40, SECONDS), later())
    catch_up(lab)
    record(lab, lane)


def while_a_worker_runs(lab: Lab, live: list[StreamEvent], lane: list[StreamEvent]) -> None:
    """The feed's worker does not begin anew, so it never looks at what others have done since."""
    soon, late = split_late(between(live, 15, _NOW_S))
    feed(lab, between(live, 0, 15), soon)
    worker = lab.start("stream", "micro-batch")
    wait_until(lambda: _all_read(lab), "the first part is read")
    record(lab, lane)
    feed(lab, late, between(live, _NOW_S, SECONDS), later())
    wait_until(lambda: _all_read(lab), "the second part is read")
    record(lab, lane)
    worker.stop()


WAYS = [unread, lane_first, in_the_middle, in_the_middle_and_unread, while_a_worker_runs]


@pytest.mark.parametrize("way", WAYS)
def test_a_recording_beside_a_live_feed(
    lab: Lab,
    source: list[StreamEvent],
    way: Callable[[Lab, list[StreamEvent], list[StreamEvent]], None],
) -> None:
    way(lab, live_part(source), lane_part(source))
    check(lab, source)
    before = checks.stored_bars(lab)
    assert " 0 inserted, 0 updated" in record(lab, lane_part(source))
    assert checks.stored_bars(lab) == before


def test_live_signals_follow_what_a_recording_restates(lab: Lab, source: list[StreamEvent]) -> None:
    """Features of the feed's next bars look back on bars that a recording has changed meanwhile."""
    live, lane = live_part(source), between(lane_part(source), 0, _NOW_S)
    infer = lab.start("stream", "infer")
    feed(lab, between(live, 0, _NOW_S))
    catch_up(lab)
    wait_until(lambda: checks.all_evaluated(lab), "the first bars are evaluated")
    record(lab, lane)
    feed(lab, between(live, _NOW_S, SECONDS), later())
    catch_up(lab)
    wait_until(lambda: checks.all_evaluated(lab), "all bars are evaluated")
    infer.stop()
    checks.check_signals(lab)
