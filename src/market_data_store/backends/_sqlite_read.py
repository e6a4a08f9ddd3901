"""Reading rows of any table from SQLite as frames."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from market_data_core.errors import UsageError
from market_data_core.tables import BARS, Column, Select, Table

if TYPE_CHECKING:
    import polars as pl

Query = tuple[str, list[Any]]
"""A statement and its values."""


def query(what: Select) -> Query:
    """The statement that gives the wanted rows in the order of the key.

    Raises:
        UsageError: a column that the table does not have, or `as_of` for a table without history.
    """
    table, names = what.table, ", ".join(column.name for column in what.table.columns)
    known = [column.name for column in table.columns]
    for name in what.where:
        if name not in known:
            msg = f"{table.name} has no column {name!r}; it has {', '.join(known)}"
            raise UsageError(msg)
    if what.as_of is not None and table is not BARS:
        msg = f"as_of: only bars keep what was replaced; {table.name} has no history"
        raise UsageError(msg)
    order = f"ORDER BY {', '.join(str(known.index(name) + 1) for name in table.key)}"
    if what.as_of is None and what.last is not None and prefix(table) == table.series:
        sql, values = _newest(what)
        return f"{sql} {order}", values
    if what.as_of is None:
        where, values = _where(what, "b")
        sql = f"SELECT {names} FROM {table.name} b WHERE {where}"
    else:
        sql, values = _known(what, what.as_of)
    if what.last is not None:
        sql = f"""SELECT {names} FROM (SELECT *, row_number() OVER (
            PARTITION BY {", ".join(table.series)}
            ORDER BY {" DESC, ".join(table.order)} DESC) AS n FROM ({sql}))
            WHERE n <= ?"""
        values = [*values, what.last]
    return f"{sql} {order}", values


def prefix(table: Table) -> tuple[str, ...]:
    """The key's columns before the time; none if the time is not in the key."""
    return table.key[: table.key.index(table.time)] if table.time in table.key else ()


def _where(what: Select, alias: str) -> Query:
    """The condition on a row of `alias` without `last` and `as_of`."""
    sql, values = _conditions(what, alias)
    first, *others = what.table.key
    if first not in what.where and others and others[0] in what.where:
        # few of the first and a seek for each, rather than a look at every row
        walk, given = series(what.table, (first,))
        return f"{alias}.{first} IN ({walk}) AND {sql}", [*given, *values]
    return sql, values


def _conditions(what: Select, alias: str, done: Sequence[str] = ()) -> Query:
    """What the columns, but for those that are `done`, and the time have to be."""
    terms, values = ["true"], list[Any]()
    for name, wanted in what.where.items():
        if name not in done:
            sql, given = _among(wanted)
            terms.append(f"{alias}.{name} IN ({sql})")
            values += given
    for op, at in ((">=", what.start), ("<", what.end)):
        if at is not None:
            # else a table without statistics is rather read whole, in order, than sorted in part
            terms.append(f"likelihood({alias}.{what.table.time} {op} ?, 0.001)")
            values.append(at)
    return " AND ".join(terms), values


def _among(texts: Iterable[str]) -> Query:
    """A query of these texts, each once, however many: JSON knows no limit of variables."""
    whole = [text for text in dict.fromkeys(texts) if "\0" not in text]
    split = [text for text in dict.fromkeys(texts) if "\0" in text]  # SQLite's JSON ends there
    sql = "SELECT value FROM json_each(?)" + " UNION ALL SELECT ?" * len(split)
    return sql, [json.dumps(whole), *split]


