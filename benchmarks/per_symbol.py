"""What is written symbol by symbol: plain Python, TA-Lib and river, in features a second."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np

from benchmarks.contender import Figure

DEEP = 150
"""Bars in five minutes."""
_FEW_SYMBOLS = 500
"""Enough to tell the rate of what is slow."""


def median_ms(work: Callable[[], Any], turns: int = 15) -> float:
    spent = []
    for _ in range(turns):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1e3


def rates() -> dict[str, tuple[float, str]]:
    """Features a second of what works symbol by symbol, and the bound of our ratio to it."""
    closes = 100 * np.cumprod(
        1 + np.random.default_rng(3).normal(0, 2e-4, (_FEW_SYMBOLS, DEEP)), axis=1
    )
    return {
        "plain Python over windows": (_windows_rate(closes), ">= 10"),
        "plain Python with running sums": (_running_rate(closes), ""),
        "TA-Lib per symbol": (_talib_rate(closes), ">= 5"),
    }


def _windows_rate(closes: Any) -> float:
    """Twelve features over deques, each from its window: what is easily written, and exact."""
    windows = [deque(row.tolist(), maxlen=DEEP) for row in closes]

    def update() -> None:
        for window in windows:
            window.append(window[-1] * 1.0001)
            _twelve(list(window))

    return len(windows) * 12 / median_ms(update, 3) * 1e3


def _twelve(close: list[float]) -> tuple[float, ...]:
    r = [log(b / a) for a, b in pairwise(close)]
    n = len(r)
    mean = sum(r) / n
    d2 = sum((x - mean) ** 2 for x in r)
    d3 = sum((x - mean) ** 3 for x in r)
    d4 = sum((x - mean) ** 4 for x in r)
    sd = sqrt(d2 / (n - 1))
    minute, twenty = close[-30:], close[-20:]
    sma = sum(twenty) / 20
    spread = sqrt(sum((x - sma) ** 2 for x in twenty) / 19) or 1.0
    ema = sma
    for x in twenty:
        ema += (x - ema) * 2 / 21
    up = down = range_ = 0.0
    for a, b in pairwise(close):
        up, down = (up * 13 + max(b - a, 0.0)) / 14, (down * 13 + max(a - b, 0.0)) / 14
        range_ = (range_ * 13 + abs(b - a)) / 14
    return (
        sum(minute) / 30, close[-1] / close[-16] - 1, sd, sd * 4000, 100 * up / (up + down or 1),
        close[-1] / minute[0] - 1, d3 / (n * sd**3 or 1), d4 / (n * sd**4 or 1) - 3, sma, ema,
        (close[-1] - sma) / spread, range_,
    )  # fmt: skip


class _Running:
    """The same by sums that are carried on; rounding adds up in them."""

    __slots__ = ("down", "ema", "last", "range", "returns", "s1", "s2", "s3", "s4", "up", "window")

    def __init__(self, close: list[float]) -> None:
        self.window, self.returns = deque(close, DEEP), deque[float]([0.0] * DEEP, DEEP)
        self.s1 = self.s2 = self.s3 = self.s4 = 0.0
        self.up = self.down = self.range = 0.0
        self.ema = self.last = close[-1]

    def add(self, close: float) -> tuple[float, ...]:
        r, old = close / self.last - 1, self.returns[0]
        self.returns.append(r)
        change, self.last = close - self.last, close
        self.window.append(close)
        r2, old2 = r * r, old * old
        self.s1 += r - old
        self.s2 += r2 - old2
        self.s3 += r2 * r - old2 * old
        self.s4 += r2 * r2 - old2 * old2
        self.up += (max(change, 0.0) - self.up) / 14
        self.down += (max(-change, 0.0) - self.down) / 14
        self.range += (abs(change) - self.range) / 14
        self.ema += (close - self.ema) * 2 / 21
        w = self.window
        variance = self.s2 / DEEP or 1e-30
        return (
            self.s1, close / w[-16] - 1, variance**0.5, variance**0.5 * 4000,
            100 * self.up / (self.up + self.down or 1), close / w[-31] - 1,
            self.s3 / variance**1.5, self.s4 / variance**2 - 3, self.ema, self.ema,
            close - self.ema, self.range,
        )  # fmt: skip


def _running_rate(closes: Any) -> float:
    states = [_Running(row.tolist()) for row in closes]
    prices = [float(row[-1]) for row in closes]

    def update() -> None:
        for state, price in zip(states, prices, strict=True):
            state.add(price)

    return len(states) * 12 / median_ms(update, 5) * 1e3


def _talib_rate(closes: Any) -> float:
    """Nine calls a symbol over the same window; TA-Lib has no skewness, kurtosis or VWAP."""
    import talib

    rows = [np.ascontiguousarray(row) for row in closes]
    high, low = closes * 1.0001, closes * 0.9999

    def update() -> None:
        for i, close in enumerate(rows):
            talib.RSI(close, 14)[-1]
            talib.SMA(close, 20)[-1]
            talib.EMA(close, 20)[-1]
            talib.ATR(high[i], low[i], close, 14)[-1]
            talib.ROCP(close, 15)[-1]
            talib.ROCP(close, 30)[-1]
            talib.STDDEV(close, 150)[-1]
            talib.STDDEV(close, 20)[-1]
            talib.VAR(close, 150)[-1]

    return len(rows) * 9 / median_ms(update, 3) * 1e3


def river() -> list[Figure]:
    """River's rolling statistics, fed symbol by symbol: six a symbol."""
    from river import stats, utils

    made = [
        [
            utils.Rolling(stats.Mean(), 20), utils.Rolling(stats.Var(), DEEP),
            utils.Rolling(stats.Mean(), 30), utils.Rolling(stats.Var(), 20),
            stats.EWMean(2 / 21), stats.EWMean(1 / 14),
        ]
        for _ in range(_FEW_SYMBOLS)
    ]  # fmt: skip

    def update() -> None:
        for some in made:
            for one in some:
                one.update(100.25)
                one.get()

    for _ in range(DEEP):
        update()
    rate = _FEW_SYMBOLS * 6 / median_ms(update, 5) * 1e3
    return [Figure("river, rolling statistics", rate / 1e6, "M features/s")]
