"""Reading rows of any table from PostgreSQL into frames.

Bars come as a few arrays for each series, never as Python objects; all else comes row by row,
with times and days as the numbers that they are sent as.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncClientCursor, AsyncConnection
from psycopg.types.numeric import Int4BinaryLoader, Int8BinaryLoader

from market_data_core.tables import BARS, Column, Select, Table
from market_data_store.backends._postgres_arrays import (
    EPOCH_DAYS,
    EPOCH_US,
    raw_rows,
    read_floats,
    read_integers,
    read_moments,
)
from market_data_store.backends._postgres_link import UNLIMITED
from market_data_store.backends._postgres_query import source
from market_data_store.backends._postgres_rows import VALUES

if TYPE_CHECKING:
    import polars as pl

_NAMES = ("provider", "symbol", "interval")
_MOMENTS = ("ts", "created_at", "updated_at")
_STATES = ("final", "revised", "gap")
_NUMBERS = ("ts", *VALUES, "trade_count", "created_at", "updated_at", "state")
_COLUMNS = tuple(column.name for column in BARS.columns)
_PART_ROWS = 20_000
_PARTS = 8
"""So many parts of series are fetched at once, each of at most so many rows."""
_FETCHED = 20_000
"""So many rows are fetched at once."""
_SERIES = f"""SELECT {", ".join(_NAMES)}, array_agg(ts),
    {", ".join(f"array_agg({v})" for v in VALUES[:-1])},
    array_agg(coalesce(vwap, 'NaN')), array_agg(coalesce(trade_count, -1)),
    array_agg(created_at), array_agg(updated_at),
    array_agg(array_position(ARRAY['{"', '".join(_STATES)}'], state)::bigint)
    FROM (SELECT *, (row_number() OVER (PARTITION BY {", ".join(_NAMES)} ORDER BY ts) - 1)
    / {_PART_ROWS} AS part FROM ({{source}}) AS f) AS b
    GROUP BY {", ".join(_NAMES)}, part ORDER BY {", ".join(_NAMES)}, part"""


async def read_all(db: AsyncConnection[Any], what: Select) -> pl.DataFrame:
    """The wanted rows in one frame, inside the open transaction."""
    import polars as pl

    if what.table is BARS:
        return await _read_bars(db, what)
    parts = [part async for part in read_parts(db, what, _FETCHED)]
    return pl.concat(parts) if parts else _frame(what.table, [])


async def read_parts(
    db: AsyncConnection[Any], what: Select, rows_max: int
) -> AsyncGenerator[pl.DataFrame]:
    """The wanted rows in frames of at most `rows_max`, inside the open transaction."""
    sql, values = source(what)
    columns = [
        f"{column.name}::text" if column.kind == "json" else column.name
        for column in what.table.columns
    ]
    await _declare(
        db, f"SELECT {', '.join(columns)} FROM ({sql}) AS r ORDER BY {_order(what.table)}", values
    )
    async with db.cursor(binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        cursor.adapters.register_loader("date", Int4BinaryLoader)
        while True:
            await cursor.execute(f"FETCH {rows_max:d} FROM wanted".encode())
            rows = await cursor.fetchall()
            if not rows:
                return
            yield _frame(what.table, rows)


def _order(table: Table) -> str:
    return ", ".join(f"r.{name}" for name in table.key)


async def _declare(db: AsyncConnection[Any], sql: str, values: dict[str, Any]) -> None:
    await db.execute(UNLIMITED)  # as long as there is to read
    async with AsyncClientCursor(db) as declaring:  # no parameters in what declares a cursor
        await declaring.execute(
            f"DECLARE wanted BINARY NO SCROLL CURSOR FOR {sql}".encode(), values
        )


def _frame(table: Table, rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """One frame of rows as they were sent."""
    import polars as pl

    values = zip(*rows, strict=True) if rows else [()] * len(table.columns)
    return pl.DataFrame(
        [_series(column, given) for column, given in zip(table.columns, values, strict=True)]
    )


def _series(column: Column, given: Sequence[Any]) -> pl.Series:
    import polars as pl

    if column.kind == "time":
        found = pl.Series(column.name, given, pl.Int64)
        return ((found + EPOCH_US) * 1000).cast(pl.Datetime("ns", "UTC"))
    if column.kind == "day":
        return (pl.Series(column.name, given, pl.Int32) + EPOCH_DAYS).cast(pl.Date)
    types: dict[str, Any] = {"number": pl.Float64, "count": pl.Int64}
    return pl.Series(column.name, given, types.get(column.kind, pl.String))


# ---- bars ----------------------------------------------------------------------------------


async def _read_bars(db: AsyncConnection[Any], what: Select) -> pl.DataFrame:
    sql, values = source(what)
    await _declare(db, _SERIES.format(source=sql), values)
    names: list[tuple[str, ...]] = []
    parts: list[list[NDArray[Any]]] = []
    while True:
        rows = list(raw_rows(await db.execute(f"FETCH {_PARTS} FROM wanted", binary=True)))
        if not rows:
            return _bars(names, parts)
        for row in rows:
            names.append(tuple((cell or b"").decode() for cell in row[: len(_NAMES)]))
            parts.append(_arrays(row[len(_NAMES) :]))


def _arrays(cells: Sequence[bytes | None]) -> list[NDArray[Any]]:
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


def _bars(names: list[tuple[str, ...]], parts: list[list[NDArray[Any]]]) -> pl.DataFrame:
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
