"""Records of the client library: checked when made, the same after JSON."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from market_data_core.errors import UsageError
from mds_client.models import (
    Bar,
    FundamentalPoint,
    InvalidRecord,
    NewsItem,
    OptionSnap,
    SignalRow,
)

BAR: dict[str, Any] = {
    "symbol": "AAPL", "open": 190, "high": 192, "low": 189, "close": 191, "volume": 1000,
}  # fmt: skip
OPTION: dict[str, Any] = {
    "symbol": "SPY", "expiry": date(2025, 12, 19), "option_type": "C", "strike": 500,
}  # fmt: skip
NEWS: dict[str, Any] = {"id": "1", "symbol": "SPY", "title": "x"}


def test_a_bar_needs_only_its_prices() -> None:
    bar = Bar(**BAR | {"symbol": "brk.b"})
    assert (bar.symbol, bar.provider, bar.interval, bar.state) == (
        "BRK.B",
        "unknown",
        "1m",
        "final",
    )
    assert datetime.now(UTC) - bar.ts < timedelta(minutes=1)
    assert bar.ts.tzinfo is UTC
    assert isinstance(bar.open, float)
    assert bar.vwap is None


def test_values_get_their_one_spelling() -> None:
    new_york = timezone(timedelta(hours=-5))
    bar = Bar(**BAR, interval="60s", ts=datetime(2025, 1, 1, 9, tzinfo=new_york), vwap=1)
    assert bar.interval == "1m"
    assert bar.ts == datetime(2025, 1, 1, 14, tzinfo=UTC)
    assert bar.ts.tzinfo is UTC
    assert isinstance(bar.vwap, float)


@pytest.mark.parametrize(
    "record",
    [
        Bar(**BAR, vwap=190.5, trade_count=7),
        OptionSnap(**OPTION, delta=-0.5, oi=3, ts=datetime(2025, 1, 1, tzinfo=UTC)),
        FundamentalPoint(symbol="A", metric="revenue", value=-1.5, currency="USD"),
        NewsItem(**NEWS, sentiment_score=-1),
        SignalRow(symbol="A", name="up", value=1, metadata={"window": "1m"}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_the_same_after_json(record: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Bar, BAR | {"symbol": ""}, "Bar: symbol is ''"),
        (Bar, BAR | {"symbol": None}, "symbol is None; give a text"),
        (Bar, BAR | {"symbol": "A\0"}, "holds no NUL"),
        (Bar, BAR | {"symbol": "\ud800"}, "half characters"),
        (Bar, BAR | {"provider": "a|b"}, "provider is 'a|b'"),
        (Bar, BAR | {"open": float("nan")}, "open is nan; give a finite number"),
        (Bar, BAR | {"low": -1}, r"low is -1\.0; give at least 0"),
        (Bar, BAR | {"close": "190"}, "close is '190'; give a number"),
        (Bar, BAR | {"volume": True}, "volume is True"),
        (Bar, BAR | {"high": 1}, r"high is 1\.0; that is below low, 189\.0"),
        (Bar, BAR | {"ts": datetime(2025, 1, 1)}, "ts is .* with its zone"),  # noqa: DTZ001
        (Bar, BAR | {"ts": datetime(1, 1, 1, tzinfo=UTC)}, "years 1900"),
        (Bar, BAR | {"interval": "1 moon"}, "interval is '1 moon'"),
        (Bar, BAR | {"trade_count": -1}, "trade_count is -1"),
        (Bar, BAR | {"state": "new"}, "state is 'new'; give one of 'final'"),
        (OptionSnap, OPTION | {"option_type": "call"}, "give one of 'C', 'P'"),
        (OptionSnap, OPTION | {"expiry": datetime(2025, 1, 1, tzinfo=UTC)}, "give a day"),
        (NewsItem, NEWS | {"sentiment_score": 2}, "sentiment_score is 2.0; give -1 to 1"),
        (NewsItem, NEWS | {"id": ""}, "id is ''"),
        (SignalRow, {"symbol": "A", "name": "n", "value": 1, "metadata": []}, "a dictionary"),
    ],
)
def test_what_cannot_be_stored_cannot_be_made(
    kind: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRecord, match=message) as caught:
        kind(**given)
    assert isinstance(caught.value, UsageError)


def test_a_bad_record_in_json_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="that is below low"):
        msgspec.json.decode(msgspec.json.encode(BAR | {"high": 1}), type=Bar)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Bar(**BAR).open = 1.0  # type: ignore[misc]
