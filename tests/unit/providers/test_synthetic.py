from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from market_data_core.clock import ManualClock
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import EventBatch, Rejected, concat_batches, invalid_rows, parse_ts
from market_data_core.registry import backend
from market_data_core.wire import BatchBuilder, decode_event
from market_data_pipeline.providers.synthetic import (
    DEFAULT_START,
    SyntheticProvider,
    SyntheticSettings,
)

START = parse_ts(DEFAULT_START)
NOW = parse_ts("2025-10-24T14:02:00Z")
DAY_NS = 86_400 * 10**9


def settings(**given: object) -> SyntheticSettings:
    return SyntheticSettings.model_validate({"speed": "max", **given})


async def collect(given: SyntheticSettings, limit_s: float, *symbols: str) -> list[Item]:
    provider = SyntheticProvider(given, clock=ManualClock(NOW), limit_s=limit_s)
    return [item async for item in provider.stream(Subscription(symbols))]


async def trades(given: SyntheticSettings, limit_s: float, *symbols: str) -> EventBatch:
    items = await collect(given, limit_s, *symbols)
    return concat_batches([item for item in items if isinstance(item, EventBatch)])


def rows(batch: EventBatch) -> list[tuple[object, ...]]:
    columns = (batch.codes, batch.src_ts, batch.seq, batch.close.mantissa, batch.volume.mantissa)
    return list(zip(*(column.tolist() for column in columns), strict=True))


