"""How rows of any table get into SQLite: only those that are new or differ are written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import chain
from operator import attrgetter, ne
from typing import Any

from market_data_core.contracts.store import WriteCounts
from market_data_core.tables import Table
from market_data_store.backends._records import other_key, require_records, unwritable
from market_data_store.backends._sqlite_bars import PERMANENT
from market_data_store.sqlite_file import parts_of, row_marks

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = (*PERMANENT, sqlite3.ProgrammingError)
"""The writing connection is not closed while it works: this one is about a value's type."""
_UNFIT = (TypeError, ValueError, AttributeError, RecursionError)


def upsert_rows(
    db: sqlite3.Connection, table: Table, rows: Sequence[Any], now_ns: int
) -> WriteCounts:
    """Insert or update `rows` inside the open transaction; see ``Tables.upsert``."""
    require_records(table)
    kept, values = _distinct(table, rows, _values(table, rows))
    stamps = (now_ns,) * len(table.stamps)
    inserted = _run(db, table, "NOTHING", kept, values, stamps)
    updated = 0
    if inserted < len(kept):
        updated = _run(db, table, _update_that_differs(table), kept, values, stamps)
    return WriteCounts(inserted, updated, len(rows) - inserted - updated)


def replace_row(db: sqlite3.Connection, table: Table, old: Any, new: Any, now_ns: int) -> bool:
    """Put `new` in the place of `old` inside the open transaction; see ``Tables.replace``."""
    require_records(table)
    (before,), (after,) = _values(table, [old]), _values(table, [new])
    place = {column.name: i for i, column in enumerate(table.written)}
    if any(before[place[name]] != after[place[name]] for name in table.key):
        raise other_key(table, old, new)
    updated_at = ["updated_at = ?"] if "updated_at" in table.stamps else []
    sets = ", ".join([*(f"{name} = ?" for name in table.values), *updated_at])
    same = " AND ".join(f"{column.name} IS ?" for column in table.written)
    given = [after[place[name]] for name in table.values] + [now_ns] * len(updated_at)
    try:
        cursor = db.execute(f"UPDATE {table.name} SET {sets} WHERE {same}", [*given, *before])
    except _NEVER as error:
        raise unwritable(table, new, error) from error
    return cursor.rowcount == 1


def _time(value: datetime | int | None) -> int | None:
    if value is None or isinstance(value, int):
        return value
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1_000


def _day(value: date) -> str:
    return value.isoformat()


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


def _json(value: Any) -> str:
    if not isinstance(value, dict | list):
        msg = f"{value!r} is no dictionary or list"
        raise TypeError(msg)
    return _encode(value)


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"time": _time, "day": _day, "json": _json}


def _values(table: Table, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What is written of each row, column by column, so that most values are not looked at."""
    if not rows:
        return []
    read = attrgetter(*(column.name for column in table.written))
    columns: list[Sequence[Any]] = list(zip(*map(read, rows), strict=True))
    for i, column in enumerate(table.written):
        convert = _CONVERSIONS.get(column.kind)
        if convert:
            columns[i] = _converted(table, rows, columns[i], convert)
        elif column.kind == "number" and any(map(ne, columns[i], columns[i])):
            at = next(k for k, value in enumerate(columns[i]) if value != value)  # noqa: PLR0124
            raise unwritable(table, rows[at], f"{column.name} is not a number")
    return list(zip(*columns, strict=True))


def _converted(
    table: Table, rows: Sequence[Any], column: Sequence[Any], convert: Callable[[Any], Any]
) -> list[Any]:
    out: list[Any] = []
    try:
        out.extend(map(convert, column))
    except _UNFIT as error:
        raise unwritable(table, rows[len(out)], error) from error
    return out


def _distinct(
    table: Table, rows: Sequence[Any], values: list[tuple[Any, ...]]
) -> tuple[Sequence[Any], list[tuple[Any, ...]]]:
    """Of rows with one key the last, in the place of the first."""
    names = [column.name for column in table.written]
    places = [names.index(name) for name in table.key]
    keys = [tuple(row[i] for i in places) for row in values]
    last = {key: i for i, key in enumerate(keys)}
    if len(last) == len(rows):
        return rows, values
    return [rows[i] for i in last.values()], [values[i] for i in last.values()]


def _run(
    db: sqlite3.Connection,
    table: Table,
    conflict: str,
    rows: Sequence[Any],
    values: list[tuple[Any, ...]],
    stamps: tuple[int, ...],
) -> int:
    """Insert `values`, many to a statement; returns how many rows were written."""
    before = db.total_changes
    for at, part in parts_of(values):
        given = list(
            chain.from_iterable(row + stamps for row in part)
            if stamps
            else chain.from_iterable(part)
        )
        try:
            db.execute(_insert(table, len(part), conflict), given)
        except _NEVER as error:
            bad, why = _first_bad(db, table, conflict, [row + stamps for row in part])
            raise unwritable(table, rows[at + bad], why) from error
    return db.total_changes - before


def _first_bad(
    db: sqlite3.Connection, table: Table, conflict: str, part: list[tuple[Any, ...]]
) -> tuple[int, str]:
    """Which row of a part that failed fails alone, and why; all is undone afterwards anyway."""
    statement = _insert(table, 1, conflict)
    for i, row in enumerate(part):
        try:
            db.execute(statement, row)
        except _NEVER as error:
            return i, str(error)
    msg = f"{table.name}: {len(part)} rows fail together, and none alone"
    raise AssertionError(msg)


@lru_cache(64)
def _insert(table: Table, rows: int, conflict: str) -> str:
    names = [column.name for column in table.written] + list(table.stamps)
    return (
        f"INSERT INTO {table.name} AS b ({', '.join(names)}) "
        f"VALUES {row_marks(rows, len(names))} "
        f"ON CONFLICT DO {conflict}"
    )


@lru_cache(16)
def _update_that_differs(table: Table) -> str:
    written = [*table.values, *(name for name in table.stamps if name == "updated_at")]
    sets = ", ".join(f"{name} = excluded.{name}" for name in written)
    differs = " OR ".join(f"b.{name} IS NOT excluded.{name}" for name in table.values)
    return f"UPDATE SET {sets} WHERE {differs}"
