"""Events in total order, each once; exact bars; wider bars merged from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from market_data_core.scaled import Scaled
from market_data_pipeline.windows.aggregate import (
    Events,
    bars_of,
    concat_bars,
    concat_events,
    merge_bars,
    order_events,
)

S = 10**9
Row = tuple[int, int, int, float]
"""symbol code, ts in ns, seq, price"""


def column(values: Sequence[float]) -> Scaled:
    return Scaled.from_floats(np.array(values, np.float64))


def events(rows: Sequence[Row], dtype: type = np.uint16, own: bool | None = None) -> Events:
    codes, ts, seq, price = zip(*rows, strict=True)
    return Events(
        np.array(codes, dtype),
        np.array(ts, np.int64),
        np.array(seq, np.int64),
        column(price),
        column([1.0] * len(rows)),
        None,
        None if own is None else np.full(len(rows), own),
    )


def rows_of(found: Events) -> list[Row]:
    columns = (found.codes, found.ts, found.seq, found.close.to_floats())
    return list(zip(*(c.tolist() for c in columns), strict=True))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_order_is_symbol_then_time_then_seq(dtype: type) -> None:
    rows = [(1, 5, 0, 1.0), (0, 9, 0, 2.0), (0, 5, 7, 3.0), (0, 5, -2, 4.0), (0, -5, 9, 5.0)]
    ordered = order_events(events(rows, dtype))
    assert rows_of(ordered.events) == sorted(rows)
    assert [rows[i] for i in ordered.arrival.tolist()] == sorted(rows)
    assert len(ordered.duplicates) == len(ordered.conflicts) == 0


def test_symbols_beyond_16_bits_keep_their_order() -> None:
    rows = [(70_000, 1, 0, 1.0), (65_536, 1, 0, 2.0), (0, 1, 0, 3.0)]
    assert rows_of(order_events(events(rows, np.uint32)).events) == sorted(rows)


def test_of_one_identity_the_first_arrival_stays() -> None:
    rows = [(0, 5, 1, 10.0), (0, 5, 2, 20.0), (0, 5, 1, 10.0), (0, 5, 1, 11.0), (0, 5, 2, 20.0)]
    ordered = order_events(events(rows))
    assert rows_of(ordered.events) == [rows[0], rows[1]]
    assert (ordered.duplicates.tolist(), ordered.conflicts.tolist()) == ([2, 4], [3])


def test_equal_seqs_at_other_times_or_of_other_symbols_are_other_events() -> None:
    rows = [(0, 5, 1, 10.0), (1, 5, 1, 10.0), (0, 6, 1, 10.0)]
    assert len(order_events(events(rows)).events) == 3


def test_payloads_differ_in_any_column() -> None:
    base = events([(0, 5, 1, 10.0)] * 4)
    sizes, highs = column([1, 1, 2, 1]), column([10, 11, 10, 10])
    lows = column([10, 10, 10, 10])
    full = Events(base.codes, base.ts, base.seq, base.close, sizes, (lows, highs, lows))
    ordered = order_events(full)
    assert (ordered.duplicates.tolist(), ordered.conflicts.tolist()) == ([3], [1, 2])


def test_a_known_event_of_which_we_have_a_copy_makes_the_bar_ours() -> None:
    known, ours = [(0, 5, 1, 10.0), (0, 6, 1, 10.0)], [(0, 6, 1, 10.0)]
    joined = concat_events([events(known, own=False), events(ours)])
    ordered = order_events(joined)
    assert ordered.events.own is not None
    assert ordered.events.own.tolist() == [False, True]
    assert bars_of(ordered.events, S).own.tolist() == [1]


def test_one_event_is_a_bar() -> None:
    bars = bars_of(order_events(events([(3, 2 * S + 1, 0, 7.5)])).events, 2 * S)
    prices = [c.to_floats().tolist() for c in (bars.open, bars.high, bars.low, bars.close)]
    assert prices == [[7.5]] * 4
    assert (bars.codes.tolist(), bars.start.tolist(), bars.count.tolist()) == ([3], [2 * S], [1])


def test_bars_of_trades() -> None:
    rows = [(0, 0, 2, 11.0), (0, 0, 1, 10.0), (0, S - 1, 0, 9.0), (0, S, 0, 12.0), (1, 0, 0, 5.0)]
    bars = bars_of(order_events(events(rows)).events, S)
    assert bars.start.tolist() == [0, S, 0]
    assert bars.open.to_floats().tolist() == [10.0, 12.0, 5.0]
    assert bars.high.to_floats().tolist() == [11.0, 12.0, 5.0]
    assert bars.low.to_floats().tolist() == [9.0, 12.0, 5.0]
    assert bars.close.to_floats().tolist() == [9.0, 12.0, 5.0]
    assert bars.notional.to_floats().tolist() == [30.0, 12.0, 5.0]
    assert bars.count.tolist() == [3, 1, 1]


def test_sums_that_leave_64_bits_stay_exact() -> None:
    rows = [(0, i, 0, 1e15) for i in range(5_000)]
    found = events(rows)
    big = Events(found.codes, found.ts, found.seq, found.close, column([1e15] * 5_000), None)
    bars = bars_of(order_events(big).events, S)
    assert bars.volume.to_floats().tolist() == [5e18]
    assert int(bars.notional.mantissa[0]) == 5_000 * 10 ** (30 + bars.notional.scale)


def test_merged_bars_are_those_of_the_events() -> None:
    rng = np.random.default_rng(1)
    rows = [
        (int(c), int(t), i, float(p))
        for i, (c, t, p) in enumerate(
            zip(
                rng.integers(0, 3, 200),
                rng.integers(-7 * S, 7 * S, 200),
                rng.integers(1, 50, 200),
                strict=True,
            )
        )
    ]
    ordered = order_events(events(rows)).events
    base, direct = bars_of(ordered, S), bars_of(ordered, 5 * S)
    shuffled = rng.permutation(len(base))
    half = len(base) // 2
    parts = [base.take(shuffled[:half]), base.take(shuffled[half:])]
    merged = merge_bars(concat_bars(parts), 5 * S)
    for name in ("codes", "start", "count", "own"):
        assert getattr(merged, name).tolist() == getattr(direct, name).tolist()
    for name in ("open", "high", "low", "close", "volume", "notional"):
        found, expected = getattr(merged, name), getattr(direct, name)
        assert found.to_floats().tolist() == expected.to_floats().tolist()
