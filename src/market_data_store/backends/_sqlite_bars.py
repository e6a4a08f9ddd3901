"""How bars get into SQLite: fresh ones at full speed, others compared with what is stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import BadRow, WriteCounts
from market_data_core.errors import RejectedError
from market_data_store.sqlite_file import parts_of, row_marks

_KEY = "provider, symbol, interval, ts"
_VALUES = "open, high, low, close, volume, vwap, trade_count"
_COLUMNS = f"{_KEY}, {_VALUES}, state, created_at, updated_at"
_KEY_WIDTH, _WIDTH = 4, 14
PERMANENT = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeEncodeError,
)

STAGE = f"""CREATE TEMP TABLE IF NOT EXISTS staged (
    {_KEY.replace("ts", "ts INTEGER")}, {_VALUES}, state, created_at, updated_at)"""

_DIFFERS = " OR ".join(f"b.{name} IS NOT s.{name}" for name in _VALUES.split(", "))
# a stored bar gives way only to one that is made of at least as many events
_CHANGED = f"""(({_DIFFERS} OR b.state = 'gap' AND s.state <> 'gap')
    AND coalesce(s.trade_count >= b.trade_count, 1) AND NOT s.only_new)"""
_ON_KEY = " AND ".join(f"b.{name} = s.{name}" for name in _KEY.split(", "))
_JUDGED_WIDTH = 12
# of what is stored already, only the rows that differ are handed out, and nothing is written
_JUDGE = f"""WITH s ({_KEY}, {_VALUES}, state, i, only_new) AS (VALUES {{}})
    SELECT s.i, b.provider IS NULL, b.provider IS NOT NULL AND {_CHANGED},
    b.provider IS NOT NULL AND ({_DIFFERS})
    FROM s LEFT JOIN bars_ohlcv b ON {_ON_KEY}
    WHERE b.provider IS NULL OR {_DIFFERS} OR b.state = 'gap'"""
_TO_HISTORY = f"""INSERT INTO bars_ohlcv_history
    ({_KEY}, {_VALUES}, state, known_from, known_until)
    SELECT {", ".join("b." + c for c in f"{_KEY}, {_VALUES}".split(", "))},
    b.state, b.updated_at, s.updated_at
    FROM staged s JOIN bars_ohlcv b ON {_ON_KEY}"""
_SET = ", ".join(f"{name} = excluded.{name}" for name in _VALUES.split(", "))
_MERGE = f"""INSERT INTO bars_ohlcv AS b ({_COLUMNS})
    SELECT {_COLUMNS} FROM staged WHERE true ORDER BY {_KEY}
    ON CONFLICT ({_KEY}) DO UPDATE SET {_SET}, updated_at = excluded.updated_at,
    state = iif(excluded.state = 'gap', 'gap', 'revised')"""


@dataclass(slots=True)
class Written:
    """What writing one batch did.

    Attributes:
        counts: of all rows.
        changed: rows that are new or differ; None if all are new.
        kept: rows whose stored bar stays as it is, though it differs.
        bad: rows that can never be stored, and why.
    """

    counts: WriteCounts = field(default_factory=WriteCounts)
    changed: list[int] | None = None
    kept: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def _rows(batch: BarBatch, now_ns: int) -> list[tuple[Any, ...]]:
    n = len(batch)
    return list(
        zip(
            [batch.provider] * n,
            batch.symbol_column(),
            [batch.interval] * n,
            batch.ts.tolist(),
            batch.open.tolist(),
            batch.high.tolist(),
            batch.low.tolist(),
            batch.close.tolist(),
            batch.volume.tolist(),
            batch.vwap_column(),
            batch.count_column(),
            [batch.state] * n,
            [now_ns] * n,
            [now_ns] * n,
            strict=True,
        )
    )


def write_bars(db: sqlite3.Connection, batch: BarBatch, now_ns: int) -> Written:
    """Upsert `batch` inside the open transaction; a row that can never be stored is left out."""
    rows = _rows(batch, now_ns)
    out = Written()
    if _write_fresh(db, rows):
        out.counts.inserted = len(rows)
        return out
    out.changed = []
    _bisect(db, rows, 0, lambda part, at: _merge(db, part, at, batch.only_new, out), out)
    return out


def _write_fresh(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> bool:
    """Insert rows if none of their keys is taken; otherwise, or on any bad row, do nothing."""
    db.execute("SAVEPOINT fresh")
    fresh = True
    before = db.total_changes
    try:
        for at, part in parts_of(rows):
            marks = row_marks(len(part), _WIDTH)
            db.execute(
                f"INSERT INTO bars_ohlcv ({_COLUMNS}) VALUES {marks} ON CONFLICT DO NOTHING",
                [value for row in part for value in row],
            )
            fresh = db.total_changes - before == at + len(part)
            if not fresh:
                break
    except PERMANENT:
        fresh = False
    if not fresh:
        db.execute("ROLLBACK TO fresh")
    db.execute("RELEASE fresh")
    return fresh


def _bisect(
    db: sqlite3.Connection,
    rows: Sequence[tuple[Any, ...]],
    at: int,
    write: Callable[[Sequence[tuple[Any, ...]], int], None],
    out: Written,
) -> None:
    """Write all rows but those that fail even alone."""
    db.execute("SAVEPOINT part")
    try:
        write(rows, at)
    except PERMANENT as error:
        db.execute("ROLLBACK TO part")
        db.execute("RELEASE part")
        if len(rows) == 1:
            out.bad.append((at, f"{type(error).__name__}: {error}"))
            out.counts.bad += 1
            return
        half = len(rows) // 2
        _bisect(db, rows[:half], at, write, out)
        _bisect(db, rows[half:], at + half, write, out)
        return
    db.execute("RELEASE part")


def _merge(
    db: sqlite3.Connection,
    rows: Sequence[tuple[Any, ...]],
    at: int,
    only_new: bool,
    out: Written,
) -> None:
    """Compare rows with what is stored, and write those that differ; a key may come again."""
    judged = _judged(db, rows, only_new)
    starts = _rounds(rows) if judged else [0]
    if len(starts) == 1:
        _write_judged(db, rows, judged, at, out)
        return
    for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        part = rows[first:end]  # judged again, now that the rows before are stored
        _write_judged(db, part, _judged(db, part, only_new), at + first, out)


def _rounds(rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Where to cut, so that no key occurs twice in a part: the first index of each."""
    starts, seen = [0], set[tuple[Any, ...]]()
    for i, row in enumerate(rows):
        key = row[:_KEY_WIDTH]
        if key in seen:
            starts.append(i)
            seen.clear()
        seen.add(key)
    return starts


