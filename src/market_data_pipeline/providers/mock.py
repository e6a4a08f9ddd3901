"""A mock: plays a script of events or bars, for tests and examples. No market is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from market_data_core.clock import Clock, SystemClock
from market_data_core.config import ProducerSettings, Symbol, check_distinct
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.errors import TransientError, UsageError
from market_data_core.events import EventBatch, Tick
from market_data_core.intervals import NS_PER_S
from market_data_core.registry import Backend
from mds_client.models import Bar

FIRST_BAR = datetime(2025, 1, 2, tzinfo=UTC)
"""Time of the first invented bar; the others follow minute by minute."""

_PRICES = (100.0, 100.5, 101.0, 100.5)


class MockSettings(ProducerSettings):
    """Settings of the mock."""

    symbols: Annotated[tuple[Symbol, ...], AfterValidator(check_distinct)] = Field(
        default=("SPY",), min_length=1, description="Symbols to play trades of."
    )
    rate: float = Field(
        default=10.0, gt=0, le=1_000_000, description="Trades per second, of all symbols together."
    )


class MockProvider:
    """A mock of a vendor: what it yields is scripted, and it breaks when it is told to.

    The script goes on where it stood when a stream is begun again, as a vendor's market does.
    Without a script it invents one that never ends: trades and one-minute bars of the symbols that
    are asked for, in turns, at four prices around 100.

    Args:
        name: the provider name that its events bear.
        items: what :meth:`stream` yields; None for invented trades of the present time.
        bars: what :meth:`stream_bars` yields; None for invented ones.
        symbols: invented where none are asked for.
        rate: items per second; None for as fast as they are taken.
        fail_after: raise TransientError after every so many items.
        limit_s: seconds after which invented trades end; None for never.
        clock: tells the time of invented trades.
        sleep: waits for so many seconds.

    Raises:
        UsageError: `rate` or `fail_after` is not positive.
    """

    def __init__(
        self,
        name: str = "mock",
        items: Iterable[Item] | None = None,
        bars: Iterable[Bar] | None = None,
        *,
        symbols: Sequence[str] = ("SPY",),
        rate: float | None = None,
        fail_after: int | None = None,
        limit_s: float | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        for what, value in (("rate", rate), ("fail_after", fail_after), ("limit_s", limit_s)):
            if value is not None and not value > 0:
                msg = f"{what} is {value}; give a number above 0, or None"
                raise UsageError(msg)
        self.name = name
        self._items = None if items is None else iter(items)
        self._bars = None if bars is None else iter(bars)
        self._symbols = tuple(symbols)
        self._pause_s = 1 / rate if rate else 0.0
        self._fail_after, self._limit_s = fail_after, limit_s
        self._clock, self._sleep = clock or SystemClock(), sleep
        self._invented = 0

    async def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        """Yield the script's items, of the symbols that are asked for; ends with it.

        Raises:
            TransientError: `fail_after` items were yielded.
        """
        wanted = tuple(s.upper() for s in subscription.symbols)
        script = self._items
        if script is None:
            script = self._ticks(wanted or self._symbols)
        done = 0
        for item in script:
            chosen = _of_symbols(item, wanted)
            if chosen is None:
                continue
            yield chosen
            done += 1
            await self._after(done)

    async def stream_bars(self, symbols: Sequence[str] = ()) -> AsyncIterator[Bar]:
        """Yield the script's bars of `symbols`, of all if there are none; ends with it.

        Raises:
            TransientError: `fail_after` bars were yielded.
        """
        wanted = tuple(s.upper() for s in symbols)
        script = self._bars
        if script is None:
            script = self._minutes(wanted or self._symbols)
        done = 0
        for bar in script:
            if wanted and bar.symbol not in wanted:
                continue
            yield bar
            done += 1
            await self._after(done)

    async def _after(self, done: int) -> None:
        """What happens once so many items have been taken."""
        if self._fail_after and done >= self._fail_after:
            msg = f"{self.name}: broken after {done} items, as it was told to"
            raise TransientError(msg)
        await self._sleep(self._pause_s)  # at any rate: others want to go on too

    def _ticks(self, symbols: tuple[str, ...]) -> Iterator[Tick]:
        start = self._clock.now_ns()
        while self._limit_s is None or self._clock.now_ns() < start + self._limit_s * NS_PER_S:
            self._invented += 1
            turn, number = divmod(self._invented - 1, len(symbols))
            price = _PRICES[turn % len(_PRICES)]
            yield Tick(symbols[number], self._clock.now_ns(), price, 1.0, self._invented)

    def _minutes(self, symbols: tuple[str, ...]) -> Iterator[Bar]:
        while True:
            turn, number = divmod(self._invented, len(symbols))
            self._invented += 1
            first, last = _PRICES[turn % len(_PRICES)], _PRICES[(turn + 1) % len(_PRICES)]
            yield Bar(
                provider=self.name,
                symbol=symbols[number],
                ts=FIRST_BAR + timedelta(minutes=turn),
                open=first,
                high=max(first, last),
                low=min(first, last),
                close=last,
                volume=1.0,
            )


def _of_symbols(item: Item, wanted: tuple[str, ...]) -> Item | None:
    """What of the item is of the `wanted` symbols; None if nothing."""
    if not wanted:
        return item
    if isinstance(item, Tick):
        return item if item.symbol in wanted else None
    if isinstance(item, EventBatch):
        mask = np.array([symbol in wanted for symbol in item.symbols], bool)[item.codes]
        return item.take(mask) if mask.any() else None
    return item


def _open(settings: MockSettings, *, limit_s: float | None = None) -> MockProvider:
    return MockProvider(
        settings.name or BACKEND.name,
        symbols=settings.symbols,
        rate=settings.rate,
        limit_s=limit_s,
    )


BACKEND = Backend("mock", "A script for tests and examples; no market.", MockSettings, _open)
