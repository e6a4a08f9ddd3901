"""NautilusTrader's time bar aggregators, one per symbol, fed with ready trade ticks.

They neither order nor remove duplicates, so they are given clean ticks in time order, and are
driven by a test clock that moves only where a window ends. Their bars have no VWAP and no count.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

from benchmarks.contender import Contender, Result
from benchmarks.workload import SYMBOLS, TICK_SCALE, WINDOW_NS, Answer, Cache


def _ticks(cache: Cache) -> list[tuple[int, Any]]:
    """(symbol code, TradeTick) in time order, without duplicates."""
    from nautilus_trader.model.data import TradeTick
    from nautilus_trader.model.enums import AggressorSide
    from nautilus_trader.model.identifiers import TradeId
    from nautilus_trader.model.objects import Price, Quantity

    clean = cache.load().in_time_order()
    instruments = [_instrument(symbol) for symbol in SYMBOLS]
    power = 10**TICK_SCALE
    columns = (clean.code, clean.src_ts, clean.seq, clean.ticks, clean.lots)
    return [
        (
            code,
            TradeTick(
                instruments[code].id,
                Price(price / power, TICK_SCALE),
                Quantity(lots, 0),
                AggressorSide.BUYER,
                TradeId(str(seq)),
                ts,
                ts,
            ),
        )
        for code, ts, seq, price, lots in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _instrument(symbol: str) -> Any:
    from nautilus_trader.test_kit.providers import TestInstrumentProvider

    return TestInstrumentProvider.equity(symbol, "XNAS")


def _aggregators(bars: list[Any], clock: Any) -> list[Any]:
    from nautilus_trader.data.aggregation import TimeBarAggregator
    from nautilus_trader.model.data import BarSpecification, BarType
    from nautilus_trader.model.enums import AggregationSource, BarAggregation, PriceType

    seconds = WINDOW_NS // 10**9
    specification = BarSpecification(seconds, BarAggregation.SECOND, PriceType.LAST)
    return [
        TimeBarAggregator(
            instrument,
            BarType(instrument.id, specification, AggregationSource.INTERNAL),
            bars.append,
            clock,
            build_with_no_updates=False,
        )
        for instrument in map(_instrument, SYMBOLS)
    ]


def run(ticks: list[tuple[int, Any]]) -> Result:
    from nautilus_trader.common.component import TestClock

    clock = TestClock()
    due = ticks[0][1].ts_event // WINDOW_NS * WINDOW_NS
    clock.set_time(due)
    bars: list[Any] = []
    handlers = [aggregator.handle_trade_tick for aggregator in _aggregators(bars, clock)]

    started = perf_counter()
    for code, tick in ticks:
        if tick.ts_event >= due:
            due = _advance(clock, tick.ts_event)
        handlers[code](tick)
    _advance(clock, due)
    seconds = perf_counter() - started
    return Result(seconds, _answer(bars))


def _advance(clock: Any, to_ns: int) -> int:
    """Fire the timers of every window that ends by `to_ns`; returns the next end."""
    for event in clock.advance_time(to_ns):
        event.handle()
    return (to_ns // WINDOW_NS + 1) * WINDOW_NS


def _answer(bars: list[Any]) -> Answer:
    columns = {
        name: math.fsum(getattr(bar, name).as_double() for bar in bars)
        for name in ("open", "high", "low", "close", "volume")
    }
    return Answer(bars=len(bars), trades=None, duplicates=None, vwap=None, **columns)


CONTENDERS = (
    Contender(
        "nautilus",
        "engine",
        run,
        _ticks,
        cores=1,
        requires=("nautilus_trader",),
        optional=True,
        remark="ready objects, clean and in order; no VWAP, no count",
    ),
)
