"""Trades of an invented market: the real thing's shape without its price.

Prices follow a geometric Brownian motion per symbol (Black and Scholes 1973), trades arrive as a
Poisson process, sizes are lognormal. On request events are disordered, doubled, late or malformed.

Everything is drawn in blocks of event time whose length follows from the settings alone, so that a
seed gives the same events in the same order at every speed. The switches draw from a generator of
their own: turning one on adds, delays or doubles, and leaves the trades as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from market_data_core.clock import Clock, SystemClock
from market_data_core.config import ProducerSettings, Symbol, check_distinct
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import (
    REASONS,
    SRC_TS_MAX,
    EventBatch,
    Rejected,
    StreamEvent,
    code_dtype,
    parse_ts,
)
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.registry import Backend
from market_data_core.scaled import MANTISSA_LIMIT, Scaled

DEFAULT_START = "2025-01-02T00:00:00Z"
DAY_NS = 86_400 * NS_PER_S
_BLOCK_EVENTS = 16_384
_BLOCK_NS_MIN, _BLOCK_NS_MAX = 10 * NS_PER_MS, 3_600 * NS_PER_S
_SLICE_S = 0.005  # live events wait at most this long for company
_NAP_S_MAX = 1.0  # so that a wall clock set forward is noticed

_ROW = np.dtype(
    [
        ("arrival", np.int64),  # event time at which the wire brings it, UTC ns
        ("src_ts", np.int64),
        ("seq", np.int64),
        ("ticks", np.int64),  # price in tick sizes
        ("lots", np.int64),  # size in lots
        ("code", np.uint32),
        ("flaw", np.uint8),  # 0: sound, else 1 + index into _FLAWS
    ],
    align=True,
)
Rows = NDArray[Any]


def _check_start(text: str) -> str:
    try:
        _ = text and parse_ts(text)
    except RejectedError as error:
        msg = f"{error}; write it like {DEFAULT_START}"
        raise ValueError(msg) from error
    return text


def _check_speed(value: Any) -> Any:
    try:
        possible = value == "max" or 0 < float(value) <= 1_000_000
    except (TypeError, ValueError):
        possible = False
    if possible:
        return value
    msg = f"{value!r} is neither a number above 0, at most 1000000, nor 'max'"
    raise ValueError(msg)


Share = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[Decimal, Field(gt=0, le=10_000, decimal_places=8)]


class SyntheticSettings(ProducerSettings):
    """Settings of the synthetic market."""

    symbols: Annotated[tuple[Symbol, ...], AfterValidator(check_distinct)] = Field(
        default=("SPY", "AAPL", "MSFT"), min_length=1, description="Symbols to invent trades for."
    )
    tick_rate: float = Field(
        default=1.0, gt=0, le=1_000_000, description="Mean number of trades per second and symbol."
    )
    price_volatility: float = Field(
        default=0.02, ge=0, le=10, description="Standard deviation of the 24-hour log return."
    )
    start_price: float = Field(
        default=100.0, gt=0, le=1_000_000, description="First price of every symbol."
    )
    tick_size: Step = Field(
        default=Decimal("0.01"), description="Prices are multiples of it, and at least one of it."
    )
    lot_size: Step = Field(default=Decimal(1), description="Sizes are multiples of it.")
    lots_median: float = Field(
        default=100.0, ge=1, le=1_000_000, description="Median size of a trade, in lots."
    )
    lots_sigma: float = Field(
        default=1.0, ge=0, le=4, description="Standard deviation of a size's logarithm."
    )
    seed: int = Field(default=0, ge=0, description="Equal seeds and settings give equal events.")
    speed: Annotated[float | Literal["max"], BeforeValidator(_check_speed)] = Field(
        default=1.0, description="Event seconds per wall-clock second, or `max`: without waiting."
    )
    start: Annotated[str, AfterValidator(_check_start)] = Field(
        default="",
        description=f"Event time of the opening. Empty: now at speed 1, else {DEFAULT_START}.",
    )
    disorder: Share = Field(default=0.0, description="Share of trades that arrive out of order.")
    disorder_ms: int = Field(
        default=300, ge=1, le=3_600_000, description="Longest delay of these and of copies, in ms."
    )
    duplicates: Share = Field(
        default=0.0, description="Share of trades whose copy follows within disorder_ms."
    )
    late: Share = Field(
        default=0.0, description="Share of trades that arrive late_ms after their time."
    )
    late_ms: int = Field(
        default=20_000,
        ge=1,
        le=86_400_000,
        description="Delay of a late trade, in milliseconds of event time. To be dead-lettered it "
        "has to exceed allow_late_ms + revise_horizon_ms + the base window.",
    )
    malformed: Share = Field(
        default=0.0,
        description="Broken messages per trade: a NaN price, a negative size, or half a message.",
    )

    @model_validator(mode="after")
    def _check_shares(self) -> SyntheticSettings:
        if self.disorder + self.late > 1:
            msg = f"disorder ({self.disorder}) and late ({self.late}) must not exceed 1 together"
            raise ValueError(msg)
        return self


class _Grid:
    """Multiples of a decimal step, as exact columns."""

    def __init__(self, step: Decimal) -> None:
        self._scale = max(0, -int(step.as_tuple().exponent))
        self._unit = int(step.scaleb(self._scale))
        self._steps_max = (MANTISSA_LIMIT - 1) // self._unit
        self.step = float(step)

    def round(self, steps: NDArray[np.float64]) -> NDArray[np.int64]:
        """Whole steps, at least one."""
        return np.clip(np.rint(steps), 1, self._steps_max).astype(np.int64)

    def column(self, steps: NDArray[np.int64]) -> Scaled:
        """The values of so many steps."""
        return Scaled(steps * self._unit, self._scale)


class _Market:
    """The trades, block after block; holds each symbol's last price, time and number."""

    def __init__(self, settings: SyntheticSettings, symbols: int, start_ns: int) -> None:
        self._settings = settings
        self._symbols = symbols
        self._random = _generator(settings.seed, 0)
        rate = settings.tick_rate * symbols
        block_ns = int(_BLOCK_EVENTS / rate * NS_PER_S)
        self._block_ns = min(max(block_ns, _BLOCK_NS_MIN), _BLOCK_NS_MAX)
        self._mean = rate * self._block_ns / NS_PER_S
        self._log_price = np.full(symbols, np.log(settings.start_price))
        self._last_ts = np.full(symbols, start_ns)
        self._last_seq = np.zeros(symbols, np.int64)
        self.prices = _Grid(settings.tick_size)
        self.sizes = _Grid(settings.lot_size)
        self.now_ns = start_ns

    def block(self) -> Rows:
        """All trades of the next block, by symbol and time; `now_ns` moves to its end."""
        random = self._random
        n = int(random.poisson(self._mean))
        # given their number, the times of a Poisson process are uniform
        drawn = random.integers(0, self._symbols, n) * self._block_ns
        drawn += random.integers(0, self._block_ns, n)
        drawn.sort()
        code, offset = np.divmod(drawn, self._block_ns)
        normal, size = random.standard_normal(n), random.standard_normal(n)
        rows = np.zeros(n, _ROW)
        rows["code"] = code
        rows["src_ts"] = rows["arrival"] = self.now_ns + offset
        self.now_ns += self._block_ns
        if n:
            self._walk(rows, code, normal)
        lots = self._settings.lots_median * np.exp(self._settings.lots_sigma * size)
        rows["lots"] = self.sizes.round(lots)
        return rows

    def _walk(self, rows: Rows, code: NDArray[np.int64], normal: NDArray[np.float64]) -> None:
        """Number and price the trades of each symbol, from where its last block ended."""
        n = len(rows)
        first = np.concatenate(([0], np.flatnonzero(code[1:] != code[:-1]) + 1))
        length = np.diff(first, append=n)
        last = first + length - 1
        symbol = code[first]
        ts = rows["src_ts"]
        before = np.empty(n, np.int64)
        before[1:] = ts[:-1]
        before[first] = self._last_ts[symbol]
        days = (ts - before) / DAY_NS
        sigma = self._settings.price_volatility
        # Itô: less half the variance, so that the expected price stays where it is
        steps = sigma * np.sqrt(days) * normal - sigma * sigma / 2 * days
        path = np.cumsum(steps)
        path += np.repeat(self._log_price[symbol] - (path[first] - steps[first]), length)
        seq = np.arange(1, n + 1) + np.repeat(self._last_seq[symbol] - first, length)

        self._last_ts[symbol], self._log_price[symbol] = ts[last], path[last]
        self._last_seq[symbol] = seq[last]
        rows["seq"] = seq
        with np.errstate(over="ignore"):  # a price without bounds is capped by the grid
            rows["ticks"] = self.prices.round(np.exp(path) / self.prices.step)


