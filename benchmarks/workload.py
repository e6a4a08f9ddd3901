"""The workload: made from a seed, the same for every contender.

Trades of 100 symbols (Zipf) over ten minutes of event time, in the order of their arrival. 5% are
delayed by up to 300 ms, 1% come twice. No row is delayed by more than 300 ms, copies included, so
that an allowed lateness of 500 ms loses nothing and every contender has to find the same bars.
One trade in ten bears the time of the symbol's trade before it, so that ``seq`` decides the order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.events import EventBatch
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.scaled import Scaled

if TYPE_CHECKING:
    import polars as pl

PROVIDER = "bench"
SYMBOLS = tuple(f"SYM{i:03d}" for i in range(100))
BATCH_ROWS = 5_000
WINDOW_NS = 2 * NS_PER_S
LATENESS_NS = 500 * NS_PER_MS
TICK_SCALE = 2
"""Prices are whole numbers of 10**-2."""

START_NS = 1_761_314_400 * NS_PER_S  # 2025-10-24 14:00 UTC
DURATION_US = 600_000_000
DELAY_MAX_US = 300_000
DAILY_VOLATILITY = 0.02
SESSION_S = 23_400.0
SEED = 20251024
FORMAT = 1  # part of the cached files' names: raise it when the generator changes
_RELATIVE_ERROR_MAX = 1e-11  # sums of floats in another order; one price tick in one bar is more


@dataclass(frozen=True, slots=True)
class Answer:
    """What a contender found, small enough to compare: counts and sums over all bars.

    Attributes:
        bars: number of (symbol, window) pairs with a trade.
        trades: trades in them, without duplicates; None where the contender's bars have no count.
        duplicates: rows removed; None where the contender does not remove any.
        open: sum of the bars' opens (likewise `high`, `low`, `close`, `volume` and `vwap`).
    """

    bars: int
    trades: int | None
    duplicates: int | None
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None

    def mismatch(self, expected: Answer) -> str:
        """What differs from `expected`, "" if nothing does; a None of ours is not compared."""
        differences = []
        for field in fields(self):
            got, want = getattr(self, field.name), getattr(expected, field.name)
            if got is not None and not math.isclose(got, want, rel_tol=_RELATIVE_ERROR_MAX):
                differences.append(f"{field.name} {got}, expected {want}")
        return "; ".join(differences)


@dataclass(frozen=True, slots=True)
class Workload:
    """Ticks in columns of shape (n,), in arrival order.

    Attributes:
        code: uint16, index into :data:`SYMBOLS`.
        src_ts: int64, UTC nanoseconds, whole microseconds.
        seq: int64, the symbol's trade id.
        arrival: int64, UTC nanoseconds, ascending.
        ticks: int64, price in units of 0.01.
        lots: int64, size.
    """

    code: NDArray[np.uint16]
    src_ts: NDArray[np.int64]
    seq: NDArray[np.int64]
    arrival: NDArray[np.int64]
    ticks: NDArray[np.int64]
    lots: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.code)

    def batches(self, rows: int = BATCH_ROWS) -> list[EventBatch]:
        """Event batches of `rows` rows (the last one shorter), exact decimals inside."""
        return [
            EventBatch(
                provider=PROVIDER,
                kind="tick",
                interval="1s",
                symbols=SYMBOLS,
                codes=self.code[at],
                src_ts=self.src_ts[at],
                seq=self.seq[at],
                ingest_ts=self.arrival[at],
                close=Scaled(self.ticks[at], TICK_SCALE),
                volume=Scaled(self.lots[at], 0),
            )
            for at in (slice(i, i + rows) for i in range(0, len(self), rows))
        ]

    def dicts(self) -> list[dict[str, Any]]:
        """One ready dict per tick: symbol, src_ts (ns), seq, price, size."""
        columns = (self.src_ts, self.seq, self.ticks / 10**TICK_SCALE, self.lots.astype(float))
        rows = zip(self.code.tolist(), *(column.tolist() for column in columns), strict=True)
        return [
            {"symbol": SYMBOLS[code], "src_ts": ts, "seq": seq, "price": price, "size": size}
            for code, ts, seq, price, size in rows
        ]

    def frame(self) -> pl.DataFrame:
        """The columns code, src_ts, seq, ticks and lots, in one chunk."""
        import polars as pl

        names = ("code", "src_ts", "seq", "ticks", "lots")
        return pl.DataFrame({name: getattr(self, name) for name in names}).rechunk()

    def lines(self) -> Iterator[bytes]:
        """Version-1 events as compact JSON, one line each, in the wire's full form."""
        encode = msgspec.json.Encoder().encode
        for batch in self.batches():
            for event in batch.events():
                yield encode(event) + b"\n"

    def in_time_order(self) -> Workload:
        """Without duplicates, by (src_ts, seq): for contenders that can do neither themselves."""
        order = np.lexsort((self.code, self.seq, self.src_ts))
        code, ts, seq = self.code[order], self.src_ts[order], self.seq[order]
        first = np.ones(len(order), bool)
        first[1:] = (code[1:] != code[:-1]) | (ts[1:] != ts[:-1]) | (seq[1:] != seq[:-1])
        return self._take(order[first])

    def _take(self, index: NDArray[Any]) -> Workload:
        return Workload(*(getattr(self, field.name)[index] for field in fields(self)))


