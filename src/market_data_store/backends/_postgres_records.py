"""How rows of any table get into PostgreSQL: only those that are new or differ are written.

All rows of a call are sent as arrays, a column each, in the order of their key. So no two writers
wait for each other: neither where both insert, nor where both update.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from operator import attrgetter, index
from typing import Any

import numpy as np
from psycopg import AsyncConnection, Error

from market_data_core.contracts.store import WriteCounts
from market_data_core.tables import Column, Table
from market_data_store.backends._postgres_arrays import (
    days,
    encoded_texts,
    floats,
    integers,
    moments,
)
from market_data_store.backends._records import other_key, require_records, unwritable

_ROWS_MAX = 20_000
"""So many rows are sent in one statement."""
_PERMANENT = ("22", "23", "54")
"""SQLSTATE classes of errors that are about the data: they would come again."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_UNFIT = (TypeError, ValueError, AttributeError, OverflowError, RecursionError)

Values = list[Sequence[Any]]
"""Columns of rows, as they are sent: texts and JSON in UTF-8, microseconds and days since 1970."""


async def upsert_rows(
    db: AsyncConnection[Any], table: Table, rows: Sequence[Any], now_us: int
) -> WriteCounts:
    """Insert or update `rows` inside the open transaction; see ``Tables.upsert``."""
    require_records(table)
    order, values = _by_key(table, _values(table, rows))
    parts = [slice(at, at + _ROWS_MAX) for at in range(0, len(order), _ROWS_MAX)]
    counts = WriteCounts(unchanged=len(rows))
    there = []
    for part in parts:
        new = await _run(db, table, _insert(table), values, part, now_us, (rows, order))
        counts.inserted += new
        if new < len(order[part]):
            there.append(part)
    for part in there:  # once all is inserted: what a transaction waits for stays in one order
        counts.updated += await _run(db, table, _update(table), values, part, now_us, (rows, order))
    counts.unchanged -= counts.inserted + counts.updated
    return counts


async def replace_row(db: AsyncConnection[Any], table: Table, old: Any, new: Any) -> bool:
    """Put `new` in the place of `old` inside the open transaction; see ``Tables.replace``."""
    require_records(table)
    before, after = _values(table, [old]), _values(table, [new])
    names = [column.name for column in table.written]
    if any(before[names.index(name)] != after[names.index(name)] for name in table.key):
        raise other_key(table, old, new)
    given = _given(table, before, slice(1))
    given |= {f"new_{name}": one for name, one in _given(table, after, slice(1)).items()}
    try:
        cursor = await db.execute(_replace(table), given)
    except Error as error:
        raise unwritable(table, new, _permanent(error)) from None
    return cursor.rowcount == 1


# ---- values --------------------------------------------------------------------------------


def _time(value: datetime | int) -> int:
    if isinstance(value, int):
        return _count(value) // 1_000
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _day(value: date) -> int:
    if isinstance(value, datetime):
        msg = f"{value} is a time, not a day"
        raise TypeError(msg)
    return value.toordinal() - _EPOCH_DAY


def _count(value: Any) -> int:
    number = index(value)
    if not -(2**63) <= number < 2**63:
        msg = f"{number} has more than 64 bits"
        raise OverflowError(msg)
    return number


def _json(value: Any) -> bytes:
    if not isinstance(value, dict | list):
        msg = f"{value!r} is no dictionary or list"
        raise TypeError(msg)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "text": str.encode,
    "number": float,
    "count": _count,
    "time": _time,
    "day": _day,
    "json": _json,
}


def _values(table: Table, rows: Sequence[Any]) -> Values:
    """The columns of `rows`, in the order of ``table.written``."""
    if not rows:
        return [() for _ in table.written]
    read = attrgetter(*(column.name for column in table.written))
    columns = zip(*map(read, rows), strict=True)
    return [
        _converted(table, rows, column, given)
        for column, given in zip(table.written, columns, strict=True)
    ]


def _converted(
    table: Table, rows: Sequence[Any], column: Column, given: Sequence[Any]
) -> Sequence[Any]:
    convert, out = _CONVERSIONS[column.kind], list[Any]()
    try:
        if column.nullable and None in given:
            out.extend(None if value is None else convert(value) for value in given)
        else:
            out.extend(map(convert, given))
    except _UNFIT as error:
        raise unwritable(table, rows[len(out)], f"{column.name}: {error}") from error
    return out


def _by_key(table: Table, values: Values) -> tuple[list[int], Values]:
    """Which rows to send, ascending by key, and their values: of equal keys the last."""
    names = [column.name for column in table.written]
    keys = zip(*(values[names.index(name)] for name in table.key), strict=True)
    last = {key: i for i, key in enumerate(keys)}
    order = [last[key] for key in sorted(last)]
    return order, [[column[i] for i in order] for column in values]


_PACKED: dict[str, Callable[..., Any]] = {
    "number": floats,
    "count": integers,
    "time": moments,
}