def series(
    table: Table, columns: Sequence[str], where: Mapping[str, Sequence[str]] | None = None
) -> Query:
    """The distinct values of the key's first `columns`, by a seek for each rather than a scan.

    Those of a column that is in `where` are not looked for: they are taken from there.
    """
    levels, values = ["level(n) AS (SELECT 0)"], []
    source, have = "level", list[str]()
    for i, name in enumerate(columns):
        listed = ", ".join([*have, name])
        before = "".join(f"{column}, " for column in have)
        same = "".join(f"t.{column} = p.{column} AND " for column in have)
        least = f"SELECT min(t.{name}) FROM {table.name} t WHERE {same}"
        if where and name in where:
            sql, given = _among(where[name])
            levels.append(f"level{i}({listed}) AS (SELECT {before}value FROM {source}, ({sql}))")
            values += given
        else:
            levels.append(f"""walk{i}({listed}) AS (
                SELECT {before}({least} true) FROM {source} p UNION ALL
                SELECT {before}({least} t.{name} > p.{name}) FROM walk{i} p
                WHERE p.{name} IS NOT NULL)""")
            levels.append(f"level{i} AS (SELECT * FROM walk{i} WHERE {name} IS NOT NULL)")
        source, have = f"level{i}", [*have, name]
    return f"WITH RECURSIVE {', '.join(levels)} SELECT {', '.join(have)} FROM {source}", values


def _newest(what: Select) -> Query:
    """The newest rows of each series: each is found by its end of the key's index."""
    table = what.table
    sql, values = series(table, table.series, what.where)
    where, given = _conditions(what, "t", table.series)
    on = " AND ".join(f"{{0}}.{name} = s.{name}" for name in table.series)
    names = ", ".join(f"b.{column.name}" for column in table.columns)
    return (
        f"""SELECT {names} FROM ({sql}) s CROSS JOIN {table.name} b
            ON {on.format("b")} AND b.{table.time} IN (SELECT t.{table.time} FROM {table.name} t
            WHERE {on.format("t")} AND {where} ORDER BY t.{table.time} DESC LIMIT ?)""",
        [*values, *given, what.last],
    )


def _known(what: Select, as_of: int) -> Query:
    """Bars as they were known at `as_of`.

    That is what is stored, or where it came later, the last of the replaced versions that were
    known then: they can be several if the clock has gone back between two of them.
    """
    now, now_values = _where(what, "b")
    then, then_values = _where(what, "h")
    on = " AND ".join(f"{{0}}.{name} = h.{name}" for name in BARS.key)
    versions = {"created_at": "b.created_at", "updated_at": "h.known_from"}
    names = [column.name for column in BARS.columns]
    known = "{0}.known_from <= ? AND {0}.known_until > ?"
    sql = f"""SELECT {", ".join(names)} FROM bars_ohlcv b WHERE updated_at <= ? AND {now}
        UNION ALL SELECT {", ".join(versions.get(n, f"h.{n}") for n in names)}
        FROM bars_ohlcv_history h JOIN bars_ohlcv b ON {on.format("b")} AND b.updated_at > ?
        WHERE {known.format("h")} AND {then} AND NOT EXISTS (SELECT 1 FROM bars_ohlcv_history g
        WHERE {on.format("g")} AND g.id > h.id AND {known.format("g")})"""
    return f"SELECT * FROM ({sql})", [
        as_of,
        *now_values,
        *[as_of] * 3,
        *then_values,
        *[as_of] * 2,
    ]


def frame(table: Table, rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Rows of all columns as a frame."""
    columns = zip(*rows, strict=True) if rows else [()] * len(table.columns)
    return _frame(table.columns, columns)


def _frame(columns: Sequence[Column], values: Iterable[Sequence[Any]]) -> pl.DataFrame:
    import polars as pl

    types: dict[str, Any] = {"number": pl.Float64, "count": pl.Int64, "time": pl.Int64}
    found = pl.DataFrame(
        [
            pl.Series(column.name, given, types.get(column.kind, pl.String))
            for column, given in zip(columns, values, strict=True)
        ]
    )
    return found.with_columns(
        *(pl.col(c.name).cast(pl.Datetime("ns", "UTC")) for c in columns if c.kind == "time"),
        *(pl.col(c.name).str.to_date("%Y-%m-%d") for c in columns if c.kind == "day"),
    )


def select(db: sqlite3.Connection, what: Select) -> pl.DataFrame:
    """The wanted rows in one frame."""
    return frame(what.table, db.execute(*query(what)).fetchall())
