"""Closes of an index as of other bars."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from market_data_core.intervals import NS_PER_S
from market_data_pipeline.features.levels import NO_LEVELS, Levels, indices_of

MINUTE_NS = 60 * NS_PER_S


def levels(*bars: tuple[float, float], first: float = 0, last: float = 100) -> Levels:
    """Of one index; times in minutes."""
    ts = np.array([minute * MINUTE_NS for minute, _ in bars], np.int64)
    closes = np.array([close for _, close in bars])
    first_ns, last_ns = int(first * MINUTE_NS), int(last * MINUTE_NS)
    return Levels(2 * NS_PER_S, first_ns, last_ns, {"X": (ts, closes)})


def as_of(some: Levels, *minutes: float) -> list[float]:
    ts = np.array([minute * MINUTE_NS for minute in minutes], np.int64)
    found: list[float] = some.columns(ts)["close@X"].tolist()
    return found


def test_the_newest_bar_counts_for_five_minutes() -> None:
    some = levels((10, 1.5), (11, 2.5))
    assert as_of(some, 10, 10.5, 11, 15.99) == [1.5, 1.5, 2.5, 2.5]
    assert np.isnan(as_of(some, 9.99, 16)).all()
    assert np.isnan(as_of(levels(), 10)).all()


def test_where_bars_are_long_it_counts_for_five_of_them() -> None:
    day = 24 * 60
    some = Levels(day * MINUTE_NS, 0, 99 * day * MINUTE_NS, levels((day, 1.0)).closes)
    assert as_of(some, day, 5.99 * day) == [1.0, 1.0]
    assert np.isnan(as_of(some, 6 * day)).all()


def test_where_two_differ() -> None:
    old = levels((1, 1.0), (2, 2.0), (3, 3.0), first=1, last=3)
    assert old.differences(old) == {}
    new = levels((2, 2.0), (2.5, 2.5), (4, 4.0), first=2, last=4)
    assert new.differences(old) == old.differences(new)
    assert new.differences(old) == {"X": (2.5 * MINUTE_NS, 3 * MINUTE_NS)}  # 1 and 4 one has not
    assert new.differences(old.since(3 * MINUTE_NS)) == {"X": (3 * MINUTE_NS, 3 * MINUTE_NS)}
    assert old.differences(NO_LEVELS) == {}


@pytest.mark.parametrize(
    ("minute", "close", "known"), [(2, 2.0, True), (2, 2.1, False), (1, 1.0, False)]
)
def test_what_is_known(minute: int, close: float, known: bool) -> None:
    some = levels((1, 1.0), (2, 2.0)).since(2 * MINUTE_NS)
    assert some.has("X", minute * MINUTE_NS, close) is known


def test_of_a_frame() -> None:
    ts = pl.Series("ts", [1, 2, 2]).cast(pl.Datetime("ns", "UTC"))
    frame = pl.DataFrame({"symbol": ["X", "X", "Y"], "ts": ts, "close": [1.0, 2.0, 9.0]})
    found = Levels.of_bars(2 * NS_PER_S, 0, 2, ["X", "Y", "Z"], frame)
    values = found.columns(np.array([1, 2]))
    np.testing.assert_equal(values["close@X"], [1.0, 2.0])
    np.testing.assert_equal(values["close@Y"], [np.nan, 9.0])
    np.testing.assert_equal(values["close@Z"], [np.nan, np.nan])


def test_which_columns_tell_of_an_index() -> None:
    assert indices_of(["close", "close@B", "ts", "close@A", "close@B"]) == ("A", "B")