def _given(table: Table, values: Values, part: slice) -> dict[str, Any]:
    """Parameters of the statements, which take rows as arrays."""
    given: dict[str, Any] = {}
    for column, whole in zip(table.written, values, strict=True):
        some = whole[part]
        if column.kind in ("text", "json"):
            given[column.name] = encoded_texts(some)
        elif column.kind == "day":
            given[column.name] = days(np.array(some, np.int64))
        else:
            dtype = np.float64 if column.kind == "number" else np.int64
            missing = np.array([value is None for value in some]) if column.nullable else None
            filled = [0 if value is None else value for value in some] if column.nullable else some
            given[column.name] = _PACKED[column.kind](np.array(filled, dtype), missing)
    return given


# ---- statements ----------------------------------------------------------------------------


async def _run(
    db: AsyncConnection[Any],
    table: Table,
    statement: str,
    values: Values,
    part: slice,
    now_us: int,
    origin: tuple[Sequence[Any], list[int]],
) -> int:
    """How many rows a statement has written of those in `part`."""

    async def write(some: slice) -> int:
        given = _given(table, values, some) | {"now": moments(np.array([now_us]))}
        async with db.transaction():
            return (await db.execute(statement, given, binary=True)).rowcount

    start, stop = part.start, min(part.stop, len(origin[1]))
    try:
        return await write(slice(start, stop))
    except Error as error:
        told = _permanent(error)
    while stop - start > 1:  # halve it; what is written on the way is undone with the rest
        half = (start + stop) // 2
        try:
            await write(slice(start, half))
        except Error as error:
            told, stop = _permanent(error), half
        else:
            start = half
    raise unwritable(table, origin[0][origin[1][start]], told)


def _permanent(error: Error) -> str:
    """What is wrong with the data, as the server says; an error about anything else is raised."""
    if not (error.sqlstate or "").startswith(_PERMANENT):
        raise error
    return error.diag.message_primary or type(error).__name__


def _unnested(table: Table) -> tuple[str, str]:
    """The given rows as an item of FROM without its name, and the names of its columns."""
    names = [column.name for column in table.written]
    return f"unnest({', '.join(f'%({name})s' for name in names)})", ", ".join(names)


def _cast(column: Column, alias: str) -> str:
    return f"{alias}.{column.name}" + ("::jsonb" if column.kind == "json" else "")


def _same_key(table: Table, one: str, other: str) -> str:
    return " AND ".join(f"{one}.{name} = {other}.{name}" for name in table.key)


def _row(table: Table, alias: str) -> str:
    return f"({', '.join(f'{alias}.{name}' for name in table.values)})"


@lru_cache(16)
def _insert(table: Table) -> str:
    source, names = _unnested(table)
    values = [_cast(column, "s") for column in table.written]
    stamps = [f"(%(now)s)[1] AS {name}" for name in table.stamps]
    return f"""INSERT INTO {table.name} ({", ".join([names, *table.stamps])})
        SELECT {", ".join([*values, *stamps])} FROM {source} AS s ({names})
        ON CONFLICT ({", ".join(table.key)}) DO NOTHING"""


@lru_cache(16)
def _update(table: Table) -> str:
    """Only rows that differ are tried to insert, which locks and then changes those in the way.

    TimescaleDB can do that to rows that it has compressed, which it cannot lock otherwise.
    """
    source, names = _unnested(table)
    given = ", ".join(f"{_cast(column, 'g')} AS {column.name}" for column in table.written)
    columns = ", ".join([names, *table.stamps])
    values = ", ".join(
        [
            *(f"s.{column.name}" for column in table.written),
            *("(%(now)s)[1]" for _ in table.stamps),
        ]
    )
    return f"""INSERT INTO {table.name} AS b ({columns})
        SELECT {values} FROM (SELECT {given} FROM {source} AS g ({names})) AS s
        JOIN {table.name} AS t ON {_same_key(table, "t", "s")}
        WHERE {_row(table, "t")} IS DISTINCT FROM {_row(table, "s")}
        ORDER BY {", ".join(f"s.{name}" for name in table.key)}
        ON CONFLICT ({", ".join(table.key)}) DO UPDATE
        SET ({", ".join(table.values)}) = ROW {_row(table, "excluded")}
        WHERE {_row(table, "b")} IS DISTINCT FROM {_row(table, "excluded")}"""


@lru_cache(16)
def _replace(table: Table) -> str:
    """The values of `table.written` twice, the old ones by name and the new ones by new_name."""
    new = ", ".join(_single(c, "new_") for c in table.written if c.name in table.values)
    same = [
        f"{column.name} {'=' if column.name in table.key else 'IS NOT DISTINCT FROM'} "
        f"{_single(column)}"
        for column in table.written
    ]
    return f"""UPDATE {table.name} SET ({", ".join(table.values)}) = ROW ({new})
        WHERE {" AND ".join(same)}"""


def _single(column: Column, prefix: str = "") -> str:
    return f"(%({prefix}{column.name})s)[1]" + ("::jsonb" if column.kind == "json" else "")
