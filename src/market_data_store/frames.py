"""Frames: one after the other, and as text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

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


def json_lines(frame: pl.DataFrame, nested: Sequence[str]) -> Iterator[bytes]:
    """Each row as a JSON object.

    Times are ISO 8601 UTC texts, numbers have the digits that give the same float64.

    Args:
        frame: the rows.
        nested: columns of JSON texts, which are written as the values that they are.
    """
    names = frame.columns
    places = [names.index(name) for name in nested]
    encoder = msgspec.json.Encoder()
    for row in with_iso_times(frame).iter_rows():
        values: Sequence[Any] = row
        if places:
            values = list(row)
            for place in places:
                values[place] = msgspec.Raw(values[place])
        yield encoder.encode(dict(zip(names, values, strict=True)))
