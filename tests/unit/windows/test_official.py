"""A vendor's own bars: copies, corrections, contradictions, and what a restart remembers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from market_data_core.events import EventBatch, make_batch
from market_data_pipeline.bus import codec
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.official import OfficialBars, OfficialTaken

S = 10**9
MINUTE = 60 * S
T = 1_700_000_040 * S
SPEC = WindowSpec((S,), 0, 10 * S)


def vendor(*rows: tuple[int, int, float]) -> EventBatch:
    """Rows of (minute, seq, close)."""
    minutes, seq, close = zip(*rows, strict=True)
    ts = [T + m * MINUTE for m in minutes]
    return make_batch("v", ["A"] * len(rows), ts, seq, close, close, kind="bar", interval="1m")


def written(taken: OfficialTaken) -> list[tuple[int, float, int]]:
    return [
        ((int(ts) - T) // MINUTE, float(close), int(fresh))
        for decided in taken.bars
        for ts, close, fresh in zip(decided.bars.ts, decided.bars.close, decided.fresh, strict=True)
    ]


def encode(batch: EventBatch) -> bytes:
    return next(iter(codec.encode_events(batch, "columnar")))


def decode(data: bytes) -> EventBatch:
    batch = codec.decode(data)
    assert isinstance(batch, EventBatch)
    return batch


def restarted(bars: OfficialBars) -> OfficialBars:
    wire = msgspec.msgpack.encode(bars.state(encode))
    state = msgspec.msgpack.decode(wire, type=StreamState)
    return OfficialBars(SPEC, "v", "1m", state, decode)


@pytest.fixture(params=[False, True], ids=["running", "restarted"])
def again(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def taken(first: Sequence[tuple[int, int, float]], then: EventBatch, again: bool) -> OfficialTaken:
    bars = OfficialBars(SPEC, "v", "1m")
    bars.take(vendor(*first))
    return (restarted(bars) if again else bars).take(then)


def test_bars_are_stored_as_they_came() -> None:
    found = OfficialBars(SPEC, "v", "1m").take(vendor((0, 0, 5.25), (1, 0, 6.5)))
    (decided,) = found.bars
    assert (decided.bars.provider, decided.bars.interval) == ("v:official", "1m")
    assert written(found) == [(0, 5.25, 1), (1, 6.5, 1)]
    assert decided.bars.trade_count.tolist() == [-1, -1]
    assert np.isnan(decided.bars.vwap).all()
    assert found.stored == 2


def test_a_copy_is_not_stored_twice(again: bool) -> None:
    found = taken([(0, 1, 5.0)], vendor((0, 1, 5.0)), again)
    assert (found.stored, found.deduplicated, written(found)) == (0, 1, [])


def test_a_higher_seq_is_a_correction_and_a_lower_one_comes_too_late(again: bool) -> None:
    higher = taken([(0, 1, 5.0)], vendor((0, 2, 7.0)), again)
    assert (higher.stored, written(higher)) == (1, [(0, 7.0, 1)])
    lower = taken([(0, 1, 5.0)], vendor((0, 0, 7.0)), again)
    assert (lower.stored, written(lower)) == (1, [])


def test_of_several_versions_in_one_batch_the_highest_seq_is_the_bar() -> None:
    found = OfficialBars(SPEC, "v", "1m").take(vendor((0, 3, 8.0), (0, 1, 6.0), (0, 2, 7.0)))
    assert (found.stored, written(found)) == (3, [(0, 8.0, 3)])


def test_a_contradiction_is_told_by_its_place_in_the_batch(again: bool) -> None:
    found = taken([(0, 1, 5.0)], vendor((1, 0, 9.0), (0, 1, 6.0)), again)
    assert (found.conflicts.tolist(), found.stored) == ([1], 1)


def test_contradictions_are_told_by_their_places_however_many_bars_there_are(again: bool) -> None:
    found = taken([(0, 1, 5.0)], vendor((0, 1, 6.0), (0, 1, 7.0)), again)
    assert (found.conflicts.tolist(), found.stored) == ([0, 1], 0)
    found = taken([(0, 1, 5.0)], vendor((1, 0, 9.0), (2, 0, 9.0), (0, 1, 6.0)), again)
    assert (found.conflicts.tolist(), found.stored) == ([2], 2)


def test_bars_are_late_two_bars_behind(again: bool) -> None:
    found = taken([(5, 0, 5.0)], vendor((3, 0, 1.0), (2, 0, 1.0)), again)
    assert (found.late.tolist(), written(found)) == ([1], [(3, 1.0, 1)])


def test_values_of_very_different_scale_survive_a_restart() -> None:
    first = [(0, 0, 123456789012345.0), (0, 1, 0.00000001)]
    found = taken(first, vendor(*first), again=True)
    assert found.deduplicated == 2
