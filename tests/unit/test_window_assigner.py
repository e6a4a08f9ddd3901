"""Which window an event belongs to."""

from __future__ import annotations

import numpy as np
import pytest

from market_data_core.errors import UsageError
from market_data_pipeline.windows.assigner import (
    FOREVER,
    NEVER,
    WindowSpec,
    floor_to,
    running_greatest,
    window_keys,
    window_starts,
)

S = 10**9
MS = 10**6


def test_windows_are_aligned_to_the_epoch_and_half_open() -> None:
    ts = np.array([0, 1, 2 * S - 1, 2 * S, 2 * S + 1, -1, -2 * S, -2 * S - 1], np.int64)
    expected = [0, 0, 0, 2 * S, 2 * S, -2 * S, -2 * S, -4 * S]
    assert window_starts(ts, 2 * S).tolist() == expected
    assert [floor_to(t, 2 * S) for t in ts.tolist()] == expected


def test_times_before_and_after_everything_stay_as_they_are() -> None:
    assert floor_to(FOREVER, 2 * S) == FOREVER
    assert floor_to(NEVER, 2 * S) == NEVER


@pytest.mark.parametrize(
    ("intervals", "base", "wide"),
    [
        ((2 * S,), 2 * S, ()),
        ((1 * S, 60 * S, 300 * S), 1 * S, (60 * S, 300 * S)),
        ((2 * S, 3 * S), 1 * S, (2 * S, 3 * S)),
        ((500 * MS, 60 * S), 500 * MS, (60 * S,)),
        ((7 * MS,), 7 * MS, ()),
    ],
)
def test_the_base_window_is_the_greatest_common_divisor(
    intervals: tuple[int, ...], base: int, wide: tuple[int, ...]
) -> None:
    spec = WindowSpec(intervals, 500 * MS, 10 * S)
    assert (spec.base_ns, spec.wide_ns, spec.widest_ns) == (base, wide, max(intervals))


@pytest.mark.parametrize("intervals", [(), (0,), (-S,), (MS + 1,), (S, 1)])
def test_windows_are_positive_multiples_of_a_millisecond(intervals: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 1 ms"):
        WindowSpec(intervals, 0, 0)


@pytest.mark.parametrize(("late", "horizon"), [(-1, 0), (0, -1)])
def test_lateness_and_horizon_are_not_negative(late: int, horizon: int) -> None:
    with pytest.raises(UsageError, match="must not be negative"):
        WindowSpec((S,), late, horizon)


def test_a_key_tells_symbol_and_window_and_orders_by_both() -> None:
    codes = np.array([0, 0, 1, 1, 65_535, 200_000], np.uint32)
    starts = window_starts(np.array([1_700_000_000 * S, 1_700_000_002 * S] * 3, np.int64), 2 * S)
    keys = window_keys(codes, starts, 2 * S)
    assert len(set(keys.tolist())) == 6
    assert (np.diff(keys) > 0).all()
    one = window_keys(codes[:1], np.array([1_700_000_000 * S + 1]), 2 * S)
    assert one.tolist() == keys[:1].tolist()


def test_the_greatest_time_before_each_event_does_not_count_the_event_itself() -> None:
    ts = np.array([5, 9, 7, 12, 3], np.int64)
    assert running_greatest(ts, 6).tolist() == [6, 6, 9, 9, 12]
    assert running_greatest(ts, NEVER).tolist() == [NEVER, 5, 9, 9, 12]
