"""The asynchronous client, on every backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import UsageError
from market_data_store import AsyncStoreClient, SignalsStoreClient
from market_data_store._bar_rows import bar_batches
from market_data_store.opening import open_ready_store
from mds_client.models import Bar, FundamentalPoint, NewsItem, OptionSnap, SignalRow

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)


def at(minute: int) -> datetime:
    return T0 + timedelta(minutes=minute)


def bar(symbol: str = "SPY", minute: int = 0, **values: Any) -> Bar:
    known: dict[str, Any] = {"open": 1, "high": 9, "low": 0.5, "close": 2, "volume": 3}
    return Bar(symbol=symbol, ts=at(minute), **known | {"provider": "p"} | values)


def signal(minute: int = 0, name: str = "up", **values: Any) -> SignalRow:
    known: dict[str, Any] = {"symbol": "SPY", "provider": "p", "value": 1, "ts": at(minute)}
    return SignalRow(name=name, **known | values)


@pytest.fixture
async def client(any_uri: str) -> AsyncIterator[AsyncStoreClient]:
    async with AsyncStoreClient(any_uri) as client:
        yield client


# writing


async def test_bars_come_back_as_they_were(client: AsyncStoreClient) -> None:
    bars = [bar(minute=i, close=0.1 + i, vwap=1 / 3, trade_count=i) for i in range(3)]
    assert await client.upsert_bars([*bars, *bar_batches([bar("QQQ")])]) == WriteCounts(4)
    assert await client.upsert_bars(bars) == WriteCounts(unchanged=3)
    changed = [bar(minute=1, close=7, trade_count=5, state="revised")]
    assert await client.upsert_bars(changed) == WriteCounts(updated=1)
    frame = await client.bars("SPY", "1m")
    assert frame["close"].to_list() == [0.1, 7.0, 2.1]
    assert frame["vwap"].to_list() == [1 / 3, None, 1 / 3]
    assert frame["trade_count"].to_list() == [0, 5, 2]
    assert frame["ts"].to_list() == [at(0), at(1), at(2)]
    assert frame["state"].to_list() == ["final", "revised", "final"]


async def test_of_one_key_the_last_bar_counts(client: AsyncStoreClient) -> None:
    again = [bar(close=1), bar(close=2, state="revised"), bar(close=3)]
    counts = await client.upsert_bars(again)
    assert (counts.inserted, counts.updated) == (1, 2)
    frame = await client.bars("SPY")
    assert frame.select("close", "state").rows() == [(3.0, "revised")]


async def test_a_bar_of_more_trades_is_kept(client: AsyncStoreClient) -> None:
    await client.upsert_bars([bar(trade_count=5)])
    assert await client.upsert_bars([bar(close=9, trade_count=4)]) == WriteCounts(kept=1)


async def test_other_tables_come_back_as_they_were(client: AsyncStoreClient) -> None:
    option = OptionSnap(
        symbol="SPY", expiry=date(2025, 12, 19), option_type="C", strike=500.5, ts=T0, delta=-0.5
    )
    point = FundamentalPoint(symbol="A", metric="revenue", value=1.5, asof=T0, period="2025Q3")
    news = NewsItem(id="1", symbol="A", title="t", published_at=T0, sentiment_score=-0.5)
    assert await client.upsert_options([option]) == WriteCounts(1)
    assert await client.upsert_fundamentals((point,)) == WriteCounts(1)
    assert await client.upsert_news([news]) == WriteCounts(1)
    assert await client.upsert_news([news]) == WriteCounts(unchanged=1)
    (row,) = (await client.options("SPY", option_type="C")).rows(named=True)
    assert (row["strike"], row["delta"], row["bid"]) == (500.5, -0.5, None)
    assert row["expiry"] == date(2025, 12, 19)
    (row,) = (await client.fundamentals(metric="revenue")).rows(named=True)
    assert (row["asof"], row["value"], row["period"]) == (T0, 1.5, "2025Q3")
    (row,) = (await client.news("a")).rows(named=True)
    assert (row["title"], row["sentiment_score"]) == ("t", -0.5)
    later = OptionSnap(symbol="SPY", expiry=option.expiry, option_type="C", strike=500.5, ts=at(1))
    await client.upsert_options([later])
    assert (await client.latest_options("SPY"))["ts"].to_list() == [at(1)]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (bar(), "rows is a Bar; give a list"),
        ([{"symbol": "SPY"}], "rows: a dict has no 'provider'"),
        ("SPY", "rows is a str"),
        ([bar(), signal()], "rows: a SignalRow has no 'interval'"),
    ],
)
async def test_what_is_no_row_is_refused(rows: Any, told: str) -> None:
    client = AsyncStoreClient("sqlite:////nowhere/store.db")
    with pytest.raises(UsageError, match=told):
        await client.upsert_bars(rows)


async def test_nothing_to_write_opens_nothing() -> None:
    client = AsyncStoreClient("sqlite:////nowhere/store.db")
    assert await client.upsert_bars([]) == await client.upsert_news([]) == WriteCounts()


# reading


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (at(1), at(3)),
        ("2025-10-24T14:01:00Z", "2025-10-24T16:03:00+02:00"),
        (int(at(1).timestamp()) * 10**9, int(at(3).timestamp()) * 10**9),
    ],
)
async def test_ranges(client: AsyncStoreClient, start: Any, end: Any) -> None:
    await client.upsert_bars([bar(minute=i) for i in range(5)])
    assert (await client.bars("spy", "60s", start, end))["ts"].to_list() == [at(1), at(2)]


async def test_days_are_midnight_utc(client: AsyncStoreClient) -> None:
    await client.upsert_bars([bar(minute=i) for i in (0, 600)])
    assert len(await client.bars("SPY", "1m", "2025-10-24", date(2025, 10, 25))) == 1
    assert len(await client.bars("SPY", "1m", date(2025, 10, 25))) == 1


async def test_columns_are_chosen_from(client: AsyncStoreClient) -> None:
    rows = [bar(s, provider=p, interval=i) for s in "ABC" for p in "pq" for i in ("1m", "2s")]
    await client.upsert_bars(rows)
    frame = await client.bars(["a", "C"], ["1m", "2s"], provider="q")
    assert frame.select("provider", "symbol", "interval").rows() == [
        ("q", "A", "1m"),
        ("q", "A", "2s"),
        ("q", "C", "1m"),
        ("q", "C", "2s"),
    ]
    assert len(await client.bars()) == 12


async def test_the_latest(client: AsyncStoreClient) -> None:
    await client.upsert_bars([bar(s, i, close=i + 1) for s in "AB" for i in range(4)])
    frame = await client.latest_bars(["A", "B"], "1m", 2)
    assert frame.select("symbol", "close").rows() == [("A", 3), ("A", 4), ("B", 3), ("B", 4)]


async def test_what_was_known_at_a_time(client: AsyncStoreClient) -> None:
    await client.upsert_bars([bar(close=1)])
    then = int((await client.bars("SPY"))["updated_at"].to_physical()[0])
    while time.time_ns() < then + 2_000:
        await asyncio.sleep(0)
    await client.upsert_bars([bar(close=2), bar(minute=1)])
    assert (await client.bars("SPY", as_of=then))["close"].to_list() == [1.0]
    assert (await client.latest_bars("SPY", "1m"))["ts"].to_list() == [at(1)]
    assert (await client.bars("SPY"))["close"].to_list() == [2.0, 2.0]


async def test_fundamentals_known_at_a_time(client: AsyncStoreClient) -> None:
    points = [
        FundamentalPoint(symbol="A", metric=metric, period="Q1", value=value, asof=at(minute))
        for metric, minute, value in [("eps", 0, 1), ("eps", 5, 2), ("debt", 3, 7)]
    ]
    await client.upsert_fundamentals(points)
    for moment, known in [(at(4), {"eps": 1, "debt": 7}), (at(5), {"eps": 2, "debt": 7})]:
        frame = await client.fundamentals("A", as_of=moment)
        assert dict(frame.select("metric", "value").rows()) == known
    assert len(await client.fundamentals("A")) == 3
    with pytest.raises(UsageError, match="end and as_of"):
        await client.fundamentals("A", end=at(1), as_of=at(1))


async def test_frames_one_by_one(client: AsyncStoreClient) -> None:
    await client.upsert_bars([bar(minute=i) for i in range(25)])
    frames = [frame async for frame in client.iter_bars("SPY", "1m", rows_max=10)]
    assert max(map(len, frames)) <= 10
    assert pl.concat(frames).equals(await client.bars("SPY", "1m"))
    async for _ in client.iter_bars("SPY", rows_max=1):
        break  # who stops early keeps nobody from writing
    assert await client.upsert_bars([bar("X")]) == WriteCounts(1)
    assert [f async for f in client.iter_news(["NONE"])] in ([], [await client.news("NONE")])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"start": "yesterday"}, "start: 'yesterday' is not"),
        ({"end": datetime(2025, 1, 1)}, "end is .*its zone"),  # noqa: DTZ001
        ({"start": 1.5}, "start is 1.5"),
        ({"start": True}, "start is True"),
        ({"as_of": b""}, "as_of is b''"),
        ({"start": "2025-10-25", "end": "2025-10-24"}, "start '2025-10-25' is after end"),
        ({"symbols": []}, "symbols is empty"),
        ({"symbols": ["A", 1]}, "symbols: 1 is not"),
        ({"provider": ""}, "provider: '' is not"),
        ({"interval": "1x"}, "interval '1x'"),
    ],
)
async def test_arguments_that_make_no_sense(arguments: dict[str, Any], told: str) -> None:
    client = AsyncStoreClient("sqlite:////nowhere/store.db")
    with pytest.raises(UsageError, match=told):
        await client.bars(**arguments)
    with pytest.raises(UsageError, match=told):
        client.iter_bars(**arguments)


@pytest.mark.parametrize("n", [0, -1, True, 1.5])
async def test_counts_are_whole(n: Any) -> None:
    client = AsyncStoreClient("sqlite:////nowhere/store.db")
    with pytest.raises(UsageError, match="n is "):
        await client.latest_bars("SPY", "1m", n)
    with pytest.raises(UsageError, match="rows_max is "):
        client.iter_bars("SPY", rows_max=n)


# wider bars


async def test_wider_bars(client: AsyncStoreClient) -> None:
    rows = [
        bar(minute=i, open=i + 1, high=20 + i, low=0.5 + i, close=i + 2, volume=i, vwap=i + 1.5,
            trade_count=i)
        for i in range(7)
    ]  # fmt: skip
    await client.upsert_bars([*rows, bar("X", 1)])
    frame = await client.resampled_bars("SPY", "1m", "180s", at(0), at(6))
    assert frame.rows() == [
        ("p", "SPY", "3m", at(0), 1, 22, 0.5, 4, 3, (2.5 + 2 * 3.5) / 3, 3, "final"),
        ("p", "SPY", "3m", at(3), 4, 25, 3.5, 7, 12, (3 * 4.5 + 4 * 5.5 + 5 * 6.5) / 12, 12,
         "final"),
    ]  # fmt: skip
    assert frame.columns == (await client.bars())[:, :-2].columns
    whole = await client.resampled_bars("SPY", "1m", "3m", at(1), at(4))
    assert whole["ts"].to_list() == [at(3)]
    assert whole["close"].to_list() == [7]


async def test_wider_bars_know_what_they_do_not_know(client: AsyncStoreClient) -> None:
    known = {"vwap": 1.0, "trade_count": 1}
    unknown = [
        *(bar("A", i, **known | {"state": s}) for i, s in enumerate(["final", "revised"])),
        *(bar("B", i, **known | {"state": s}) for i, s in enumerate(["gap", "revised"])),
        *(bar("C", i, vwap=v, trade_count=n) for i, (v, n) in enumerate([(1, None), (None, 1)])),
        *(bar("D", i, volume=0, vwap=None, trade_count=0) for i in range(2)),
        *(bar("E", i, volume=v, vwap=w) for i, (v, w) in enumerate([(0, None), (2, 1.5)])),
    ]
    await client.upsert_bars(unknown)
    frame = await client.resampled_bars(None, "1m", "1h")
    assert frame.select("symbol", "vwap", "trade_count", "state").rows() == [
        ("A", 1.0, 2, "revised"),
        ("B", 1.0, 2, "gap"),
        ("C", None, None, "final"),
        ("D", None, 0, "final"),
        ("E", 1.5, None, "final"),
    ]
    with pytest.raises(UsageError, match="every '90s' is not a multiple of interval '1m'"):
        await client.resampled_bars("A", "1m", "90s")


# signals


async def test_signals_are_retracted(any_uri: str) -> None:
    async with SignalsStoreClient(any_uri) as client:
        rows = [signal(i, metadata={"b": [1, None], "a": 0.5}, score=0.5) for i in range(3)]
        await client.upsert_signals([*rows, signal(0, "down")])
        keys = [("p", "spy", at(i), "up") for i in (0, 2)]
        assert await client.retract(keys) == WriteCounts(updated=2)
        assert await client.retract([*keys, ("p", "SPY", at(1), "up")]) == WriteCounts(1 - 1, 1, 2)
        frame = await client.signals("SPY", name="up", state="retracted")
        assert frame["score"].to_list() == [0.5] * 3
        assert set(frame["metadata"]) == set((await client.signals(name="up"))["metadata"])
        assert (await client.signals(state="active"))["name"].to_list() == ["down"]
        assert len(await client.latest_signals()) == 2
        frames = [frame async for frame in client.iter_signals("SPY", at(1), name="up")]
        assert pl.concat(frames)["ts"].to_list() == [at(1), at(2)]
        with pytest.raises(UsageError, match="no signal 'up' of p SPY at 2025-10-24 14:09:00"):
            await client.retract([("p", "SPY", at(0), "down"), ("p", "SPY", at(9), "up")])
        assert len(await client.signals(state="active")) == 1
        assert await client.retract([]) == WriteCounts()
        with pytest.raises(UsageError, match="keys: 'p' is not a tuple"):
            await client.retract(["p"])  # type: ignore[list-item]


async def test_a_signal_written_meanwhile_is_retracted_as_it_is(
    any_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_ready_store(any_uri)
    try:
        client = SignalsStoreClient(store)
        await client.upsert_signals([signal(value=1)])
        replace = store.replace

        async def late(*arguments: Any) -> bool:
            monkeypatch.setattr(store, "replace", replace)
            await client.upsert_signals([signal(value=2)])
            return await replace(*arguments)

        monkeypatch.setattr(store, "replace", late)
        assert await client.retract([("p", "SPY", T0, "up")]) == WriteCounts(updated=1)
        frame = await client.signals()
        assert frame.select("value", "state").rows() == [(2.0, "retracted")]
    finally:
        await store.close()
