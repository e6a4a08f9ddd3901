"""How a PostgreSQL store stands, and the removal of what is too old."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from psycopg import AsyncConnection

from market_data_core.errors import UsageError
from market_data_core.tables import BARS, TABLES, Policy, StoreStatus, Table, TableStatus
from market_data_store.backends._postgres_link import UNLIMITED
from market_data_store.backends._postgres_query import micros, series
from market_data_store.backends._postgres_schema import BASE, EXTENSIONS, numbers
from market_data_store.migrations import migrations

_COUNTED_BYTES_MAX = 32 << 20
"""Rows of a table up to this size are counted, those of bigger ones estimated."""
_PAGES = 128
"""So many pages of a table are looked through in one transaction."""
_ROWS_PER_PAGE = 291
"""More do not fit."""
_ROLLUPS = ("bars_1m", "bars_5m", "bars_1h", "bars_1d")
_HISTORY = "bars_ohlcv_history"
_DAY_S = 86_400
Begin = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]
"""Begins a transaction."""
_HYPERTABLE = "hypertable_schema = current_schema() AND hypertable_name = %(table)s"
_POLICIES = """SELECT hypertable_name, split_part(proc_name, '_', 2), extract(epoch FROM
        coalesce(config ->> 'compress_after', config ->> 'drop_after')::interval)
    FROM timescaledb_information.jobs WHERE hypertable_schema = current_schema()
    AND proc_name IN ('policy_compression', 'policy_retention') ORDER BY 1, 2"""
_AGGREGATES = """SELECT view_name FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = current_schema()"""
_VIEWS = """SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace
    AND relkind = 'v' AND relname = ANY (%s) ORDER BY relname"""
_CHUNKS = f"""SELECT range_start, range_end FROM timescaledb_information.chunks
    WHERE {_HYPERTABLE} AND range_start < {micros("before")} ORDER BY range_start"""
_DROP = """SELECT count(*) FROM drop_chunks(%(table)s::regclass,
    older_than => %(end)s::timestamptz + interval '1 microsecond',
    newer_than => %(start)s::timestamptz - interval '1 microsecond')"""
# compressed rows that match are unpacked before they are deleted, at most so many by default
_UNBOUNDED = """SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'"""
# what somebody is writing is left for the next time: nobody waits for this, nor this for anybody
_DELETE = f"""DELETE FROM {{table}} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {{table}}
    WHERE ctid = ANY (ARRAY(SELECT format('(%%s,%%s)', page, item)::tid
        FROM generate_series(%(page)s::bigint, %(last)s::bigint) AS p (page),
        generate_series(1, {_ROWS_PER_PAGE}) AS i (item)))
    AND {{old}} FOR UPDATE SKIP LOCKED))"""


async def inspect(db: AsyncConnection[Any], name: str) -> StoreStatus:
    """How the store stands, inside the open transaction; `name` is the database's."""
    await db.execute(UNLIMITED)
    (version,) = await _row(db, "SHOW server_version")
    found = await db.execute(
        "SELECT extname, extversion FROM pg_extension WHERE extname = ANY (%s)", (list(EXTENSIONS),)
    )
    extensions = dict(await found.fetchall())
    return StoreStatus(
        name=name,
        version=f"PostgreSQL {version}",
        schema=(await numbers(db)).get(BASE, 0),
        schema_known=migrations(BASE)[-1].number,
        extensions=extensions,
        tables=[
            await _table(db, table)
            for table in TABLES.values()
            if await _row(db, "SELECT to_regclass(%s) IS NOT NULL", (table.name,)) == (True,)
        ],
    )


async def _row(db: AsyncConnection[Any], sql: str, values: Any = None) -> tuple[Any, ...]:
    row = await (await db.execute(sql.encode(), values)).fetchone()
    return row or ()


async def _table(db: AsyncConnection[Any], table: Table) -> TableStatus:
    if await _is_hypertable(db, table.name):
        rows, size = await _row(
            db,
            """SELECT coalesce(approximate_row_count(oid), 0), coalesce(hypertable_size(oid), 0)
                FROM to_regclass(%s) AS oid""",
            (table.name,),
        )
    else:
        rows, size = await _row(
            db,
            """SELECT reltuples::bigint, pg_total_relation_size(oid) FROM pg_class
                WHERE oid = to_regclass(%s)""",
            (table.name,),
        )
    if size <= _COUNTED_BYTES_MAX or rows <= 0:  # it may never have been analysed
        (rows,) = await _row(db, f"SELECT count(*) FROM {table.name}")
    first, last = await _row(db, _bounds(table))
    return TableStatus(table.name, rows, size, first, last)