async def test_arrivals_are_poisson_at_the_configured_rate() -> None:
    batch = await trades(settings(symbols=["A", "B"], tick_rate=20.0), 2_000)

    for code in (0, 1):
        ts = batch.src_ts[batch.codes == code]
        per_second = np.bincount((ts - START) // 10**9, minlength=2_000)
        assert per_second.mean() == pytest.approx(20, rel=0.02)
        # variance over mean is 1 for Poisson, 0 for a metronome; its error here is 3 %
        assert per_second.var() / per_second.mean() == pytest.approx(1, abs=0.15)
        gaps_s = np.diff(np.sort(ts)) / 1e9
        assert gaps_s.std() / gaps_s.mean() == pytest.approx(1, abs=0.03)


async def test_the_number_of_trades_varies_over_long_times_too() -> None:
    batch = await trades(settings(symbols=["A"], tick_rate=0.01), 1_000 * 3_600)

    per_hour = np.bincount((batch.src_ts - START) // (3_600 * 10**9), minlength=1_000)
    assert per_hour.mean() == pytest.approx(36, rel=0.02)
    assert per_hour.var() / per_hour.mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("volatility", "tick_rate", "hours"), [(0.02, 1.0, 24), (0.5, 1.0, 24), (0.02, 0.001, 8_000)]
)
async def test_daily_volatility_is_the_configured_one(
    volatility: float, tick_rate: float, hours: int
) -> None:
    given = settings(
        symbols=["A"],
        tick_rate=tick_rate,
        price_volatility=volatility,
        tick_size="0.00000001",
        start_price=1000.0,
    )
    batch = await trades(given, hours * 3_600)

    price, ts = np.log(batch.close.to_floats()), batch.src_ts
    returns, days = np.diff(price), np.diff(ts) / DAY_NS
    scaled = (returns + volatility**2 / 2 * days) / np.sqrt(days)
    assert scaled.std() == pytest.approx(volatility, rel=0.02)
    assert abs(scaled.mean()) < 4 * volatility / np.sqrt(len(scaled))
    # the walk has no memory
    assert abs(np.corrcoef(scaled[1:], scaled[:-1])[0, 1]) < 0.02
    # and crosses block boundaries like any other step
    assert np.abs(scaled).max() < 6 * volatility


async def test_the_expected_price_stays_where_it_is() -> None:
    given = settings(
        symbols=[f"S{i}" for i in range(4_000)],
        tick_rate=0.0005,
        price_volatility=0.3,
        tick_size="0.0001",
    )
    batch = await trades(given, 86_400)

    last = dict(zip(batch.codes, batch.close.to_floats(), strict=True))
    growth = np.array(list(last.values())) / 100
    assert growth.mean() == pytest.approx(1, abs=4 * 0.31 / np.sqrt(4_000))
    assert np.log(growth).mean() == pytest.approx(-(0.3**2) / 2, abs=4 * 0.3 / np.sqrt(4_000))


async def test_prices_lie_on_ticks_and_stay_positive() -> None:
    given = settings(tick_rate=5.0, tick_size="0.05", start_price=0.06, price_volatility=5.0)
    batch = await trades(given, 6_000)

    exact = [Decimal(int(m)).scaleb(-batch.close.scale) for m in batch.close.mantissa]
    assert {price % Decimal("0.05") for price in exact} == {Decimal(0)}
    assert min(exact) == Decimal("0.05")
    price, size = batch.close.to_floats(), batch.volume.to_floats()
    assert invalid_rows(price, price, price, price, size, batch.src_ts) == {}


async def test_sizes_are_lognormal_multiples_of_the_lot() -> None:
    batch = await trades(settings(tick_rate=100.0, lot_size="0.001", lots_median=5_000), 100)

    size = batch.volume.to_floats()
    assert np.median(size) == pytest.approx(5, rel=0.03)
    assert np.log(size).std() == pytest.approx(1, rel=0.03)
    assert batch.volume.scale == 3


async def test_sequence_numbers_count_each_symbol_in_time_order() -> None:
    batch = await trades(settings(tick_rate=5_000.0), 5)

    for code in range(3):
        mine = batch.codes == code
        assert batch.seq[mine].tolist() == list(range(1, int(mine.sum()) + 1))
        assert (np.diff(batch.src_ts[mine]) >= 0).all()
    assert (np.diff(batch.src_ts) >= 0).all()


async def test_a_seed_gives_the_same_events_at_every_speed() -> None:
    given = {
        "tick_rate": 40.0,
        "seed": 7,
        "start": "2025-10-24T14:02:00Z",
        "disorder": 0.2,
        "duplicates": 0.1,
        "late": 0.05,
        "late_ms": 2_000,
        "malformed": 0.05,
    }
    fast = await collect(settings(**given), 10)
    for speed in (1.0, 10.0):
        paced = await _run_paced(settings(**given, speed=speed), 10)
        assert rows(_joined(paced)) == rows(_joined(fast))
        assert _rejected(paced) == _rejected(fast)
    assert rows(await trades(settings(**{**given, "seed": 8}), 10)) != rows(_joined(fast))


async def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short = rows(await trades(settings(tick_rate=2_000.0), 3))
    longer = rows(await trades(settings(tick_rate=2_000.0), 9))

    assert longer[: len(short)] == short
    assert START + 2.99e9 < short[-1][1] < START + 3e9  # type: ignore[operator]


async def test_real_time_events_bear_the_wall_clock_and_are_never_early() -> None:
    clock = ManualClock(NOW)
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock.advance(max(1, round(seconds * 1e9)))

    provider = SyntheticProvider(
        settings(tick_rate=200.0, speed=1.0), clock=clock, limit_s=5, sleep=sleep
    )
    waits = []
    async for item in provider.stream(Subscription()):
        assert isinstance(item, EventBatch)
        assert (item.ingest_ts == clock.time_ns).all()
        waits.append(clock.time_ns - item.src_ts)
    waited = np.concatenate(waits)
    assert waited.min() >= 0
    assert waited.max() <= 6_000_000  # a slice of 5 ms
    assert clock.time_ns - NOW == pytest.approx(5e9, abs=0.1e9)
    assert max(naps) < 0.1


async def test_a_stalled_consumer_gets_everything_that_came_meanwhile() -> None:
    clock = ManualClock(NOW)

    async def sleep(seconds: float) -> None:
        clock.advance(10**9)  # far longer than asked for

    provider = SyntheticProvider(
        settings(tick_rate=100.0, speed=1.0), clock=clock, limit_s=10, sleep=sleep
    )
    items = [item async for item in provider.stream(Subscription())]
    assert len(_joined(items)) == pytest.approx(3_000, rel=0.1)
    assert len(items) <= 12


async def test_disorder_delays_the_configured_share_within_its_bound() -> None:
    plain = await trades(settings(tick_rate=500.0), 30)
    batch = await trades(settings(tick_rate=500.0, disorder=0.05, disorder_ms=200), 30)

    assert sorted(rows(batch)) == sorted(rows(plain))
    behind = np.maximum.accumulate(batch.src_ts) - batch.src_ts
    assert behind.max() <= 200_000_000
    assert (behind > 0).mean() == pytest.approx(0.05, rel=0.1)


async def test_late_events_come_after_their_delay() -> None:
    given = settings(tick_rate=500.0, late=0.02, late_ms=4_000)
    batch = await trades(given, 60)

    behind = np.maximum.accumulate(batch.src_ts) - batch.src_ts
    before_end = batch.src_ts < START + 56 * 10**9
    late = (behind > 0) & before_end
    assert late.sum() / before_end.sum() == pytest.approx(0.02, rel=0.1)
    assert behind[late].min() > 3_900_000_000
    assert sorted(rows(batch)) == sorted(rows(await trades(settings(tick_rate=500.0), 60)))


async def test_late_and_disordered_are_different_trades() -> None:
    given = settings(tick_rate=500.0, late=0.2, late_ms=4_000, disorder=0.2, disorder_ms=300)
    batch = await trades(given, 60)

    counted = batch.src_ts < START + 56 * 10**9
    behind = (np.maximum.accumulate(batch.src_ts) - batch.src_ts)[counted]
    assert (behind > 3_500_000_000).mean() == pytest.approx(0.2, rel=0.05)
    assert ((behind > 0) & (behind <= 300_000_000)).mean() == pytest.approx(0.2, rel=0.05)


async def test_duplicates_are_exact_copies_that_come_later() -> None:
    plain = rows(await trades(settings(tick_rate=500.0), 30))
    doubled = rows(await trades(settings(tick_rate=500.0, duplicates=0.03), 30))

    assert set(doubled) == set(plain)
    assert len(doubled) - len(plain) == pytest.approx(0.03 * len(plain), rel=0.1)
    assert list(dict.fromkeys(doubled)) == plain


async def test_malformed_messages_are_extra_and_break_the_rule_they_name() -> None:
    given = settings(tick_rate=500.0, malformed=0.02)
    items = await collect(given, 30)

    assert rows(_joined(items)) == rows(await trades(settings(tick_rate=500.0), 30))
    broken = [item for item in items if isinstance(item, Rejected)]
    assert len(broken) == pytest.approx(0.02 * len(_joined(items)), rel=0.15)
    assert {item.reason for item in broken} == {"not_finite", "malformed", "negative"}
    assert all(_reason_of(item.original) == item.reason for item in broken)


async def test_any_number_of_symbols_and_a_subscription() -> None:
    many = [f"S{i}" for i in range(10_000)]
    batch = await trades(settings(tick_rate=100.0), 0.2, *many, "s0")
    assert len(batch) == pytest.approx(200_000, rel=0.02)
    assert batch.symbols == ("S0", *many[1:])
    assert len(np.unique(batch.codes)) == 10_000
    _assert_distinct(batch)


async def test_the_provider_bears_its_configured_name() -> None:
    assert (await trades(settings(name="mine"), 10)).provider == "mine"
    assert (await trades(settings(), 10)).provider == "synthetic"
    assert backend("provider", "synthetic").factory is SyntheticProvider


async def test_the_stream_ends_where_times_end() -> None:
    batch = await trades(settings(start="2199-12-31T23:59:50Z"), 1_000)
    assert batch.src_ts.max() < parse_ts("2199-12-31T23:59:59.999999999Z")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tick_rate": 0}, "greater than 0"),
        ({"tick_rate": float("nan")}, "finite"),
        ({"price_volatility": -1}, "greater than or equal to 0"),
        ({"tick_size": 0}, "greater than 0"),
        ({"symbols": []}, "at least 1"),
        ({"symbols": ["SPY", "spy"]}, "SPY"),
        ({"speed": "fast"}, "'fast' is neither"),
        ({"speed": 0}, "0 is neither"),
        ({"speed": None}, "None is neither"),
        ({"start": "yesterday"}, DEFAULT_START),
        ({"disorder": 0.7, "late": 0.4}, "must not exceed 1 together"),
        ({"tick_rte": 1.0}, "tick_rte"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**given)


@pytest.mark.parametrize("limit_s", [0, -1.0, float("nan")])
def test_a_limit_must_be_positive(limit_s: float) -> None:
    with pytest.raises(UsageError, match="positive"):
        SyntheticProvider(settings(), limit_s=limit_s)


def test_defaults_are_the_documented_ones() -> None:
    given = SyntheticSettings()
    assert given.symbols == ("SPY", "AAPL", "MSFT")
    assert (given.tick_rate, given.price_volatility, given.speed) == (1.0, 0.02, 1.0)
    assert all(field.description for field in SyntheticSettings.model_fields.values())


async def _run_paced(given: SyntheticSettings, limit_s: float) -> list[Item]:
    clock = ManualClock(NOW)

    async def sleep(seconds: float) -> None:
        clock.advance(max(1, round(seconds * 1e9)))

    provider = SyntheticProvider(given, clock=clock, limit_s=limit_s, sleep=sleep)
    return [item async for item in provider.stream(Subscription())]


def _joined(items: list[Item]) -> EventBatch:
    return concat_batches([item for item in items if isinstance(item, EventBatch)])


def _rejected(items: list[Item]) -> list[tuple[str, bytes]]:
    return [(item.reason, item.original) for item in items if isinstance(item, Rejected)]


def _reason_of(original: bytes) -> str:
    builder = BatchBuilder()
    try:
        builder.add(decode_event(original), NOW)
    except RejectedError as error:
        return error.reason
    (_, reason), *rest = builder.build()[1]
    assert not rest
    return reason


def _assert_distinct(batch: EventBatch) -> None:
    key: NDArray[np.int64] = np.column_stack([batch.codes, batch.src_ts, batch.seq])
    assert len(np.unique(key, axis=0)) == len(batch)