def generate(events: int, seed: int = SEED) -> Workload:
    """`events` rows, of which 1% are second copies."""
    rng = np.random.default_rng(seed)
    copies = events // 100
    unique = events - copies
    weights = 1.0 / np.arange(1, len(SYMBOLS) + 1)
    code = rng.choice(len(SYMBOLS), unique, p=weights / weights.sum())
    order = np.argsort(code, kind="stable")  # by symbol, and by time within
    code = code[order]
    src_us = np.sort(rng.integers(0, DURATION_US, unique))[order]
    first = np.r_[True, code[1:] != code[:-1]]
    keeps_time = first | (rng.random(unique) >= 0.1)
    src_us = src_us[np.maximum.accumulate(np.where(keeps_time, np.arange(unique), 0))]
    starts = np.flatnonzero(first)[np.cumsum(first) - 1]
    seq = np.arange(unique) - starts + 1
    ticks = _prices(rng, code, src_us, starts)
    lots = np.minimum(rng.geometric(0.02, unique), 10_000)

    delay_us = np.where(rng.random(unique) < 0.05, rng.integers(1, DELAY_MAX_US, unique), 0)
    copied = rng.choice(unique, copies, replace=False)
    room = DELAY_MAX_US - delay_us[copied]
    copy_delay_us = delay_us[copied] + (rng.random(copies) * room).astype(np.int64)

    rows = np.r_[np.arange(unique), copied]
    arrival_us = src_us[rows] + np.r_[delay_us, copy_delay_us]
    arrived = np.argsort(arrival_us, kind="stable")
    rows = rows[arrived]
    return Workload(
        code=code[rows].astype(np.uint16),
        src_ts=START_NS + src_us[rows] * 1_000,
        seq=seq[rows],
        arrival=START_NS + arrival_us[arrived] * 1_000,
        ticks=ticks[rows],
        lots=lots[rows],
    )


def _prices(
    rng: np.random.Generator,
    code: NDArray[Any],
    src_us: NDArray[np.int64],
    starts: NDArray[np.intp],
) -> NDArray[np.int64]:
    """Geometric Brownian motion per symbol on a grid of 0.01."""
    seconds = np.maximum(np.diff(src_us, prepend=src_us[:1]), 0) / 1e6
    steps = DAILY_VOLATILITY * np.sqrt(seconds / SESSION_S) * rng.standard_normal(len(code))
    path = np.cumsum(steps)
    first_price = rng.uniform(20.0, 500.0, len(SYMBOLS))[code]
    prices = first_price * np.exp(path - path[starts])
    ticks: NDArray[np.int64] = np.rint(prices * 10**TICK_SCALE).astype(np.int64)
    return np.maximum(ticks, 1)


def expected_answer(workload: Workload) -> Answer:
    """The bars by one batch query over integers, which is exact whatever the order."""
    import polars as pl

    unique = workload.frame().unique(["code", "src_ts", "seq"], keep="any")
    by_time = pl.struct("src_ts", "seq")
    bars = unique.group_by("code", pl.col("src_ts") // WINDOW_NS).agg(
        open=pl.col("ticks").sort_by(by_time).first(),
        high=pl.col("ticks").max(),
        low=pl.col("ticks").min(),
        close=pl.col("ticks").sort_by(by_time).last(),
        volume=pl.col("lots").sum(),
        notional=(pl.col("ticks") * pl.col("lots")).sum(),
    )
    power = 10**TICK_SCALE
    return Answer(
        bars=len(bars),
        trades=len(unique),
        duplicates=len(workload) - len(unique),
        **{name: int(bars[name].sum()) / power for name in ("open", "high", "low", "close")},
        volume=float(bars["volume"].sum()),
        vwap=math.fsum(bars["notional"] / bars["volume"] / power),
    )


@dataclass(frozen=True, slots=True)
class Cache:
    """The workload's files for one number of events, written once.

    Attributes:
        directory: where they stand.
        events: number of rows.
    """

    directory: Path
    events: int

    def _path(self, suffix: str) -> Path:
        return self.directory / f"ticks-{self.events}-{SEED}-v{FORMAT}.{suffix}"

    @property
    def ndjson(self) -> Path:
        """The file of single version-1 events; written by :meth:`write_ndjson`."""
        return self._path("ndjson")

    def load(self) -> Workload:
        """The columns; made and written if they are not there."""
        path = self._path("npz")
        if not path.exists():
            workload = generate(self.events)
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"partial-{path.name}")
            np.savez(partial, **{f.name: getattr(workload, f.name) for f in fields(workload)})
            partial.replace(path)
        with np.load(path) as columns:
            return Workload(*(columns[field.name] for field in fields(Workload)))

    def answer(self) -> Answer:
        """The expected answer; computed and written if it is not there."""
        path = self._path("answer.json")
        if not path.exists():
            path.write_bytes(msgspec.json.encode(asdict(expected_answer(self.load()))))
        return msgspec.json.decode(path.read_bytes(), type=Answer)

    def write_ndjson(self) -> Path:
        """The NDJSON file's path; written if it is not there."""
        if not self.ndjson.exists():
            partial = self.ndjson.with_name(f"partial-{self.ndjson.name}")
            with partial.open("wb") as file:
                file.writelines(self.load().lines())
            partial.replace(self.ndjson)
        return self.ndjson
