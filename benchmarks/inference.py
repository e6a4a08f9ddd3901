"""Features, rules and models over many symbols, beside what is written per symbol; and the way on.

One bar of each of 10,000 symbols arrives, and twelve features of all of them are worked out, on one
core. Beside it: plain Python that goes over a window for each symbol, plain Python with running
sums (whose last bits depend on history), TA-Lib and river called for each symbol. These work out
fewer or other features, said in the remarks, so that the ratios count symbols' features a second.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import per_symbol
from benchmarks.contender import Contender, Figure, Result
from benchmarks.ours import LIVE_S, Batches, answer_of, p99, settings_in
from benchmarks.per_symbol import DEEP, median_ms
from market_data_core.bars import BarBatch
from market_data_core.clock import SystemClock
from market_data_core.config import BAR_COLUMNS, FeaturesSettings
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.events import EventBatch, Tick
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_pipeline.allocator import tune_memory
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.history import History
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.flow import Flow
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.signals.assembly import evaluator_of
from market_data_pipeline.signals.rows import Needs, SelectedRows

SYMBOLS = 10_000
FEATURES = (
    "vwap_1m", "ret_30s", "vol_5m", "volatility", "rsi", "momentum", "skewness", "kurtosis", "sma",
    "ema", "zscore", "atr",
)  # fmt: skip
_INTERVAL_NS = 2 * NS_PER_S
_START_NS = 1_761_314_400 * NS_PER_S
_WARM = 170


class _Market:
    """Bars of all symbols, one time after the other."""

    def __init__(self, symbols: int) -> None:
        self.names = tuple(f"S{i:05}" for i in range(symbols))
        self._random = np.random.default_rng(1)
        self._close = np.full(symbols, 100.0)
        self._number = 0

    def next(self) -> BarBatch:
        n = len(self.names)
        open_ = self._close
        self._close = close = open_ * (1 + self._random.normal(0, 2e-4, n))
        high, low = np.maximum(open_, close) * 1.0001, np.minimum(open_, close) * 0.9999
        ts = np.full(n, _START_NS + self._number * _INTERVAL_NS)
        self._number += 1
        volume = self._random.integers(1, 500, n).astype(np.float64)
        count = np.full(n, 3, np.int64)
        codes = np.arange(n, dtype=np.uint32)
        return BarBatch(
            "bench", "2s", "final", self.names, codes, ts, open_, high, low, close, volume,
            (high + low) / 2, count,
        )  # fmt: skip


def _history(market: _Market, needs: Needs) -> History:
    history = History(_INTERVAL_NS, needs.depths, 0)
    history.load(market.names, Panel.empty(_INTERVAL_NS))
    for _ in range(_WARM):
        for _put in history.put(market.next()):
            pass
    return history


def _rules() -> str:
    """Fifty conditions of the usual kinds."""
    kinds = (
        "momentum > 0.00{i}",
        "rsi > {i} and volatility < 0.{i}",
        "cross_up(close, vwap_1m) and zscore < {i}",
        "not (ret_30s < -0.00{i}) or close / sma > 1.0{i}",
        "abs(zscore) > 2 and volume > {i}0",
    )
    return "\n".join(
        f"- {{name: r{i}, condition: '{kinds[i % 5].format(i=i + 10)}', signal: 1}}"
        for i in range(50)
    )


def features() -> list[Figure]:
    """One bar of every symbol: rings and twelve features; fifty rules; a forest of a hundred."""
    tune_memory()  # as every long-running command does
    known = catalog(FeaturesSettings(), _INTERVAL_NS)
    rules = RulesAdapter.of_text(_rules(), "rules", {*known, *BAR_COLUMNS}, "2s", ["2s"])
    backs = {name: 1 if name in rules.columns("2s") else 0 for name in FEATURES}
    needs = Needs.of(known, {**backs, **rules.columns("2s")}, _INTERVAL_NS)
    only = Needs({name: known[name] for name in FEATURES}, dict.fromkeys(FEATURES, 0), needs.depths)
    market = _Market(SYMBOLS)
    history = _history(market, needs)
    rows: list[SelectedRows] = []

    def update() -> None:
        for put in history.put(market.next()):
            rows[:] = [SelectedRows("bench", put.selection, only)]
            rows[0].compute()

    update_ms = median_ms(update)
    put = list(history.put(market.next()))[-1]
    seen = SelectedRows("bench", put.selection, needs)
    rules.evaluate(seen)  # its columns are there now: only the conditions are measured
    rules_ms = median_ms(lambda: rules.evaluate(seen))
    others = per_symbol.rates()
    ours = SYMBOLS * len(FEATURES) / update_ms * 1e3
    plain = History(_INTERVAL_NS, _ordinary().depths, 0)
    plain.load(market.names, Panel.empty(_INTERVAL_NS))
    minutes = DEEP * _INTERVAL_NS / (60 * NS_PER_S)
    return [
        Figure(f"{SYMBOLS:,} symbols x {len(FEATURES)} features", update_ms, "ms", "<= 20"),
        Figure("50 rules on them", rules_ms, "ms", "<= 10"),
        Figure("a forest of 100 trees on them", _forest_ms(), "ms", "<= 150"),
        Figure("ours", ours / 1e6, "M features/s"),
        *(
            Figure(f"ours ÷ {name}", ours / rate, "times", bound)
            for name, (rate, bound) in others.items()
        ),
        Figure(
            "memory for each symbol and minute of look-back, ordinary configuration",
            plain.nbytes / SYMBOLS / minutes, "bytes", "<= 1024",
        ),
    ]  # fmt: skip


def _ordinary() -> Needs:
    """What the configured windows and the shipped rules look at."""
    known = catalog(FeaturesSettings(), _INTERVAL_NS)
    names = ("vwap_1m", "ret_30s", "vol_5m", "momentum", "volatility", "rsi")
    return Needs.of(known, dict.fromkeys(names, 0), _INTERVAL_NS)


def _forest_ms() -> float:
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(2)
    x, y = random.normal(size=(4_000, 12)), random.integers(0, 3, 4_000)
    forest = RandomForestClassifier(100, max_depth=8, n_jobs=1, random_state=0).fit(x, y)
    rows = random.normal(size=(SYMBOLS, 12))
    return median_ms(lambda: forest.predict_proba(rows), 5)


async def _with_signals(batches: Sequence[EventBatch]) -> Result:
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        settings = settings_in(folder)
        evaluator = evaluator_of(settings)
        async with open_backends(settings) as backends:
            flow = Flow(settings, backends)
            began = time.perf_counter()
            summary = await flow.record(Batches(batches), asyncio.Event(), evaluator=evaluator)
            spent = time.perf_counter() - began
            frame = await backends.store.bars(interval="2s")
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
    return Result(spent, answer_of(frame.select(names).iter_rows(), summary.counts.deduplicated))


def whole_path(batches: Sequence[EventBatch]) -> Result:
    """Columns to stored signals: the six features of the ordinary configuration, its five rules."""
    tune_memory()
    return asyncio.run(_with_signals(batches))


class _Ticker:
    """Ten thousand ticks a second, spread over the symbols, as bars' delay is measured with."""

    name = "bench"

    def __init__(self, symbols: int, seconds: float) -> None:
        self._names = [f"S{i:03}" for i in range(symbols)]
        self._seconds = seconds

    async def stream(self, _: Subscription) -> AsyncIterator[Item]:
        random = np.random.default_rng(4)
        end = time.monotonic() + self._seconds
        seq = 0
        while time.monotonic() < end:
            steps = random.normal(size=len(self._names)).round(2).tolist()
            for name, step in zip(self._names[seq % 10 :: 10], steps, strict=False):
                yield Tick(name, time.time_ns(), 100 + step, 1.0, seq)
            seq += 1
            await asyncio.sleep(0.005)