class _Wire:
    """What goes wrong between the market and us."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self._settings = settings
        self._random = _generator(settings.seed, 1)

    def carry(self, trades: Rows) -> Rows:
        """`trades` with their times of arrival, then copies, then broken messages."""
        s, random = self._settings, self._random
        if s.late or s.disorder:
            luck = random.random(len(trades))
            disordered = (luck >= s.late) & (luck < s.late + s.disorder)
            trades["arrival"][luck < s.late] += s.late_ms * NS_PER_MS
            trades["arrival"][disordered] += self._delays(int(disordered.sum()))
        parts = [trades]
        if s.duplicates:
            copies = trades[random.random(len(trades)) < s.duplicates]
            copies["arrival"] += self._delays(len(copies))
            parts.append(copies)
        if s.malformed:
            broken = trades[random.random(len(trades)) < s.malformed]
            broken["flaw"] = random.integers(1, len(_FLAWS) + 1, len(broken))
            parts.append(broken)
        return np.concatenate(parts) if len(parts) > 1 else trades

    def _delays(self, n: int) -> NDArray[np.int64]:
        return self._random.integers(1, self._settings.disorder_ms * NS_PER_MS + 1, n)


class SyntheticProvider:
    """A feed of invented trades.

    Args:
        settings: what to invent.
        clock: tells the wall clock's time.
        limit_s: event seconds after which the feed ends; what is still delayed then comes at once.
        sleep: waits for so many seconds.

    Raises:
        UsageError: `limit_s` is not positive.
    """

    def __init__(
        self,
        settings: SyntheticSettings,
        *,
        clock: Clock | None = None,
        limit_s: float | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if limit_s is not None and not limit_s > 0:
            msg = f"a feed cannot run for {limit_s} seconds; give a positive time"
            raise UsageError(msg)
        self.name = settings.name or BACKEND.name
        self._settings = settings
        self._clock = clock or SystemClock()
        self._limit_s = limit_s
        self._sleep = sleep

    async def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        """Yield batches of trades, and broken messages as they would have come.

        Any symbol can be asked for; the settings' are the default. Ends only after `limit_s`, at
        the end of the year 2199, or when closed.
        """
        asked_for = dict.fromkeys(s.upper() for s in subscription.symbols)
        symbols = tuple(asked_for) or self._settings.symbols
        start_wall = self._clock.now_ns()
        start = self._start_ns(start_wall)
        end = SRC_TS_MAX
        if self._limit_s is not None:
            end = min(end, start + round(self._limit_s * NS_PER_S))
        market, wire = _Market(self._settings, len(symbols), start), _Wire(self._settings)
        delayed = np.zeros(0, _ROW)
        while market.now_ns < end:
            rows = wire.carry(market.block())
            rows = np.concatenate((delayed, rows[rows["src_ts"] < end]))
            due = (rows["arrival"] < market.now_ns) | (market.now_ns >= end)
            delayed, rows = rows[~due], rows[due]
            rows = rows[np.argsort(rows["arrival"], kind="stable")]
            rows["arrival"] = np.minimum(rows["arrival"], end)
            async with aclosing(self._paced(rows, start, start_wall)) as parts:
                async for part in parts:
                    for item in self._items(part, symbols, market):
                        yield item

    def _start_ns(self, wall_ns: int) -> int:
        if self._settings.start:
            return parse_ts(self._settings.start)
        return wall_ns if self._settings.speed == 1 else parse_ts(DEFAULT_START)

    async def _paced(self, rows: Rows, start: int, start_wall: int) -> AsyncGenerator[Rows]:
        """`rows` when their time has come: all at once at speed max, else in slices."""
        speed = self._settings.speed
        if speed == "max":
            yield rows
            await self._sleep(0)
            return
        done = 0
        arrival = np.ascontiguousarray(rows["arrival"])
        while done < len(rows):
            now = start + int((self._clock.now_ns() - start_wall) * speed)
            ready = int(np.searchsorted(arrival, now, "right"))
            if ready > done:
                yield rows[done:ready]
                done = ready
            if done < len(rows):
                wait_s = (int(arrival[done]) - now) / speed / NS_PER_S
                await self._sleep(min(max(wait_s, _SLICE_S), _NAP_S_MAX))
        await self._sleep(0)  # a quiet market's empty blocks must not starve the event loop

    def _items(self, rows: Rows, symbols: tuple[str, ...], market: _Market) -> Iterator[Item]:
        flawed = rows["flaw"] > 0
        sound, broken = (rows[~flawed], rows[flawed]) if flawed.any() else (rows, rows[:0])
        if len(sound):
            yield self._batch(sound, symbols, market)
        events = self._batch(broken, symbols, market).events()
        for flaw, event in zip(broken["flaw"].tolist(), events, strict=True):
            reason, spoil = _FLAWS[flaw - 1]
            sent = msgspec.structs.replace(event, ingest_ts=None)
            yield Rejected(reason, REASONS[reason], spoil(sent), self.name)

    def _batch(self, rows: Rows, symbols: tuple[str, ...], market: _Market) -> EventBatch:
        return EventBatch(
            provider=self.name,
            kind="tick",
            interval="1s",
            symbols=symbols,
            codes=rows["code"].astype(code_dtype(len(symbols))),
            src_ts=np.ascontiguousarray(rows["src_ts"]),
            seq=np.ascontiguousarray(rows["seq"]),
            ingest_ts=np.full(len(rows), self._clock.now_ns()),
            close=market.prices.column(rows["ticks"]),
            volume=market.sizes.column(rows["lots"]),
        )


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))))


def _not_a_number(event: StreamEvent) -> bytes:
    # JSON has no NaN, msgpack does
    return msgspec.msgpack.encode(msgspec.structs.replace(event, c=float("nan")))


def _cut_off(event: StreamEvent) -> bytes:
    text = msgspec.json.encode(event)
    return text[: len(text) // 2]


def _negative_size(event: StreamEvent) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(event, v=-event.v))


_FLAWS: tuple[tuple[str, Callable[[StreamEvent], bytes]], ...] = (
    ("not_finite", _not_a_number),
    ("malformed", _cut_off),
    ("negative", _negative_size),
)

BACKEND = Backend(
    "synthetic",
    "Invented trades: geometric Brownian motion, Poisson arrivals, any speed, with faults.",
    SyntheticSettings,
    SyntheticProvider,
)
