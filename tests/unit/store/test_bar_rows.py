"""Bars given one by one become columns, and lose nothing on the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.bars import BarBatch
from market_data_core.errors import UsageError
from market_data_store._bar_rows import bar_batches
from mds_client.models import Bar

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)
NS = int(T0.timestamp()) * 10**9


def bar(symbol: str = "SPY", minute: int = 0, **values: Any) -> Bar:
    known: dict[str, Any] = {"open": 1, "high": 9, "low": 0, "close": 2, "volume": 3}
    return Bar(symbol=symbol, ts=T0 + timedelta(minutes=minute), **known | values)


def rows_of(batch: BarBatch) -> list[tuple[Any, ...]]:
    symbols = batch.symbol_column()
    return [
        (batch.provider, symbols[i], batch.interval, int(batch.ts[i]), batch.state, batch.close[i])
        for i in range(len(batch))
    ]


def test_columns_hold_what_the_bars_do() -> None:
    bars = [
        bar("B", 1, open=0.1, vwap=0.3, trade_count=2**53 + 1),
        bar("A", 0, close=0.7, volume=1e300),
    ]
    (batch,) = bar_batches(bars)
    assert rows_of(batch) == [
        ("unknown", "B", "1m", NS + 60 * 10**9, "final", 2.0),
        ("unknown", "A", "1m", NS, "final", 0.7),
    ]
    assert batch.vwap_column() == [0.3, None]
    assert batch.count_column() == [2**53 + 1, None]
    assert batch.open.tolist() == [0.1, 1.0]
    assert batch.volume.tolist() == [3.0, 1e300]
    assert (batch.high.dtype.str, batch.ts.dtype.str) == ("<f8", "<i8")


@pytest.mark.parametrize(
    ("ts", "ns"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1900, 1, 1, 0, 0, 0, 1, tzinfo=UTC), -2_208_988_800 * 10**9 + 1000),
        (datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 7_258_118_400 * 10**9 - 1000),
        (datetime(2025, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 1_735_689_600 * 10**9),
    ],
)
def test_times_are_exact(ts: datetime, ns: int) -> None:
    values = {"vwap": None, "trade_count": None, "provider": "p", "interval": "1m"}
    row = SimpleNamespace(
        symbol="S", ts=ts, open=1, high=1, low=1, close=1, volume=1, state="final", **values
    )
    (batch,) = bar_batches([row])
    assert batch.ts.tolist() == [ns]


def test_feeds_are_kept_apart_and_spelled_in_one_way() -> None:
    class Row(SimpleNamespace):
        def __init__(self, symbol: str, interval: str) -> None:
            values = {"open": 1, "high": 1, "low": 1, "close": 1, "volume": 1, "vwap": None}
            super().__init__(symbol=symbol, interval=interval, ts=T0, **values)
            self.provider, self.state, self.trade_count = "p", "final", None

    batches = bar_batches([Row("spy", "60s"), Row("SPY", "2s"), Row("SPY", "1m")])
    assert [row[1:3] for batch in batches for row in rows_of(batch)] == [
        ("SPY", "1m"),
        ("SPY", "2s"),
        ("SPY", "1m"),
    ]


def test_batches_stay_where_they_stand() -> None:
    (made,) = bar_batches([bar(close=5)])
    batches = bar_batches([bar(close=1), made, bar(close=2), bar("X")])
    assert [row[-1] for batch in batches for row in rows_of(batch)] == [1, 5, 2, 2]
    assert batches[1] is made
    assert bar_batches([]) == []


@pytest.mark.parametrize(
    "wrong",
    [{"ts": datetime(2025, 1, 1)}, {"close": "x"}, {"trade_count": 2**63}],  # noqa: DTZ001
    ids=["no zone", "no number", "too many"],
)
def test_what_cannot_be_a_column_is_said(wrong: dict[str, Any]) -> None:
    whole = {name: getattr(bar(), name) for name in Bar.__struct_fields__}
    with pytest.raises(UsageError, match="rows: "):
        bar_batches([SimpleNamespace(**whole | wrong)])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "B"]),
            st.sampled_from(["p", "q"]),
            st.sampled_from(["1m", "2m"]),
            st.integers(0, 2),
            st.sampled_from(["final", "revised", "gap"]),
        ),
        max_size=30,
    )
)
def test_of_one_key_the_last_one_counts(keys: list[tuple[Any, ...]]) -> None:
    """Whatever the order of feeds and states, writing the batches in turn ends as the bars do."""
    bars = [
        bar(symbol, minute, provider=provider, interval=interval, state=state, close=i)
        for i, (symbol, provider, interval, minute, state) in enumerate(keys)
    ]
    batches = bar_batches(bars)
    assert sum(map(len, batches)) == len(bars)
    stored: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for batch in batches:
        rows = rows_of(batch)
        assert len({row[:4] for row in rows}) == len(rows)
        stored |= {row[:4]: row[4:] for row in rows}
    assert stored == {
        (b.provider, b.symbol, b.interval, NS + (b.ts.minute * 60) * 10**9): (b.state, b.close)
        for b in bars
    }
