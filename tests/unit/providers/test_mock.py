"""The mock plays its script, breaks on demand, and can be configured."""

from __future__ import annotations

from contextlib import aclosing
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from market_data_core import registry
from market_data_core.clock import ManualClock
from market_data_core.config import load_config
from market_data_core.contracts.provider import (
    BarProvider,
    FeedState,
    Item,
    LiveProvider,
    Subscription,
)
from market_data_core.errors import TransientError, UsageError
from market_data_core.events import EventBatch, Rejected, Tick, make_batch
from market_data_pipeline import MockProvider
from market_data_pipeline.providers.mock import FIRST_BAR
from mds_client.models import Bar

S = 10**9
ALL = Subscription()


def tick(symbol: str, seq: int = 0) -> Tick:
    return Tick(symbol, S, 1.0, 1.0, seq)


async def some(stream: Any, count: int) -> list[Any]:
    found: list[Any] = []
    async with aclosing(stream):
        while len(found) < count:
            found.append(await anext(stream))
    return found


async def test_it_plays_its_script_of_what_was_asked_for() -> None:
    batch = make_batch("p", ["A", "B", "A"], [S] * 3, [1, 2, 3], [1.0] * 3, [1.0] * 3)
    rejected, away = Rejected("malformed", "half of it", b"{"), FeedState("away")
    script: list[Item] = [tick("A"), tick("B"), batch, rejected, away]
    provider: LiveProvider = MockProvider(items=script)
    assert [item async for item in provider.stream(ALL)] == script
    items = [item async for item in MockProvider(items=script).stream(Subscription(("a",)))]
    chosen = items.pop(1)
    assert items == [tick("A"), rejected, away]
    assert isinstance(chosen, EventBatch)
    assert chosen.seq.tolist() == [1, 3]
    other = MockProvider(items=script[:3]).stream(Subscription(("C",)))
    assert [item async for item in other] == []


async def test_it_breaks_and_goes_on_where_it_stood() -> None:
    script = [tick("A", n) for n in range(5)]
    mock = MockProvider("m", items=script, fail_after=2)
    found: list[Any] = []

    async def read() -> None:
        async for item in mock.stream(ALL):
            found.append(item)

    for _ in range(2):
        with pytest.raises(TransientError, match="m: broken after 2 items"):
            await read()
    found += [item async for item in mock.stream(ALL)]
    assert found == script


async def test_it_keeps_its_rate() -> None:
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    mock = MockProvider(items=[tick("A")] * 3, rate=4.0, sleep=sleep)
    assert len([item async for item in mock.stream(ALL)]) == 3
    assert naps == [0.25] * 3


async def test_it_invents_trades_of_the_present() -> None:
    clock = ManualClock(S)
    mock = MockProvider(symbols=("A", "B"), clock=clock, limit_s=2.0)
    items = [mock.stream(ALL)]
    found = await some(items[0], 3)
    assert [(t.symbol, t.seq, t.src_ts) for t in found] == [("A", 1, S), ("B", 2, S), ("A", 3, S)]
    asked = await some(mock.stream(Subscription(("x",))), 2)
    assert [(t.symbol, t.seq) for t in asked] == [("X", 4), ("X", 5)]  # no identity comes twice
    last = []
    async for item in mock.stream(ALL):
        last.append(item)
        clock.advance(S)
    assert len(last) == 2


async def test_it_invents_bars_minute_by_minute() -> None:
    provider: BarProvider[Bar] = MockProvider("m")
    bars: list[Bar] = await some(provider.stream_bars(["a", "b"]), 6)
    assert [(b.symbol, b.ts) for b in bars] == [
        (symbol, FIRST_BAR + timedelta(minutes=n)) for n in range(3) for symbol in ("A", "B")
    ]
    assert {(b.provider, b.interval) for b in bars} == {("m", "1m")}
    assert all(one.close == two.open for one, two in pairwise(bars[::2]))


async def test_it_plays_bars() -> None:
    bars = [Bar(symbol=s, open=1, high=1, low=1, close=1, volume=1) for s in "ABA"]
    assert [b async for b in MockProvider(bars=bars).stream_bars()] == bars
    assert [b async for b in MockProvider(bars=bars).stream_bars(["A"])] == [bars[0], bars[2]]


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"fail_after": 0}, {"limit_s": -1}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give a number above 0"):
        MockProvider(**wrong)


async def test_it_can_be_configured() -> None:
    backend = registry.backend("provider", "mock")
    settings = load_config(overrides={"producers.mock.symbols": ["qqq"]}).producer("mock")
    mock = backend.create(settings, limit_s=None)
    assert mock.name == "mock"
    assert [t.symbol for t in await some(mock.stream(ALL), 1)] == ["QQQ"]
