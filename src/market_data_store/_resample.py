"""Wider bars from narrower ones, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_core.errors import UsageError
from market_data_core.intervals import format_interval, parse_interval

if TYPE_CHECKING:
    import polars as pl

_GROUP = ("provider", "symbol", "ts")


def edges(
    interval: str, every: str, start: int | None, end: int | None
) -> tuple[int | None, int | None]:
    """The range of bars of which the windows of `every` within [start, end) are made, UTC ns.

    Raises:
        UsageError: `every` is not a multiple of `interval`.
    """
    wide = parse_interval(every)
    if wide % parse_interval(interval):
        msg = f"every {every!r} is not a multiple of interval {interval!r}"
        raise UsageError(msg)

    def up(moment: int | None) -> int | None:
        return None if moment is None else -(-moment // wide) * wide

    return up(start), up(end)


def resample(bars: pl.DataFrame, every: str) -> pl.DataFrame:
    """The bars, ordered by key and of one interval, put together in windows of `every`."""
    import polars as pl

    wide = parse_interval(every)
    ts = (pl.col("ts").to_physical() // wide * wide).cast(pl.Datetime("ns", "UTC"))
    traded = pl.col("volume") > 0
    amount, volume = (pl.col("vwap") * pl.col("volume")).sum(), pl.col("volume").sum()
    unknown = (pl.col("vwap").is_null() & traded).any() | (volume == 0)
    state = pl.col("state")
    return (
        bars.with_columns(ts)
        .group_by(_GROUP, maintain_order=True)
        .agg(
            pl.lit(format_interval(wide)).alias("interval"),
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            volume,
            pl.when(~unknown).then(amount / volume).alias("vwap"),
            pl.when(pl.col("trade_count").is_not_null().all()).then(pl.col("trade_count").sum()),
            pl.when((state == "gap").any())
            .then(pl.lit("gap"))
            .when((state == "revised").any())
            .then(pl.lit("revised"))
            .otherwise(pl.lit("final"))
            .alias("state"),
        )
        .select(c for c in bars.columns if c not in ("created_at", "updated_at"))
    )
