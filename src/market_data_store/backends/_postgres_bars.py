"""How bars get into PostgreSQL: compared with what is stored, and only what differs is written.

What is stored in the bars' ranges is read as a few arrays and compared here. So bars that are
unchanged write nothing at all, and where nothing is stored the bars can be copied straight in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, Error, sql
from psycopg.errors import FeatureNotSupported, UniqueViolation

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import RejectedError, TransientError
from market_data_store.backends._postgres_arrays import (
    Texts,
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
    Segment,
    Series,
    Stored,
)

_COPY_ROWS_MIN = 200
"""From so many new bars on COPY is quicker than one INSERT of arrays (0.93 to 0.96 ms for 200)."""
_AT_ONCE_MIN = 16
"""For so many series on average it is worth while to look up those of one time together."""
_SERIES_MAX = 200_000
_NEVER_US, _ALWAYS_US = -(2**63), 2**63 - 1
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
# the same of one bar of each of many series that differ in nothing else; the quicker for it
_FIND_AT = f"""SELECT b.*, k.series FROM unnest(%(symbol)s) WITH ORDINALITY AS k (symbol, series)
    CROSS JOIN LATERAL (SELECT {_COLUMNS}, state FROM bars_ohlcv WHERE provider = %(provider)s
    AND symbol = k.symbol AND interval = %(interval)s AND ts = (%(start)s)[1] OFFSET 0) AS b"""
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
_SET = f"""SET ({", ".join(VALUES)}, trade_count, state, updated_at) = ROW (
    {", ".join(f"excluded.{name}" for name in VALUES)}, excluded.trade_count,
    CASE excluded.state WHEN 'gap' THEN 'gap' ELSE 'revised' END, excluded.updated_at)"""
# a row in the way is locked before the condition is looked at
_UNPACK = f"{_INSERT} ON CONFLICT ({_KEY}) DO UPDATE {_SET} WHERE false"
_UPDATE = f"""WITH replaced AS (
        INSERT INTO bars_ohlcv_history ({_COLUMNS}, state, known_from, known_until)
        SELECT {", ".join(f"b.{name}" for name in _COLUMNS.split(", "))}, b.state, b.updated_at,
        n.now FROM {_GIVEN} JOIN bars_ohlcv AS b ON {_ON_KEY}, unnest(%(now)s) AS n (now))
    {_INSERT} ON CONFLICT ({_KEY}) DO UPDATE {_SET}"""


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
        known = zip(series, starts, strict=True)  # unless it was forgotten meanwhile
        return all(last_us.get(one, _ALWAYS_US) < start for one, start in known)

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

    All that is new is inserted before anything that is there is locked, both in the order of keys.
    So whoever waits for a lock is not waited for by who has it: what has only been inserted,
    nobody can see to lock.

    Raises:
        TransientError: others kept changing the same bars.
    """
    for wave in rows.waves():
        await _write(db, rows, wave, now_us, frontier)
        new = wave[rows.fate[wave] == NEW]
        if len(new):
            frontier.advance(rows, new)


async def write_all_bars(
    db: AsyncConnection[Any], batches: Sequence[BarBatch], now_us: int, frontier: Frontier
) -> WriteCounts:
    """Upsert all batches inside the open transaction.

    Raises:
        RejectedError: a row can never be stored; the transaction has to be undone.
    """
    rows = Rows(batches)
    if len(rows):
        await write_bars(db, rows, now_us, frontier)
    for at, error in sorted(rows.errors.items()):
        ts = int(batches[rows.batch[at]].ts[rows.row[at]])
        msg = f"bars_ohlcv {(*rows.series[rows.rank[at]], ts)} can never be stored: {error}"
        raise RejectedError(reason="unwritable", message=msg)
    return rows.counts()


async def _write(
    db: AsyncConnection[Any], rows: Rows, wave: Index, now_us: int, frontier: Frontier
) -> None:
    """Write rows of distinct keys."""
    left = wave
    for _ in range(_ROUNDS_MAX):
        if await frontier.is_below(db, rows, left):
            rows.fate[left] = NEW
        else:
            await _compare(db, rows, left, _FIND)
        left = await _insert(db, rows, left[rows.fate[left] == NEW], now_us)
        if len(left):  # others have inserted them meanwhile
            frontier.forget(rows, left)
            continue
        there = wave[rows.may_change(wave)]
        if not len(there):
            return
        await _lock(db, rows, there, now_us)  # what was seen may have been replaced
        await _update(db, rows, there[rows.fate[there] == UPDATED], now_us)
        wave = left = there[rows.fate[there] == NEW]  # others have deleted them meanwhile
        if not len(left):
            return
        frontier.forget(rows, left)
    msg = "the same bars are being written by others all the time"
    raise TransientError(msg)


