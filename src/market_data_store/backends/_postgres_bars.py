"""How bars get into PostgreSQL: compared with what is stored, and only what differs is written.

What is stored in the bars' ranges is read as a few arrays and compared here. So bars that are
unchanged write nothing at all, and where nothing is stored the bars can be copied straight in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from psycopg import AsyncConnection, Error, sql
from psycopg.errors import UniqueViolation

from market_data_core.errors import TransientError
from market_data_store.backends._postgres_arrays import (
    copy_rows,
    floats,
    integers,
    moments,
    raw_rows,
    read_floats,
    read_integers,
    read_moments,
    texts,
)
from market_data_store.backends._postgres_rows import (
    NEW,
    UPDATED,
    VALUES,
    Index,
    Rows,
    Series,
    Stored,
)

_COPY_ROWS_MIN = 200
"""From so many new bars on COPY is quicker than one INSERT of arrays (0.93 to 0.96 ms for 200)."""
_SERIES_MAX = 200_000
_NEVER_US = -(2**63)
_ROUNDS_MAX = 20
_PERMANENT = ("22", "23", "54")
"""SQLSTATE classes of errors that are about the data: they would come again."""

_KEY = "provider, symbol, interval, ts"
_COLUMNS = f"{_KEY}, {', '.join(VALUES)}, trade_count"
_COPY = f"""COPY bars_ohlcv (provider, symbol, interval, state, ts, {", ".join(VALUES)},
    trade_count, created_at, updated_at) FROM STDIN (FORMAT binary)"""
_GIVEN = f"""unnest(%(provider)s, %(symbol)s, %(interval)s, %(ts)s, %(open)s, %(high)s, %(low)s,
    %(close)s, %(volume)s, %(vwap)s, %(trade_count)s, %(state)s) AS s ({_COLUMNS}, state)"""
# arrays have no nulls in them, so that every element has the same width
_FILLED = "nullif(s.vwap, 'NaN'), nullif(s.trade_count, -1)"
_PLAIN = ", ".join(f"s.{name}" for name in (*_KEY.split(", "), *VALUES[:-1]))
_ON_KEY = " AND ".join(f"b.{name} = s.{name}" for name in _KEY.split(", "))
_INSERT = f"""INSERT INTO bars_ohlcv ({_COLUMNS}, state, created_at, updated_at)
    SELECT {_PLAIN}, {_FILLED}, s.state, n.now, n.now
    FROM {_GIVEN}, unnest(%(now)s) AS n (now)"""
_FIND = f"""SELECT b.*, k.series FROM unnest(%(provider)s, %(symbol)s, %(interval)s,
    %(start)s, %(end)s, %(series)s) AS k (provider, symbol, interval, low_ts, high_ts, series)
    CROSS JOIN LATERAL (SELECT {_COLUMNS}, state FROM bars_ohlcv WHERE provider = k.provider
    AND symbol = k.symbol AND interval = k.interval AND ts BETWEEN k.low_ts AND k.high_ts
    OFFSET 0) AS b"""
# the order of the key, so that no two writers wait for each other
_LOCK = f"""SELECT b.*, k.series FROM unnest(%(provider)s, %(symbol)s, %(interval)s,
    %(start)s, %(series)s) AS k (provider, symbol, interval, ts, series)
    JOIN bars_ohlcv AS b ON {_ON_KEY.replace("s.", "k.")}
    ORDER BY b.provider, b.symbol, b.interval, b.ts FOR NO KEY UPDATE OF b"""
_LAST = """SELECT array_agg(k.series), array_agg(b.ts)
    FROM unnest(%(provider)s, %(symbol)s, %(interval)s, %(series)s)
    AS k (provider, symbol, interval, series)
    CROSS JOIN LATERAL (SELECT ts FROM bars_ohlcv WHERE provider = k.provider
    AND symbol = k.symbol AND interval = k.interval ORDER BY ts DESC LIMIT 1) AS b"""
_AS_ARRAYS = f"""SELECT array_agg(f.series), array_agg(f.ts),
    {", ".join(f"array_agg(f.{name})" for name in VALUES[:-1])},
    array_agg(coalesce(f.vwap, 'NaN')), array_agg(coalesce(f.trade_count, -1)),
    array_agg((f.state = 'gap')::int::bigint) FROM ({{}}) AS f"""
_UPDATE = f"""WITH s AS MATERIALIZED (SELECT s.*, n.now FROM {_GIVEN}, unnest(%(now)s) AS n (now)),
    replaced AS (INSERT INTO bars_ohlcv_history ({_COLUMNS}, state, known_from, known_until)
        SELECT {", ".join(f"b.{name}" for name in _COLUMNS.split(", "))}, b.state, b.updated_at,
        s.now FROM s JOIN bars_ohlcv AS b ON {_ON_KEY})
    UPDATE bars_ohlcv AS b SET ({", ".join(VALUES[:-1])}, vwap, trade_count, state, updated_at)
    = ROW ({", ".join(f"s.{name}" for name in VALUES[:-1])}, {_FILLED},
    CASE s.state WHEN 'gap' THEN 'gap' ELSE 'revised' END, s.now) FROM s WHERE {_ON_KEY}"""


class Frontier:
    """Up to where bars of each series are known to be stored.

    What lies above is new, unless somebody else writes the same series; that is then noticed
    when it is written, so nothing but speed depends on what is known here.
    """

    def __init__(self) -> None:
        self._last_us: dict[Series, int] = {}

    async def is_below(self, db: AsyncConnection[Any], rows: Rows, wave: Index) -> bool:
        """Whether all rows of `wave` are above it."""
        spans = rows.spans(wave)
        series = [rows.series[rank] for rank in spans.series.tolist()]
        unknown = [one for one in series if one not in self._last_us]
        if unknown:
            await self._look_up(db, unknown)
        last_us = self._last_us
        starts = spans.start_us.tolist()
        return all(last_us[one] < start for one, start in zip(series, starts, strict=True))

    async def _look_up(self, db: AsyncConnection[Any], series: list[Series]) -> None:
        if len(self._last_us) + len(series) > _SERIES_MAX:
            self._last_us.clear()
        values = _names(series) | {"series": integers(np.arange(len(series)))}
        found, last = next(raw_rows(await db.execute(_LAST, values, binary=True)))
        self._last_us |= dict.fromkeys(series, _NEVER_US)
        for i, ts in zip(read_integers(found).tolist(), read_moments(last).tolist(), strict=True):
            self._last_us[series[i]] = ts

    def advance(self, rows: Rows, wave: Index) -> None:
        """Rows of `wave` have been written, perhaps: to undo that needs no word."""
        spans = rows.spans(wave)
        for rank, end in zip(spans.series.tolist(), spans.end_us.tolist(), strict=True):
            series = rows.series[rank]
            if self._last_us.get(series, end) < end:
                self._last_us[series] = end

    def forget(self, rows: Rows, wave: Index) -> None:
        """Somebody else writes these series too."""
        for rank in rows.spans(wave).series.tolist():
            self._last_us.pop(rows.series[rank], None)


async def write_bars(db: AsyncConnection[Any], rows: Rows, now_us: int, frontier: Frontier) -> None:
    """Upsert `rows` inside the open transaction, and note in them what became of each.

    Raises:
        TransientError: others kept changing the same bars.
    """
    for wave in rows.waves():
        left = wave
        for _ in range(_ROUNDS_MAX):
            if await frontier.is_below(db, rows, left):
                rows.fate[left] = NEW
            else:
                await _compare(db, rows, left, _FIND)
            left = await _write(db, rows, left, now_us)
            if not len(left):
                break
            frontier.forget(rows, left)
        else:
            msg = "the same bars are being written by others all the time"
            raise TransientError(msg)
        frontier.advance(rows, wave)


async def _write(db: AsyncConnection[Any], rows: Rows, wave: Index, now_us: int) -> Index:
    """Write rows of distinct keys; returns those that somebody else has inserted meanwhile."""
    changed = wave[rows.fate[wave] == UPDATED]
    if len(changed):
        await _compare(db, rows, changed, _LOCK)  # again: what was seen may have been replaced
        changed = changed[rows.fate[changed] == UPDATED]

        async def update(part: Index) -> None:
            await db.execute(_UPDATE, _given(rows, part, now_us), binary=True)

        await _all_but_bad(db, rows, changed, update)
    new = wave[rows.fate[wave] == NEW]

    async def insert(part: Index) -> None:
        if len(part) < _COPY_ROWS_MIN:
            await db.execute(_INSERT, _given(rows, part, now_us), binary=True)
            return
        async with db.cursor() as cursor, cursor.copy(_COPY) as copy:
            await copy.write(_copied(rows, part, now_us))

    return await _all_but_bad(db, rows, new, insert)


async def _compare(db: AsyncConnection[Any], rows: Rows, wave: Index, found: str) -> None:
    """Read what is stored under the keys of `wave`, and judge by it."""
    ranges = rows.segments(wave, exact=found is _LOCK)
    query = sql.SQL(_AS_ARRAYS).format(sql.SQL(found))
    values = _names([rows.series[rank] for rank in ranges.series.tolist()])
    values |= {"start": moments(ranges.start_us), "series": integers(ranges.series)}
    if found is _FIND:
        values["end"] = moments(ranges.end_us)
    cursor = await db.execute(query, values, binary=True)
    rank, ts, *columns = next(raw_rows(cursor))
    at, hit = rows.match(wave, read_integers(rank), read_moments(ts))
    stored = Stored(
        at,
        [read_floats(column)[hit] for column in columns[: len(VALUES)]],
        read_integers(columns[-2])[hit],
        read_integers(columns[-1])[hit] > 0,
    )
    rows.judge(wave, stored)


async def _all_but_bad(
    db: AsyncConnection[Any], rows: Rows, part: Index, write: Callable[[Index], Awaitable[None]]
) -> Index:
    """Write all rows but those that fail even alone; returns those that are not new after all."""
    if not len(part):
        return part
    try:
        async with db.transaction():
            await write(part)
    except UniqueViolation:
        return part
    except Error as error:
        if not (error.sqlstate or "").startswith(_PERMANENT):
            raise
        if len(part) == 1:
            rows.refuse(int(part[0]), f"{type(error).__name__}: {error.diag.message_primary}")
            return part[:0]
    else:
        return part[:0]
    half = len(part) // 2
    return np.concatenate(
        [await _all_but_bad(db, rows, some, write) for some in (part[:half], part[half:])]
    )


def _names(series: Sequence[Series]) -> dict[str, Any]:
    """Parameters with the names of `series`."""
    return {
        name: texts(one[i] for one in series)
        for i, name in enumerate(("provider", "symbol", "interval"))
    }


def _given(rows: Rows, part: Index, now_us: int) -> dict[str, Any]:
    """Parameters of the statements that take bars as arrays."""
    return {
        **_names([rows.series[rank] for rank in rows.rank[part].tolist()]),
        "ts": moments(rows.ts_us[part]),
        **{name: floats(column[part]) for name, column in zip(VALUES, rows.values, strict=True)},
        "trade_count": integers(rows.count[part]),
        "state": texts(rows.states(part)),
        "now": moments(np.array([now_us])),
    }


def _copied(rows: Rows, part: Index, now_us: int) -> bytes:
    heads, head_of = rows.heads(part)
    values = [column[part] for column in rows.values]
    return copy_rows(heads, head_of, rows.ts_us[part], values, rows.count[part], now_us)
