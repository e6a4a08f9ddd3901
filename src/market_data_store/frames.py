"""Frames: one after the other, and as text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")


@asynccontextmanager
async def closing(frames: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """The frames of a scan, which ends with the context: it must not keep a transaction open."""
    try:
        yield frames
    finally:
        close = getattr(frames, "aclose", None)
        if close is not None:
            await close()


def with_iso_times(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with every time as ISO 8601 UTC text: six fractional digits, nine where needed.

    Times without a zone are taken to be UTC.
    """
    import polars as pl

    moments = {name: kind for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)}
    utc = {
        name: pl.col(name).dt.convert_time_zone("UTC") if kind.time_zone else pl.col(name)
        for name, kind in moments.items()
    }
    return frame.with_columns(
        pl.when(time.dt.nanosecond() % 1000 == 0)
        .then(time.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
        .otherwise(time.dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"))
        .alias(name)
        for name, time in utc.items()
    )
