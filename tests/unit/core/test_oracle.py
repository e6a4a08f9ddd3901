from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.bars import BarBatch
from market_data_core.events import EventBatch, Rejected, make_batch
from market_data_core.records import Mark
from market_data_core.scaled import Scaled
from market_data_core.testing.oracle import (
    Counts,
    LogItem,
    OracleBar,
    OracleEvent,
    ReferenceRun,
    batch_bars,
    combined,
    deduplicate,
    oracle_bars,
    oracle_events,
    reference_run,
    window_of,
)
from market_data_core.testing.strategies import START_NS, Scenario, scenarios, to_batches

S = 10**9
BASE, LATENESS, HORIZON = 2 * S, S // 2, 10 * S


def trade(
    second: float, price: float = 1.0, size: float = 1.0, seq: int = 0, provider: str = "p"
) -> OracleEvent:
    ts = round(second * S)
    return OracleEvent(provider, "SPY", ts, seq, price, price, price, price, size)


def run(*log: LogItem) -> tuple[Counts, list[int]]:
    """Counts, and the seconds at which the closed windows start."""
    found = reference_run(log, BASE, LATENESS, HORIZON)
    assert found.counts.balanced
    return found.counts, sorted(start // S for _, _, start in found.bars)


# --- bars


def test_a_bar_by_hand() -> None:
    events = [
        trade(2.5, 10.2, 3.0, seq=7),
        trade(2.0, 10.1, 1.0),
        trade(3.999999999, 9.9, 0.5),
        trade(2.5, 10.7, 2.0, seq=6),
    ]
    notional = float(
        Fraction("10.2") * 3 + Fraction("10.1") + Fraction("9.9") / 2 + Fraction("21.4")
    )
    assert batch_bars(events, BASE) == {
        ("p", "SPY", 2 * S): OracleBar(10.1, 10.7, 9.9, 9.9, 6.5, notional / 6.5, 4)
    }


def test_open_and_close_go_by_time_then_sequence() -> None:
    events = [trade(1, price, seq=seq) for price, seq in [(1.0, 5), (2.0, -3), (3.0, 9), (4.0, 0)]]
    (bar,) = batch_bars(events, BASE).values()
    assert (bar.open, bar.close) == (2.0, 3.0)


def test_an_aggregate_brings_its_own_extremes() -> None:
    events = [OracleEvent("p", "SPY", 0, 0, 2.0, 5.0, 1.0, 3.0, 4.0), trade(1, 2.5, 1.0)]
    (bar,) = batch_bars(events, BASE).values()
    assert bar == OracleBar(2.0, 5.0, 1.0, 2.5, 5.0, 14.5 / 5.0, 2)


def test_sums_are_decimal_and_rounded_once() -> None:
    events = [trade(0, 0.1, 0.1, seq=i) for i in range(10)]
    events += [trade(0, 61837.63, 1e15, seq=10), trade(0, 1e-8, 5e-324, seq=11)]
    (bar,) = batch_bars(events[:3], BASE).values()
    assert bar.volume == 0.3  # the nearest to the sum of the three binary numbers is another
    size = 10 * Fraction("0.1") + 10**15 + Fraction("5e-324")
    value = 10 * Fraction("0.01") + Fraction("61837.63") * 10**15 + Fraction("5e-332")
    (bar,) = batch_bars(events, BASE).values()
    assert bar.volume == float(size)
    assert bar.vwap == float(value) / float(size)


def test_vwap_is_missing_where_it_has_no_value() -> None:
    (bar,) = batch_bars([trade(0, 10.0, 0.0)], BASE).values()
    assert (bar.volume, bar.vwap) == (0.0, None)
    (bar,) = batch_bars([trade(0, 1e300, 1e308, seq=i) for i in range(2)], BASE).values()
    assert (bar.volume, bar.vwap) == (float("inf"), None)


def test_windows_begin_at_multiples_on_both_sides_of_1970() -> None:
    assert [window_of(ts, 10) for ts in (-11, -10, -1, 0, 9, 10)] == [-20, -10, -10, 0, 0, 10]


def test_wider_bars_come_from_the_events_themselves() -> None:
    events = [trade(second, 1.0 + second) for second in range(10)]
    (bar,) = batch_bars(events, 10 * S).values()
    assert (bar.open, bar.close, bar.volume, bar.trade_count) == (1.0, 10.0, 10.0, 10)


def test_the_first_of_an_identity_counts() -> None:
    first, other = trade(1, 5.0), trade(1, 6.0)
    unique, copies, conflicts = deduplicate([first, other, first, other, trade(1, 5.0, seq=1)])
    assert unique == [first, trade(1, 5.0, seq=1)]
    assert copies == [first]
    assert conflicts == [other, other]
    assert batch_bars([other, first], BASE) == batch_bars([other], BASE)


def test_providers_and_symbols_stay_apart() -> None:
    events = [trade(1), trade(1, provider="q"), trade(1)._replace(symbol="AAPL")]
    assert {key[:2] for key in batch_bars(events, BASE)} == {
        ("p", "SPY"), ("q", "SPY"), ("p", "AAPL"),
    }  # fmt: skip


# --- conversions


def test_batches_are_read_by_way_of_their_decimals() -> None:
    batch = make_batch(
        "p", ["SPY", "A"], [1, 2], [3, 4], [425.15, 5e-324], [1e15, 0.1],
        ohl=([425.1, 0.0], [425.2, 1e300], [425.0, 0.0]),
    )  # fmt: skip
    assert oracle_events(batch) == [
        OracleEvent("p", "SPY", 1, 3, 425.1, 425.2, 425.0, 425.15, 1e15),
        OracleEvent("p", "A", 2, 4, 0.0, 1e300, 0.0, 5e-324, 0.1),
    ]


def test_engine_bars_take_the_oracles_shape() -> None:
    ones = np.array([1.0, 2.0])
    batch = BarBatch(
        "p", "2s", "final", ("SPY", "A"), np.array([1, 0], np.uint16), np.array([0, 2 * S]),
        ones, ones, ones, ones, ones, np.array([np.nan, 3.0]), np.array([4, 5]),
    )  # fmt: skip
    assert oracle_bars(batch) == {
        ("p", "A", 0): OracleBar(1.0, 1.0, 1.0, 1.0, 1.0, None, 4),
        ("p", "SPY", 2 * S): OracleBar(2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 5),
    }


# --- the reference run


def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    before = [trade(1), trade(2.4)]
    assert run(*before) == (Counts(received=2, open=2), [])
    assert run(*before, trade(2.5)) == (Counts(received=3, stored=1, open=2), [0])


def test_an_event_is_late_from_the_horizon_on() -> None:
    # at watermark 12 the window 0 ... 2 is final; the event's own time does not matter
    assert run(trade(12.499999999), trade(1.9))[0] == Counts(received=2, stored=1, open=1)
    assert run(trade(12.5), trade(1.9))[0] == Counts(received=2, late=1, open=1)
    assert run(trade(12.5), trade(2.0))[0] == Counts(received=2, stored=1, open=1)


def test_a_late_copy_is_late_and_not_a_duplicate() -> None:
    found = reference_run([trade(1), trade(12.5), trade(1)], BASE, LATENESS, HORIZON)
    assert found.counts == Counts(received=3, stored=1, late=1, open=1)
    assert found.late == [trade(1)]
    assert found.watermarks == {"p": 12 * S}


def test_copies_and_contradictions_are_told_once_the_window_closed() -> None:
    same_key = [trade(1, 5.0), trade(1, 5.0), trade(1, 6.0)]
    assert run(*same_key)[0] == Counts(received=3, open=3)
    found = reference_run([*same_key, trade(2.5)], BASE, LATENESS, HORIZON)
    assert found.counts == Counts(received=4, stored=1, open=1, deduplicated=1, dead_lettered=1)
    assert found.conflicts == [trade(1, 6.0)]
    assert found.bars["p", "SPY", 0].close == 5.0


def test_a_restating_event_joins_its_closed_window() -> None:
    found = reference_run([trade(1), trade(5), trade(0.5, 9.0)], BASE, LATENESS, HORIZON)
    assert found.bars["p", "SPY", 0].open == 9.0
    assert found.counts == Counts(received=3, stored=2, open=1)


@pytest.mark.parametrize(
    ("mark", "closed"),
    [
        (Mark(kind="progress", provider="p", ts=round(2.4 * S)), []),
        (Mark(kind="progress", provider="p", ts=round(2.5 * S)), [0]),
        (Mark(kind="idle", provider="p", ts=2 * S - 1), []),
        (Mark(kind="idle", provider="p", ts=2 * S), [0]),
        (Mark(kind="idle", provider="q", ts=99 * S), []),
        (Mark(kind="pause", provider="p", ts=99 * S), []),
        (Mark(kind="end", count=1), [0]),
    ],
)
def test_marks_move_the_watermark_by_their_kind(mark: Mark, closed: list[int]) -> None:
    assert run(trade(1), mark)[1] == closed


def test_marks_never_move_it_back() -> None:
    back = (Mark(kind="idle", provider="p", ts=0), Mark(kind="progress", provider="p", ts=0))
    assert run(trade(1), trade(2.5), *back)[1] == [0]


def test_idleness_makes_later_events_late() -> None:
    idle = Mark(kind="idle", provider="p", ts=12 * S)
    assert run(idle, trade(1.9))[0] == Counts(received=1, late=1)


def test_every_provider_has_its_own_watermark() -> None:
    counts, closed = run(trade(1), trade(100, provider="q"), trade(1, seq=1))
    assert (counts.open, counts.late, closed) == (3, 0, [])


def test_after_the_end_everything_is_late() -> None:
    assert run(trade(1), Mark(kind="end"), trade(1, seq=1))[0] == Counts(
        received=2, stored=1, late=1
    )


def test_what_was_rejected_counts_and_moves_nothing() -> None:
    counts, closed = run(trade(1), Rejected("malformed", "", b"{"))
    assert (counts, closed) == (Counts(received=2, open=1, dead_lettered=1), [])


def test_partitions_add_up() -> None:
    one = reference_run([trade(1), trade(5)], BASE, LATENESS, HORIZON)
    two = reference_run(
        [trade(1, provider="q"), Mark(kind="end"), trade(1, provider="q")], BASE, LATENESS, HORIZON
    )
    total = combined([one, two])
    assert total.counts == Counts(received=4, stored=2, open=1, late=1)
    assert total.bars == one.bars | two.bars
    assert total.late == two.late


# --- the strategies keep their word


@given(scenarios())
def test_without_late_events_the_run_is_the_batch(scenario: Scenario) -> None:
    found = _reference(scenario)
    assert found.counts.balanced
    assert (found.late, found.counts.open) == ([], 0)
    assert found.bars == batch_bars(scenario.log, scenario.base_ns)


@given(scenarios(late=True))
def test_the_run_is_the_batch_over_what_was_not_late(scenario: Scenario) -> None:
    found = _reference(scenario)
    assert found.counts.balanced
    # once a window is final it stays so: of equal events the last ones are the late ones
    kept, late = [], list(found.late)
    for event in reversed(scenario.log):
        if late and event == late[-1]:
            late.pop()
        else:
            kept.append(event)
    assert late == []
    assert found.bars == batch_bars(reversed(kept), scenario.base_ns)


@given(scenarios(), st.randoms())
def test_order_matters_only_between_contradictions(scenario: Scenario, random: Random) -> None:
    unique = deduplicate(scenario.log)[0]
    expected = batch_bars(unique, scenario.base_ns)
    random.shuffle(unique)
    assert batch_bars(unique, scenario.base_ns) == expected


@given(scenarios())
def test_scenarios_convert_to_batches_without_loss(scenario: Scenario) -> None:
    batches = scenario.batches()
    assert [e for batch in batches for e in oracle_events(batch)] == list(scenario.log)
    ends = np.cumsum([len(batch) for batch in batches]).tolist()
    assert set(scenario.cuts) <= set(ends)
    assert scenario.log[0].src_ts >= START_NS
    assert START_NS % scenario.base_ns == 0
    assert all(point <= len(scenario.cuts) + 1 for point in scenario.crashes)
    assert all(isinstance(batch, EventBatch) and len(batch) for batch in batches)


def test_batches_end_where_the_provider_changes() -> None:
    log = [trade(1), trade(2, provider="q"), trade(3, provider="q"), trade(4)]
    assert [(b.provider, len(b)) for b in to_batches(log, [2])] == [
        ("p", 1), ("q", 1), ("q", 1), ("p", 1),
    ]  # fmt: skip


def test_floats_are_read_independently_of_the_column() -> None:
    batch = make_batch("p", ["A"], [0], [0], [1.0], [1.0])
    odd = Scaled(np.array([10**30 + 1], object), 30)
    assert oracle_events(replace(batch, close=odd))[0].close == 1.0


def _reference(scenario: Scenario) -> ReferenceRun:
    log: list[LogItem] = [*scenario.log, Mark(kind="end", count=len(scenario.log))]
    return reference_run(log, scenario.base_ns, scenario.allow_late_ns, scenario.horizon_ns)