async def _latency() -> list[tuple[int, float]]:
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        rules = Path(folder) / "rules.yaml"
        rules.write_text("- {name: all, condition: 'close > 0', signal: 1}")
        settings = settings_in(folder, **{"inference.adapters.rules.file": str(rules)})
        async with open_backends(settings) as backends:
            done: list[tuple[int, float]] = []
            store = _Noting(backends.store, done)
            flow = Flow(settings, Backends(backends.bus, store, SystemClock()))
            feed = _Ticker(500, LIVE_S)
            evaluator = evaluator_of(settings)
            await flow.live({"bench": feed}, (), asyncio.Event(), evaluator)
    return done


class _Noting:
    """A store that notes how long after its window's end and the lateness a signal is stored."""

    def __init__(self, inner: Any, delays: list[tuple[int, float]]) -> None:
        self._inner, self._delays = inner, delays

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, groups: Any, *rest: Any) -> Any:
        result = await self._inner.commit(groups, *rest)
        now = time.time_ns() - 500 * NS_PER_MS
        self._delays += [(s.ts, float(now - s.ts)) for g in groups for s in g.signals]
        return result


def latency() -> list[Figure]:
    """From a window's end and the allowed lateness to the stored signal, live, 500 symbols."""
    tune_memory()
    found = asyncio.run(_latency())
    first = min(ts for ts, _ in found)  # when every symbol is new
    delays = [delay for ts, delay in found if ts > first]
    name = f"window end + lateness to stored signal, p99 of {len(delays):,}"
    return [Figure(name, p99(delays), "ms", "<= 60")]


CONTENDERS = (
    Contender("features", "inference", lambda _: features(), cores=1, rounds_max=1, ours=True),
    Contender("signal-latency", "inference", lambda _: latency(), rounds_max=1, ours=True),
    Contender(
        "river",
        "inference",
        lambda _: per_symbol.river(),
        cores=1,
        requires=("river",),
        optional=True,
        rounds_max=1,
    ),
    Contender(
        "ours-columns-signals",
        "columns",
        whole_path,
        lambda cache: cache.load().batches(),
        ours=True,
        remark="durable, SQLite synchronous=NORMAL, with 6 features and 5 rules",
    ),
)