async def _insert(db: AsyncConnection[Any], rows: Rows, new: Index, now_us: int) -> Index:
    """Insert rows of distinct keys; returns those that are not new after all."""

    async def insert(part: Index) -> None:
        if len(part) < _COPY_ROWS_MIN:
            await db.execute(_INSERT, _given(rows, part, now_us), binary=True)
            return
        async with db.cursor() as cursor, cursor.copy(_COPY) as copy:
            await copy.write(_copied(rows, part, now_us))

    return await _all_but_bad(db, rows, new, insert)


async def _update(db: AsyncConnection[Any], rows: Rows, changed: Index, now_us: int) -> None:
    """Replace what is stored under the keys of `changed`, which is locked."""

    async def update(part: Index) -> None:
        await db.execute(_UPDATE, _given(rows, part, now_us), binary=True)

    await _all_but_bad(db, rows, changed, update)


async def _lock(db: AsyncConnection[Any], rows: Rows, wave: Index, now_us: int) -> None:
    """Lock what is stored under the keys of `wave`, and judge by it."""
    try:
        async with db.transaction():
            await _compare(db, rows, wave, _LOCK)
    except FeatureNotSupported:  # by TimescaleDB, of compressed rows: they are unpacked first
        await db.execute(_UNPACK, _given(rows, wave, now_us), binary=True)
        await _compare(db, rows, wave, _FIND)


async def _compare(db: AsyncConnection[Any], rows: Rows, wave: Index, found: str) -> None:
    """Read what is stored under the keys of `wave`, and judge by it."""
    ranges = rows.segments(wave, exact=found is _LOCK)
    moments_of = rows.together(ranges, _AT_ONCE_MIN) if found is _FIND else []
    if moments_of:
        parts = [await _found_at(db, rows, ranges, some) for some in moments_of]
    else:
        parts = [await _found(db, rows, ranges, found)]
    rank, ts, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    at, hit = rows.match(wave, rank, ts)
    stored = Stored(
        at,
        [column[hit] for column in columns[: len(VALUES)]],
        columns[-2][hit],
        columns[-1][hit] > 0,
    )
    rows.judge(wave, stored)


async def _found(
    db: AsyncConnection[Any], rows: Rows, ranges: Segment, found: str
) -> list[NDArray[Any]]:
    """Stored bars of `ranges` as columns: rank of the series, ts, values, count, whether a gap."""
    values = _names([rows.series[rank] for rank in ranges.series.tolist()])
    values |= {"start": moments(ranges.start_us), "series": integers(ranges.series)}
    if found is _FIND:
        values["end"] = moments(ranges.end_us)
    cursor = await db.execute(sql.SQL(_AS_ARRAYS).format(sql.SQL(found)), values, binary=True)
    rank, *cells = next(raw_rows(cursor))
    return [read_integers(rank), *_columns(cells)]


async def _found_at(
    db: AsyncConnection[Any], rows: Rows, ranges: Segment, some: Index
) -> list[NDArray[Any]]:
    """The same of some of the ranges: single bars of one provider, interval and time."""
    ranks = ranges.series[some]
    series = [rows.series[rank] for rank in ranks.tolist()]
    values = {
        "provider": series[0][0],
        "symbol": _array(tuple(symbol for _, symbol, _ in series)),
        "interval": series[0][2],
        "start": moments(ranges.start_us[some[:1]]),
    }
    cursor = await db.execute(sql.SQL(_AS_ARRAYS).format(sql.SQL(_FIND_AT)), values, binary=True)
    number, *cells = next(raw_rows(cursor))
    return [ranks[read_integers(number) - 1], *_columns(cells)]


def _columns(cells: Sequence[bytes | None]) -> list[NDArray[Any]]:
    ts, *values = cells[: len(VALUES) + 1]
    count, gap = cells[len(VALUES) + 1 :]
    return [
        read_moments(ts),
        *(read_floats(value) for value in values),
        read_integers(count),
        read_integers(gap),
    ]


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


@lru_cache(maxsize=8)
def _array(names: tuple[str, ...]) -> Texts:
    return texts(names)  # live batches hold the same symbols again and again


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
