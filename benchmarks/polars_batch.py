"""One batch query in polars over all ticks at once; nothing is durable, nothing is a stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import polars as pl

from benchmarks.contender import Contender, Result
from benchmarks.workload import TICK_SCALE, WINDOW_NS, Answer, Cache

_WIRE = {
    "symbol": pl.String,
    "src_ts": pl.String,
    "seq": pl.Int64,
    "c": pl.Float64,
    "v": pl.Float64,
}


def _bars(ticks: pl.LazyFrame, key: str, price: str, size: str) -> pl.LazyFrame:
    """The fastest of six ways tried: hashing for duplicates, no sort, least and greatest by key."""
    by_time = pl.struct("src_ts", "seq")
    return (
        ticks.unique([key, "src_ts", "seq"], keep="any")
        .group_by(key, pl.col("src_ts") // WINDOW_NS)
        .agg(
            open=pl.col(price).min_by(by_time),
            high=pl.col(price).max(),
            low=pl.col(price).min(),
            close=pl.col(price).max_by(by_time),
            volume=pl.col(size).sum(),
            notional=(pl.col(price) * pl.col(size)).sum(),
            count=pl.len(),
        )
        .with_columns(vwap=pl.col("notional") / pl.col("volume"))
    )


def _answer(bars: pl.DataFrame, events: int, power: int) -> Answer:
    def total(name: str) -> float:
        return float(bars[name].sum())

    trades = int(total("count"))
    return Answer(
        bars=len(bars),
        trades=trades,
        duplicates=events - trades,
        open=total("open") / power,
        high=total("high") / power,
        low=total("low") / power,
        close=total("close") / power,
        volume=total("volume"),
        vwap=total("vwap") / power,
    )


def run_frame(frame: pl.DataFrame) -> Result:
    started = perf_counter()
    bars = _bars(frame.lazy(), "code", "ticks", "lots").collect()
    seconds = perf_counter() - started
    return Result(seconds, _answer(bars, len(frame), 10**TICK_SCALE))


def run_ndjson(prepared: tuple[Path, int]) -> Result:
    path, events = prepared
    started = perf_counter()
    ticks = pl.scan_ndjson(path, schema=_WIRE).with_columns(
        pl.col("src_ts").str.to_datetime("%Y-%m-%dT%H:%M:%S%.6fZ", time_unit="ns").cast(pl.Int64),
    )
    bars = _bars(ticks, "symbol", "c", "v").collect()
    seconds = perf_counter() - started
    return Result(seconds, _answer(bars, events, 1))


def _ndjson(cache: Cache) -> tuple[Path, int]:
    return cache.write_ndjson(), cache.events


_ONE = Contender(
    "polars-1",
    "engine",
    run_frame,
    lambda cache: cache.load().frame(),
    cores=1,
    requires=("polars",),
    remark="one batch query, integer sums",
)
_TWO = replace(_ONE, name="polars-2", cores=2)
_FILE = Contender(
    "polars-ndjson",
    "ndjson",
    run_ndjson,
    _ndjson,
    requires=("polars",),
    remark="one batch query, nothing durable, float sums",
)
CONTENDERS = (
    _ONE,
    _TWO,
    replace(
        _TWO,
        name="polars-columns",
        group="columns",
        cores=0,
        remark="one batch query, nothing durable",
    ),
    _FILE,
    replace(_FILE, name="polars-ndjson-1", cores=1),
)