def _write_judged(
    db: sqlite3.Connection,
    rows: Sequence[tuple[Any, ...]],
    judged: Sequence[tuple[int, int, int, int]],
    at: int,
    out: Written,
) -> None:
    inserted = [i for i, new, _, _ in judged if new]
    updated = [i for i, _, changed, _ in judged if changed]
    kept = [at + i for i, _, changed, differs in judged if differs and not changed]
    if inserted or updated:
        db.execute("DELETE FROM staged")
        marks = ",".join("?" * _WIDTH)
        db.executemany(
            f"INSERT INTO staged VALUES ({marks})", [rows[i] for i in (*inserted, *updated)]
        )
        if updated:
            db.execute(_TO_HISTORY)
        db.execute(_MERGE)
    unchanged = len(rows) - len(inserted) - len(updated) - len(kept)
    counts = WriteCounts(len(inserted), len(updated), unchanged, len(kept))
    out.kept += kept
    out.counts.add(counts)  # only once the statements have passed: a failed part is undone whole
    out.changed = sorted([*(out.changed or ()), *(at + i for i in (*inserted, *updated))])


def _judged(
    db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], only_new: bool
) -> list[tuple[int, int, int, int]]:
    """Of the rows that are not stored as they are: index, new, to be updated, different."""
    found = []
    for at, part in parts_of(rows):
        marks = "(" + ",".join("?" * _JUDGED_WIDTH) + ",{},{})"
        listed = ",".join([marks.format(at + i, int(only_new)) for i in range(len(part))])
        values = [value for row in part for value in row[:_JUDGED_WIDTH]]
        found += db.execute(_JUDGE.format(listed), values).fetchall()
    return found


def bad_rows(batch: int, written: Written) -> list[BadRow]:
    """The batch's bad rows as the commit reports them."""
    return [BadRow(batch, row, error) for row, error in written.bad]


def write_all_bars(db: sqlite3.Connection, batches: Sequence[BarBatch], now_ns: int) -> WriteCounts:
    """Upsert all batches inside the open transaction.

    Raises:
        RejectedError: a row can never be stored; the transaction has to be undone.
    """
    counts = WriteCounts()
    for batch in batches:
        written = write_bars(db, batch, now_ns)
        for row, error in written.bad:
            bar = (batch.provider, batch.symbols[batch.codes[row]], batch.interval)
            msg = f"bars_ohlcv {(*bar, int(batch.ts[row]))} can never be stored: {error}"
            raise RejectedError(reason="unwritable", message=msg)
        counts.add(written.counts)
    return counts