def _bounds(table: Table) -> str:
    """The earliest and the latest time: by an index on it, or from the ends of each series."""
    ends = f"SELECT min({table.time}) AS first, max({table.time}) AS last FROM {table.name}"
    if table.key[-1] == table.time:
        on = " AND ".join(f"{table.name}.{name} = s.{name}" for name in table.series)
        ends = f"""SELECT min(e.first) AS first, max(e.last) AS last FROM
            ({series(table, table.series)}) AS s CROSS JOIN LATERAL ({ends} WHERE {on}) AS e"""
    nanos = "(extract(epoch FROM {}) * 1000000)::bigint * 1000"
    return f"SELECT {nanos.format('first')}, {nanos.format('last')} FROM ({ends}) AS ends"


async def _is_hypertable(db: AsyncConnection[Any], table: str) -> bool:
    there = "SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL"
    if await _row(db, there) != (True,):
        return False
    sql = f"SELECT EXISTS (SELECT FROM timescaledb_information.hypertables WHERE {_HYPERTABLE})"
    return await _row(db, sql, {"table": table}) == (True,)


async def policies(db: AsyncConnection[Any]) -> list[Policy]:
    """What is done to the tables, inside the open transaction."""
    found = []
    extended = await _row(db, "SELECT to_regclass('timescaledb_information.jobs') IS NOT NULL")
    if extended == (True,):
        for table, kind, age_s in await (await db.execute(_POLICIES)).fetchall():
            days = None if age_s is None else int(age_s) // _DAY_S
            found.append(Policy(kind, table, days, "timescaledb"))
        aggregates = await (await db.execute(_AGGREGATES)).fetchall()
    else:
        aggregates = []
    for (name,) in await (await db.execute(_VIEWS, (list(_ROLLUPS),))).fetchall():
        found.append(
            Policy("rollup", name, None, "timescaledb" if (name,) in aggregates else "view")
        )
    return found


# ---- retention -----------------------------------------------------------------------------


async def retain(begin: Begin, table: Table, before: int, interval: str | None) -> int:
    """Delete rows whose time is before `before` (UTC ns); returns how many.

    A transaction is over a few pages of a table, or one chunk of a hypertable: writers wait for
    none of them for long.

    Raises:
        UsageError: an interval is given for what has none.
    """
    if interval is not None and table is not BARS:
        msg = f"interval {interval!r}: {table.name} has no intervals, only bars have"
        raise UsageError(msg)
    values = {"before": -(-before // 1000), "interval": interval}
    old = f"{table.time} < {micros('before')}"
    if interval is not None:
        old += " AND interval = %(interval)s"
    async with begin() as db:
        extended = await _is_hypertable(db, table.name)
    if extended:
        deleted = await _delete_chunks(begin, table, old, values)
    else:
        deleted = await _delete_pages(begin, table.name, old, values)
    if table is BARS:  # afterwards: versions of a bar that is gone are never read
        await _delete_pages(begin, _HISTORY, old, values)
    return deleted


async def _delete_pages(begin: Begin, table: str, old: str, values: dict[str, Any]) -> int:
    """Delete old rows of a plain table, going through it once."""
    deleted, page, pages = 0, 0, 1
    sql = _DELETE.format(table=table, old=old).encode()
    while page < pages:
        async with begin() as db:
            (pages,) = await _row(
                db,
                "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint",
                (table,),
            )
            deleted += (
                await db.execute(sql, values | {"page": page, "last": page + _PAGES - 1})
            ).rowcount
        page += _PAGES
    return deleted


async def _delete_chunks(begin: Begin, table: Table, old: str, values: dict[str, Any]) -> int:
    """Delete old rows of a hypertable; chunks of which nothing is to stay are dropped."""
    deleted = 0
    async with begin() as db:
        found = await db.execute(_CHUNKS.encode(), values | {"table": table.name})
        chunks = await found.fetchall()
    for start, end in chunks:
        given = values | {"table": table.name, "start": start, "end": end}
        within = f"{old} AND {table.time} >= %(start)s AND {table.time} < %(end)s"
        async with begin() as db:
            await db.execute(UNLIMITED)
            whole = f"SELECT %(interval)s::text IS NULL AND %(end)s <= {micros('before')}"
            if await _row(db, whole, given) == (True,):
                (count,) = await _row(
                    db, f"SELECT count(*) FROM {table.name} WHERE {within}", given
                )
                await _row(db, _DROP, given)
                deleted += count
            else:
                await db.execute(_UNBOUNDED)
                cursor = await db.execute(
                    f"DELETE FROM {table.name} WHERE {within}".encode(), given
                )
                deleted += cursor.rowcount
    return deleted
