"""One stream's windows: closing, copies, restating, lateness to the nanosecond."""

from __future__ import annotations

import numpy as np
import pytest

from market_data_core.errors import UsageError
from market_data_core.events import EventBatch, make_batch
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec
from market_data_pipeline.windows.collected import Collected
from market_data_pipeline.windows.stream import WindowStream

S = 10**9
T = 1_700_000_000 * S
SPEC = WindowSpec((2 * S,), S // 2, 10 * S)


def ticks(*rows: tuple[float, float], size: float = 1.0, seq: int | None = None) -> EventBatch:
    """Rows of (seconds after T, price) of one symbol."""
    ts = [T + round(at * S) for at, _ in rows]
    numbers = [round(at * 1000) if seq is None else seq for at, _ in rows]
    return make_batch("p", ["A"] * len(rows), ts, numbers, [p for _, p in rows], [size] * len(rows))


def bars(collected: Collected) -> list[tuple[float, float, float, int, bool]]:
    """(start after T in s, open, close, count, revised) of every bar handed out."""
    out = []
    for c in collected.bars:
        for i in range(len(c.bars)):
            row = c.bars.take(np.array([i]))
            start = (int(row.start[0]) - T) / S
            o, close = float(row.open.to_floats()[0]), float(row.close.to_floats()[0])
            out.append((start, o, close, int(row.count[0]), c.revised))
    return out


def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    stream = WindowStream(SPEC)
    stream.add(ticks((0.1, 10), (1.9, 11), (2.4, 12)), 0)
    assert bars(stream.collect()) == []
    stream.add(ticks((2.5, 13)), 1)  # watermark 2.0
    assert bars(stream.collect()) == [(0, 10, 11, 2, False)]
    assert stream.open_events == 2


def test_copies_count_once_before_and_after_the_close() -> None:
    stream = WindowStream(SPEC)
    batch = ticks((0.1, 10), (0.2, 11))
    stream.add(batch, 0)
    stream.add(batch, 1)
    stream.add(ticks((3, 12)), 2)
    first = stream.collect()
    assert (first.stored, first.deduplicated) == (2, 2)
    stream.add(batch, 3)
    again = stream.collect()
    assert (again.stored, again.deduplicated, again.bars) == (0, 2, [])


def test_the_first_of_two_that_contradict_each_other_wins() -> None:
    stream = WindowStream(SPEC)
    stream.add(ticks((0.1, 10), seq=7), 4)
    stream.add(ticks((0.1, 99), seq=7), 5)
    stream.advance(FOREVER)
    collected = stream.collect()
    assert bars(collected) == [(0, 10, 10, 1, False)]
    ((loser, position),) = collected.conflicts
    assert (loser.close.to_floats().tolist(), position) == ([99.0], 5)


def test_an_event_restates_until_the_horizon_has_passed_to_the_nanosecond() -> None:
    # the window [0, 2) is final as soon as the watermark reaches 12
    for last, late in ((12.5 - 1e-9, False), (12.5, True)):
        stream = WindowStream(SPEC)
        stream.add(ticks((0.1, 10)), 0)
        stream.add(ticks((last, 20)), 1)
        stream.collect()
        refused = stream.add(ticks((1.0, 11)), 2)
        assert len(refused) == late
        assert bars(stream.collect()) == ([] if late else [(0, 10, 11, 2, True)])


def test_lateness_is_judged_event_by_event_whatever_the_batches_are() -> None:
    rows = [(0.1, 10.0), (30.0, 11.0), (0.2, 12.0), (31.0, 13.0)]
    whole, single = WindowStream(SPEC), WindowStream(SPEC)
    late = whole.add(ticks(*rows), 0).tolist()
    assert late == [2]
    assert [len(single.add(ticks(row), i)) for i, row in enumerate(rows)] == [0, 0, 1, 0]


def test_an_idle_mark_closes_without_lateness_and_a_progress_mark_with_it() -> None:
    stream = WindowStream(SPEC)
    stream.add(ticks((0.1, 10)), 0)
    stream.progress(T + 2 * S)
    assert bars(stream.collect()) == []
    stream.advance(T + 2 * S)
    assert bars(stream.collect()) == [(0, 10, 10, 1, False)]


def test_what_feeds_a_window_above_the_final_watermark_is_read_again() -> None:
    stream = WindowStream(SPEC)
    for position, at in enumerate((0, 4, 8, 12, 16, 20)):
        stream.add(ticks((at, 10)), position)
        stream.collect()
    # watermark 19.5, final 8: the window that begins at 8 is the first that can still change
    assert stream.resume_position() == 2


def test_wide_bars_are_what_the_ticks_give_and_follow_a_restated_base_bar() -> None:
    stream = WindowStream(WindowSpec((S, 4 * S), 0, 10 * S))
    stream.add(ticks((0.5, 10), (1.5, 12), (3.5, 11), (4.5, 20)), 0)
    assert bars(stream.collect())[-1] == (0, 10, 11, 3, False)
    stream.add(ticks((0.25, 9)), 1)
    assert bars(stream.collect()) == [(0, 9, 10, 2, True), (0, 9, 11, 4, True)]


def test_only_intervals_that_were_asked_for_are_handed_out() -> None:
    stream = WindowStream(WindowSpec((2 * S, 3 * S), 0, 0))
    stream.add(ticks((0.5, 10), (2.5, 11)), 0)
    stream.advance(FOREVER)
    lengths = {c.length_ns for c in stream.collect().bars}
    assert lengths == {2 * S, 3 * S}


def test_a_new_interval_begins_with_a_whole_window() -> None:
    old = WindowStream(WindowSpec((S,), 0, 0))
    old.add(ticks((0.5, 10), (2.5, 11)), 0)
    old.collect()
    new = WindowStream(WindowSpec((S, 4 * S), 0, 0), old.state("p"))
    new.add(ticks((3.5, 12), (4.5, 13), (8.5, 14)), 1)
    wide = [b for c in new.collect().bars if c.length_ns == 4 * S for b in bars_of_one(c)]
    assert wide == [4.0]


def bars_of_one(closed: object) -> list[float]:
    return [(int(t) - T) / S for t in closed.bars.start]  # type: ignore[attr-defined]


def test_a_base_window_that_does_not_fit_is_refused() -> None:
    old = WindowStream(WindowSpec((S,), 0, 0))
    old.add(ticks((0.5, 10), (2.5, 11)), 0)
    old.collect()
    with pytest.raises(UsageError, match="multiples of 1s so far"):
        WindowStream(WindowSpec((2 * S,), 0, 0), old.state("p"))
