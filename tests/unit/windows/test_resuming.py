"""A stream that goes on from its state gives what an unbroken one would have given."""

from __future__ import annotations

import msgspec

from market_data_core.events import EventBatch, make_batch
from market_data_pipeline.windows.assigner import FOREVER, NEVER, WindowSpec
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.stream import WindowStream

S = 10**9
T = 1_700_000_100 * S


def ticks(*at: float, size: float = 1.0) -> EventBatch:
    ts = [T + round(t * S) for t in at]
    seq = [round(t * 1000) for t in at]
    return make_batch("p", ["A"] * len(at), ts, seq, [1.0] * len(at), [size] * len(at))


def resumed(stream: WindowStream, log: list[EventBatch]) -> WindowStream:
    wire = msgspec.msgpack.encode(stream.state("p"))
    found = WindowStream(stream.spec, msgspec.msgpack.decode(wire, type=StreamState))
    resume = stream.resume_position()
    for position in range(len(log) if resume is None else resume, len(log)):
        found.restore(log[position], position)
    return found


def counts(stream: WindowStream, length_ns: int, limit: int = FOREVER) -> dict[float, int]:
    """start -> trade count of every bar of that length that is handed out now."""
    return {
        (start - T) / S: count
        for closed in stream.collect(limit).bars
        if closed.length_ns == length_ns
        for start, count in zip(closed.bars.start.tolist(), closed.bars.count.tolist(), strict=True)
    }


def test_the_final_watermark_may_move_without_closing_a_window() -> None:
    log = [ticks(1.1), ticks(2.25), ticks(2.75)]
    stream = WindowStream(WindowSpec((S, 5 * S), 0, S // 2))
    stream.add(log[0], 0)
    stream.add(log[1], 1)
    stream.collect()
    stream.add(log[2], 2)
    assert not stream.due()  # yet [1, 2) has become final

    again = resumed(stream, log)
    again.advance(FOREVER)
    assert counts(again, 5 * S) == {0.0: 3}


def test_sums_beyond_64_bits_travel_in_the_state() -> None:
    log = [ticks(0.5, 1.5, size=1e22), ticks(2.5, size=1e-8), ticks(9.5)]
    stream = WindowStream(WindowSpec((S, 60 * S), 0, 0))
    for position, batch in enumerate(log):
        stream.add(batch, position)
        stream.collect()
    assert resumed(stream, log).state("p") == stream.state("p")
    again = resumed(stream, log)
    again.advance(FOREVER)
    (wide,) = [c for c in again.collect().bars if c.length_ns == 60 * S]
    assert wide.bars.volume.mantissa.tolist() == [2 * 10**30 + 1 + 10**8]
    assert wide.bars.volume.scale == 8


def test_windows_below_the_fence_are_never_written_again() -> None:
    state = StreamState(provider="p", watermark=T, closed=T + 4 * S, fence=T + 4 * S)
    stream = WindowStream(WindowSpec((2 * S,), 0, 100 * S), state)
    assert stream.add(ticks(3.9, 4.0), 0).tolist() == [0]
    stream.advance(FOREVER)
    assert counts(stream, 2 * S) == {4.0: 1}


def test_closing_that_was_held_back_goes_on_after_a_restart() -> None:
    log = [ticks(0.5), ticks(2.5), ticks(9.5), ticks(2.6), ticks(9.6)]
    stream = WindowStream(WindowSpec((S,), 0, 2 * S))
    late = [len(stream.add(batch, position)) for position, batch in enumerate(log)]
    assert late == [0, 0, 0, 1, 0]
    assert counts(stream, S, limit=T + S) == {0.0: 1}
    assert stream.open_events == 3

    again = resumed(stream, log)
    assert again.open_events == 3  # the late one is found out again, although its window is open
    again.advance(FOREVER)
    assert counts(again, S) == {2.0: 1, 9.0: 2}


def test_a_lane_asks_for_everything_that_its_windows_can_hold() -> None:
    stream = WindowStream(WindowSpec((2 * S, 3 * S), S, 0))
    stream.add(ticks(7.5), 0)  # [6, 8) and [6, 9), yet an event at 6.5 is still welcome
    assert (stream.history_from() - T) / S == 6.0
    assert (stream.known_until() - T) / S == 9.0
    stream.add(ticks(5.99), 1)
    stream.add(ticks(10.5), 2)
    stream.collect()
    assert (stream.history_from() - T) / S == 9.0  # everything below is settled
    assert (stream.unsettled_from() - T) / S == 8.0  # where the open [8, 10) begins
    assert (stream.known_until() - T) / S == 12.0


def test_settled_rows_are_made_anew_from_what_others_added() -> None:
    log = [ticks(0.5, 1.5), ticks(2.5)]
    stream = WindowStream(WindowSpec((S, 5 * S), 0, 0))
    for position, batch in enumerate(log):
        stream.add(batch, position)
        stream.collect()
    again = resumed(stream, log)
    begin, end = again.unsettled_from(), again.history_from()
    assert ((begin - T) / S, (end - T) / S) == (0.0, 2.0)
    again.resettle([log[0]], [ticks(0.7, 1.5)])
    again.advance(FOREVER)
    assert counts(again, 5 * S) == {0.0: 4}


def test_an_empty_stream_asks_for_nothing_and_has_nothing_to_do() -> None:
    stream = WindowStream(WindowSpec((S,), 0, 0))
    assert (stream.resume_position(), stream.open_windows, stream.next_end()) == (None, 0, FOREVER)
    assert (stream.closed, stream.due(), stream.collect().bars) == (NEVER, False, [])
