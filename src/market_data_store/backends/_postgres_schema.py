"""The schema of a PostgreSQL store: its steps, up and down, and those of its extensions."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from market_data_core.errors import UsageError
from market_data_store.backends._postgres_link import UNLIMITED
from market_data_store.migrations import Migration, migrations

BASE = "postgres"
EXTENSIONS = {"timescaledb": "timescale"}
"""Extension -> steps that are taken where it is installed."""
_REST_ON = {"timescale": {1: 1, 2: 1, 3: 2, 4: 2}}
"""Number of an extension's step -> the step of the base that has to be taken for it."""
_MIGRATING = 0x6D64702E736368
"""The advisory lock that whoever migrates holds."""


async def migrate(db: AsyncConnection[Any], name: str) -> None:
    """Take all steps that are missing, inside the open transaction; `name` is the database's."""
    await _begin(db)
    for dialect, step in await steps_ahead(db, name):
        await db.execute(step.up.encode())
        await db.execute(
            "INSERT INTO mdp_schema VALUES (%s, %s, %s)", (dialect, step.number, step.name)
        )


async def migrate_down(db: AsyncConnection[Any], name: str, to: int) -> None:
    """Take steps back until the base is at step `to`, inside the open transaction.

    An extension's steps go before the step of the base that they rest on.
    """
    await _begin(db)
    await steps_ahead(db, name)  # refuses what it does not know
    taken = await numbers(db)
    base = [step for step in migrations(BASE) if step.number <= taken.get(BASE, 0)]
    below = [0, *(step.number for step in base[:-1])] if base else []
    if to not in below:
        known = f"give one of {', '.join(map(str, below))}" if below else "it has none at all"
        msg = f"{name}: the schema cannot go down to step {to}; {known}"
        raise UsageError(msg)
    back = [(step.number, 0, BASE, step) for step in base]
    for dialect, rests_on in _REST_ON.items():
        steps = [step for step in migrations(dialect) if step.number <= taken.get(dialect, 0)]
        back += [(rests_on[step.number], step.number, dialect, step) for step in steps]
    for rests_on_step, _, dialect, step in sorted(back, key=lambda b: b[:2], reverse=True):
        if rests_on_step > to:
            await db.execute(step.down.encode())
            await db.execute(
                "DELETE FROM mdp_schema WHERE dialect = %s AND number = %s", (dialect, step.number)
            )


async def steps_ahead(db: AsyncConnection[Any], name: str) -> list[tuple[str, Migration]]:
    """The steps that have not been taken, in order.

    Raises:
        UsageError: the schema is newer than this release.
    """
    taken = await numbers(db)
    found = await db.execute(
        "SELECT extname FROM pg_extension WHERE extname = ANY (%s)", (list(EXTENSIONS),)
    )
    dialects = [BASE, *(EXTENSIONS[extension] for (extension,) in await found.fetchall())]
    steps = []
    for dialect in dialects:
        known = migrations(dialect)
        number = taken.get(dialect, 0)
        if number > known[-1].number:
            msg = (
                f"{name} has schema {number} ({dialect}), this release knows "
                f"{known[-1].number}; use a newer release"
            )
            raise UsageError(msg)
        steps += [(dialect, step) for step in known if step.number > number]
    return steps


async def numbers(db: AsyncConnection[Any]) -> dict[str, int]:
    """Dialect -> its newest step that has been taken."""
    there = await db.execute("SELECT to_regclass('mdp_schema') IS NOT NULL")
    if await there.fetchone() != (True,):
        return {}
    rows = await db.execute("SELECT dialect, max(number) FROM mdp_schema GROUP BY 1")
    return dict(await rows.fetchall())


async def _begin(db: AsyncConnection[Any]) -> None:
    """Wait for others that migrate, and see what they have done.

    A session that has looked for a table in vain goes on believing that there is none, until it
    takes a lock that is not an advisory one; making the table, if need be, takes one.
    """
    await db.execute(UNLIMITED)
    await db.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
    await db.execute(
        """CREATE TABLE IF NOT EXISTS mdp_schema (dialect text, number integer,
            name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (dialect, number))"""
    )
