"""The index by provider and event time: never misses a record, whatever it has to pack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.bus._time_index import TimeIndex, may_hold

Row = tuple[int, str, int, int, int]  # offset, provider, min_ts, max_ts, count

rows = st.lists(
    st.tuples(
        st.integers(1, 1 << 50),
        st.sampled_from(["", "p", "q"]),
        st.integers(-30, 30),
        st.integers(0, 20),
        st.integers(0, 2),
    ),
    max_size=40,
)


def laid_out(steps: Sequence[tuple[int, str, int, int, int]]) -> list[Row]:
    """Steps between offsets and lengths in time as records."""
    found, offset = [], -1
    for step, provider, min_ts, length, count in steps:
        offset += step
        found.append((offset, provider, min_ts, min_ts + length, count))
    return found


def inside(ranges: list[tuple[int, int]], records: Sequence[Row]) -> list[Row]:
    return [r for r in records if any(first <= r[0] <= last for first, last in ranges)]


def matching(records: Sequence[Row], wanted: str, from_ts: int, to_ts: int) -> list[Row]:
    return [r for r in records if may_hold(r[1], r[2], r[3], r[4], wanted, from_ts, to_ts)]


@given(rows, st.sampled_from(["p", "q", "r"]), st.integers(-40, 40), st.integers(0, 40))
def test_the_ranges_hold_what_matches_and_nothing_else(
    steps: list[tuple[int, str, int, int, int]], wanted: str, from_ts: int, length: int
) -> None:
    records = laid_out(steps)
    index = TimeIndex()
    for record in records:
        index.add(*record)
    ranges = index.find(wanted, from_ts, from_ts + length)
    expected = matching(records, wanted, from_ts, from_ts + length)
    found = [r for r in inside(ranges, records) if r[4] > 0]
    assert found == expected
    assert ranges == sorted(ranges)
    assert all(a[1] < b[0] for a, b in pairwise(ranges))


@given(rows, st.integers(1, 6), st.integers(0, 1 << 52), st.integers(-40, 40))
def test_packing_and_forgetting_lose_nothing_that_is_kept(
    steps: list[tuple[int, str, int, int, int]], entries_max: int, below: int, from_ts: int
) -> None:
    records = laid_out(steps)
    index = TimeIndex(entries_max)
    for record in records[: len(records) // 2]:
        index.add(*record)
    index.forget(below)
    for record in records[len(records) // 2 :]:
        if record[0] >= below:
            index.add(*record)
    ranges = index.find("p", from_ts, from_ts + 10)
    kept = [r for r in matching(records, "p", from_ts, from_ts + 10) if r[0] >= below]
    assert [r for r in kept if r not in inside(ranges, records)] == []
    assert len(ranges) <= entries_max


def test_next_is_behind_the_last_record() -> None:
    index = TimeIndex()
    assert index.next == 0
    index.add(7, "p", 1, 1, 1)
    index.add(9, "p", 1, 1, 0)
    assert index.next == 10
    index.forget(5)
    assert index.next == 10
    index.forget(20)
    assert index.next == 20
    assert index.find("p", 0, 9) == []
    with pytest.raises(ValueError, match="offset 19 was told before"):
        index.add(19, "p", 1, 1, 1)


def test_many_records_are_closed_in_blocks() -> None:
    """A hundred thousand, of which every tenth matches, and packed to twenty thousand."""
    index, small = TimeIndex(), TimeIndex(20_000)
    for offset in range(100_000):
        for each in (index, small):
            each.add(offset, "q" if offset % 10 else "p", offset, offset, 1)
    assert index.find("p", 500, 541) == [(o, o) for o in (500, 510, 520, 530, 540)]
    assert index.find("q", 501, 510) == [(501, 509)]
    ((first, last),) = small.find("p", 500, 541)
    assert first <= 500
    assert last >= 540
    assert last - first < 100
