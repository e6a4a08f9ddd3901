"""The schema of a SQLite store, how it stands, and the removal of what is too old."""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path
from typing import Any

from market_data_core.errors import UsageError
from market_data_core.tables import BARS, TABLES, Policy, StoreStatus, Table, TableStatus
from market_data_store.backends._sqlite_read import prefix, series
from market_data_store.migrations import Migration, migrations

_DELETED_MAX = 10_000
"""So many rows are deleted in one transaction, for writers wait meanwhile."""
_ROLLUPS = ("bars_1m", "bars_5m", "bars_1h", "bars_1d")


def steps_ahead(db: sqlite3.Connection, path: Path) -> list[Migration]:
    """The steps that the schema lacks.

    Raises:
        UsageError: the schema is newer than this release.
    """
    steps, version = migrations("sqlite"), _version(db)
    if version > steps[-1].number:
        msg = (
            f"{path} has schema {version}, this release knows {steps[-1].number}; "
            "use a newer release"
        )
        raise UsageError(msg)
    return [step for step in steps if step.number > version]


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Take all steps that are missing, inside the open transaction."""
    for step in steps_ahead(db, path):
        _run(db, step.up)
        db.execute(f"PRAGMA user_version = {step.number}")


def migrate_down(db: sqlite3.Connection, path: Path, to: int) -> None:
    """Take steps back until the schema is at step `to`, inside the open transaction."""
    ahead = {step.number for step in steps_ahead(db, path)}
    taken = [step for step in migrations("sqlite") if step.number not in ahead]
    below = [0, *(step.number for step in taken[:-1])] if taken else []
    if to not in below:
        known = f"give one of {', '.join(map(str, below))}" if below else "it has none at all"
        msg = f"{path}: the schema cannot go down to step {to}; {known}"
        raise UsageError(msg)
    for step in reversed(taken):
        if step.number > to:
            _run(db, step.down)
    db.execute(f"PRAGMA user_version = {to}")


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _run(db: sqlite3.Connection, script: str) -> None:
    """Execute a migration's statements (none of ours holds a semicolon inside)."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    for statement in "\n".join(lines).split(";"):
        if statement.strip():
            db.execute(statement)


def inspect(db: sqlite3.Connection, path: Path) -> StoreStatus:
    """How the store stands; all of it as of one moment."""
    db.execute("BEGIN")
    try:
        there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
        return StoreStatus(
            name=f"sqlite {path}",
            version=f"SQLite {sqlite3.sqlite_version}",
            schema=_version(db),
            schema_known=migrations("sqlite")[-1].number,
            extensions={},
            tables=[_table(db, table) for name, table in TABLES.items() if name in there],
        )
    finally:
        db.execute("ROLLBACK")


def _table(db: sqlite3.Connection, table: Table) -> TableStatus:
    rows, first, last = db.execute(
        f"SELECT count(*), min({table.time}), max({table.time}) FROM {table.name}"
    ).fetchone()
    return TableStatus(table.name, rows, _size(db, table), first, last)


def _size(db: sqlite3.Connection, table: Table) -> int | None:
    try:
        (size,) = db.execute(
            """SELECT sum(pgsize) FROM dbstat WHERE aggregate = true
                AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name = ?)""",
            (table.name,),
        ).fetchone()
    except sqlite3.OperationalError:  # SQLite was built without it
        return None
    return int(size)


def policies(db: sqlite3.Connection) -> list[Policy]:
    """The roll-ups that there are."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")}
    return [Policy("rollup", name, None, "view") for name in _ROLLUPS if name in there]


def stretches(db: sqlite3.Connection, table: Table, interval: str | None) -> deque[tuple[Any, ...]]:
    """The parts of a table within which its key is in the order of time.

    Raises:
        UsageError: an interval is given for what has none.
    """
    if interval is not None and table is not BARS:
        msg = f"interval {interval!r}: {table.name} has no intervals, only bars have"
        raise UsageError(msg)
    columns = prefix(table)
    if not columns:
        return deque([()])
    where = {} if interval is None else {"interval": [interval]}
    return deque(db.execute(*series(table, columns, where)).fetchall())


def delete_some(
    db: sqlite3.Connection, table: Table, before: int, rest: deque[tuple[Any, ...]]
) -> int:
    """Delete rows older than `before` (UTC ns) from the stretches in `rest`.

    Only about so many as one transaction should; stretches that are done are taken out of `rest`.
    """
    deleted, budget = 0, _DELETED_MAX
    where = " AND ".join([*(f"{name} = ?" for name in prefix(table)), f"{table.time} < ?"])
    while rest and budget > 0:
        found = db.execute(
            f"""SELECT {table.time} + 1 FROM {table.name} WHERE {where}
                ORDER BY {table.time} LIMIT 1 OFFSET ?""",
            (*rest[0], before, budget - 1),
        ).fetchone()
        until = (*rest[0], found[0] if found else before)
        count = db.execute(f"DELETE FROM {table.name} WHERE {where}", until).rowcount
        if table is BARS and count:
            db.execute(f"DELETE FROM bars_ohlcv_history WHERE {where}", until)
        deleted, budget = deleted + count, budget - count - 1
        if not found:
            rest.popleft()
    return deleted
