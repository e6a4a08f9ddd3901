"""Which rows are meant: the statements behind ``select``, ``scan`` and the upkeep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from market_data_core.errors import UsageError
from market_data_core.tables import BARS, Select, Table

Query = tuple[str, dict[str, Any]]
"""A statement and its values."""


def source(what: Select) -> Query:
    """The statement that gives the wanted rows, all columns, in no order.

    Raises:
        UsageError: a column that the table does not have, or `as_of` for a table without history.
    """
    table, names = what.table, ", ".join(column.name for column in what.table.columns)
    texts = [column.name for column in table.columns if column.kind == "text"]
    for name in what.where:
        if name not in texts:
            msg = f"{table.name} has no column of texts {name!r}; it has {', '.join(texts)}"
            raise UsageError(msg)
    if what.as_of is not None and table is not BARS:
        msg = f"as_of: only bars keep what was replaced; {table.name} has no history"
        raise UsageError(msg)
    values = _values(what)
    if what.as_of is not None:
        sql = _known(what)
    elif what.last is not None and table.key[-1] == table.time:
        return _newest(what, values), values
    else:
        sql = f"SELECT {names} FROM {table.name} AS b WHERE {_where(what, 'b')}"
    if what.last is not None:
        sql = f"""SELECT {names} FROM (SELECT *, row_number() OVER (
            PARTITION BY {", ".join(table.series)}
            ORDER BY {" DESC, ".join(table.order)} DESC) AS newest
            FROM ({sql}) AS f) AS f WHERE newest <= %(last)s"""
    return sql, values


def series(table: Table, columns: Sequence[str], given: Mapping[str, str] | None = None) -> str:
    """The distinct values of the key's first `columns`, by a seek for each rather than a scan.

    Args:
        table: whose.
        columns: their names, at least one.
        given: column -> an expression, the array of values to take as they are.
    """
    levels, before, have = ["level (n) AS (SELECT 0)"], "level", list[str]()
    for i, name in enumerate(columns):
        listed, kept = ", ".join([*have, name]), "".join(f"p.{one}, " for one in have)
        same = "".join(f"t.{one} = p.{one} AND " for one in have)
        least = f"SELECT min(t.{name}) FROM {table.name} AS t WHERE {same}"
        if given and name in given:
            levels.append(
                f"""level{i} ({listed}) AS (SELECT {kept}g.{name} COLLATE "C"
                FROM {before} AS p, unnest({given[name]}) AS g ({name}))"""
            )
        else:
            levels.append(f"""walk{i} ({listed}) AS (
                SELECT {kept}({least} true) FROM {before} AS p UNION ALL
                SELECT {kept}({least} t.{name} > p.{name}) FROM walk{i} AS p
                WHERE p.{name} IS NOT NULL),
                level{i} ({listed}) AS (SELECT {listed} FROM walk{i} WHERE {name} IS NOT NULL)""")
        before, have = f"level{i}", [*have, name]
    return f"WITH RECURSIVE {', '.join(levels)} SELECT {', '.join(have)} FROM {before}"


def micros(name: str) -> str:
    """The moment of a parameter, microseconds since 1970."""
    return f"(timestamptz 'epoch' + %({name})s * interval '1 microsecond')"


def _values(what: Select) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"where_{name}": list(dict.fromkeys(filter(_is_text, wanted)))
        for name, wanted in what.where.items()
    }
    for name, at in (("start", what.start), ("end", what.end)):
        if at is not None:  # between two microseconds: the later one is the first that counts
            values[name] = -(-at // 1000)
    if what.as_of is not None:
        values["as_of"] = what.as_of // 1000
    if what.last is not None:
        values["last"] = what.last
    return values


def _is_text(value: str) -> bool:
    """Whether it can be stored at all."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _where(what: Select, alias: str, done: Sequence[str] = ()) -> str:
    """The condition on a row without `last` and `as_of`, and without the columns in `done`."""
    terms = [f"{alias}.{name} = ANY (%(where_{name})s)" for name in what.where if name not in done]
    for name, op, at in (("start", ">=", what.start), ("end", "<", what.end)):
        if at is not None:
            terms.append(f"{alias}.{what.table.time} {op} {micros(name)}")
    first, second, *_ = (*what.table.key, "")
    if first not in what.where and second in what.where and not done:
        # few of the first and a seek for each, rather than a look at every row
        terms.append(f"{alias}.{first} = ANY (ARRAY({series(what.table, (first,))}))")
    return " AND ".join(terms) or "true"


def _newest(what: Select, values: Mapping[str, Any]) -> str:
    """The newest rows of each series: each is found by its end of the key's index."""
    table = what.table
    given = {
        name: f"%(where_{name})s::text[]" for name in table.series if f"where_{name}" in values
    }
    on = " AND ".join(f"t.{name} = s.{name}" for name in table.series)
    names = ", ".join(f"b.{column.name}" for column in table.columns)
    return f"""SELECT {names} FROM ({series(table, table.series, given)}) AS s CROSS JOIN LATERAL (
        SELECT * FROM {table.name} AS t WHERE {on} AND {_where(what, "t", table.series)}
        ORDER BY t.{table.time} DESC LIMIT %(last)s) AS b"""


def _known(what: Select) -> str:
    """Bars as they were known at `as_of`.

    That is what is stored, or where it came later, the last of the replaced versions that were
    known then: they can be several if the clock has gone back between two of them.
    """
    on = " AND ".join(f"{{0}}.{name} = h.{name}" for name in BARS.key)
    versions = {"created_at": "b.created_at", "updated_at": "h.known_from"}
    names = [column.name for column in BARS.columns]
    known = f"{{0}}.known_from <= {micros('as_of')} AND {{0}}.known_until > {micros('as_of')}"
    return f"""SELECT {", ".join(names)} FROM bars_ohlcv AS b
        WHERE updated_at <= {micros("as_of")} AND {_where(what, "b")}
        UNION ALL SELECT {", ".join(versions.get(name, f"h.{name}") for name in names)}
        FROM bars_ohlcv_history AS h JOIN bars_ohlcv AS b ON {on.format("b")}
        WHERE b.updated_at > {micros("as_of")} AND {known.format("h")} AND {_where(what, "h")}
        AND NOT EXISTS (SELECT FROM bars_ohlcv_history AS g
            WHERE {on.format("g")} AND g.id > h.id AND {known.format("g")})"""
