"""Reading bars from PostgreSQL: each series comes as a few arrays, never as Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncClientCursor, AsyncConnection

from market_data_store.backends._postgres_arrays import (
    raw_rows,
    read_floats,
    read_integers,
    read_moments,
)
from market_data_store.backends._postgres_rows import VALUES

if TYPE_CHECKING:
    import polars as pl

_NAMES = ("provider", "symbol", "interval")
_MOMENTS = ("ts", "created_at", "updated_at")
_STATES = ("final", "revised", "gap")
_NUMBERS = ("ts", *VALUES, "trade_count", "created_at", "updated_at", "state")
_COLUMNS = (*_NAMES, "ts", *VALUES, "trade_count", "state", "created_at", "updated_at")
_PART_ROWS = 20_000
_PARTS = 8
"""So many parts of series are fetched at once, each of at most so many rows."""
_WANTED = f"""DECLARE wanted BINARY NO SCROLL CURSOR FOR
    SELECT {", ".join(_NAMES)}, array_agg(ts), {", ".join(f"array_agg({v})" for v in VALUES[:-1])},
    array_agg(coalesce(vwap, 'NaN')), array_agg(coalesce(trade_count, -1)),
    array_agg(created_at), array_agg(updated_at),
    array_agg(array_position(ARRAY['{"', '".join(_STATES)}'], state)::bigint)
    FROM (SELECT *, (row_number() OVER (PARTITION BY {", ".join(_NAMES)} ORDER BY ts) - 1)
    / {_PART_ROWS} AS part FROM bars_ohlcv {{where}}) AS b
    GROUP BY {", ".join(_NAMES)}, part ORDER BY {", ".join(_NAMES)}, part"""


async def read_bars(
    db: AsyncConnection[Any],
    wanted: dict[str, str | None],
    start_ns: int | None,
    end_ns: int | None,
) -> pl.DataFrame:
    """Bars whose columns equal what is `wanted` (None: any), start <= ts < end, by key."""
    given: dict[str, Any] = {n: [value] for n, value in wanted.items() if value is not None}
    if any("\0" in value for (value,) in given.values()):
        return _frame([], [])  # no stored name has a zero byte in it
    terms = [f"{name} = %({name})s" for name in given]
    values: dict[str, Any] = {name: value for name, (value,) in given.items()}
    for name, op, at in (("start", ">=", start_ns), ("end", "<", end_ns)):
        if at is not None:  # between two microseconds: the later one is the first that counts
            terms.append(f"ts {op} timestamptz 'epoch' + %({name})s * interval '1 microsecond'")
            values[name] = -(-at // 1000)
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    await db.execute("SET LOCAL statement_timeout = 0")  # as long as there is to read
    async with AsyncClientCursor(db) as declaring:  # no parameters in what declares a cursor
        await declaring.execute(_WANTED.format(where=where), values)
    names: list[tuple[str, ...]] = []
    parts: list[list[NDArray[Any]]] = []
    while True:
        rows = list(raw_rows(await db.execute(f"FETCH {_PARTS} FROM wanted", binary=True)))
        if not rows:
            return _frame(names, parts)
        for row in rows:
            names.append(tuple((cell or b"").decode() for cell in row[: len(_NAMES)]))
            parts.append(_columns(row[len(_NAMES) :]))


def _columns(cells: Sequence[bytes | None]) -> list[NDArray[Any]]:
    """The arrays of a part, in the order of time, which grouping may have lost."""
    columns: list[NDArray[Any]] = [
        read_moments(cell)
        if name in _MOMENTS
        else read_floats(cell)
        if name in VALUES
        else read_integers(cell)
        for name, cell in zip(_NUMBERS, cells, strict=True)
    ]
    if (columns[0][1:] < columns[0][:-1]).any():
        order = np.argsort(columns[0])
        return [column[order] for column in columns]
    return columns


def _frame(names: list[tuple[str, ...]], parts: list[list[NDArray[Any]]]) -> pl.DataFrame:
    """One frame of all parts, which are in the order of the key."""
    import polars as pl

    if not parts:
        parts = [[np.empty(0, float if n in VALUES else np.int64) for n in _NUMBERS]]
        names = [("",) * len(_NAMES)]
    found: dict[str, Any] = {
        name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(_NUMBERS)
    }
    part_of = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    for i, name in enumerate(_NAMES):
        found[name] = pl.Series([part[i] for part in names], dtype=pl.String).gather(part_of)
    found["state"] = pl.Series(_STATES, dtype=pl.String).gather(found["state"] - 1)
    moment = pl.Datetime("ns", "UTC")
    return (
        pl.DataFrame(found)
        .with_columns(pl.col(name).mul(1000).cast(moment) for name in _MOMENTS)
        .with_columns(
            pl.col("vwap").fill_nan(None),
            pl.when(pl.col("trade_count") >= 0).then("trade_count").alias("trade_count"),
        )
        .select(_COLUMNS)
    )
