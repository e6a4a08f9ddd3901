"""The store on a PostgreSQL server, 13 or newer; shared by any number of processes and machines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import AsyncConnection

from market_data_core.clock import Clock, SystemClock
from market_data_core.contracts.store import (
    Claim,
    CommitResult,
    Gap,
    Group,
    Message,
    OutboxItem,
    PartitionKey,
    PartitionStatus,
)
from market_data_core.errors import TransientError, UsageError
from market_data_core.registry import Backend
from market_data_store.backends._postgres_arrays import integers
from market_data_store.backends._postgres_bars import Frontier
from market_data_store.backends._postgres_groups import MESSAGE, MINE, commit_groups, row_of
from market_data_store.backends._postgres_link import Link
from market_data_store.backends._postgres_read import read_bars
from market_data_store.migrations import Migration, migrations

if TYPE_CHECKING:
    import polars as pl

_DIALECT = "postgres"
_EXTENSIONS = {"timescaledb": "timescale"}
"""Extension -> steps that are taken where it is installed."""
_MIGRATING = 0x6D64702E736368
"""The advisory lock that whoever migrates holds."""
# rows are always locked in the order of their key, so that no two transactions wait for each other
_LOCK_OWN = """WITH own AS MATERIALIZED (
    SELECT consumer_group, topic, partition FROM partitions
    WHERE consumer_group = %s AND topic = %s AND {} ORDER BY 1, 2, 3 FOR UPDATE)"""
_IS_OWN = """partitions.consumer_group = own.consumer_group AND partitions.topic = own.topic
    AND partitions.partition = own.partition"""
_RENEW = f"""{
    _LOCK_OWN.format("owner = %s AND (partition, token) IN (SELECT * FROM unnest(%s, %s))")
}
    UPDATE partitions SET heartbeat = %s FROM own WHERE {_IS_OWN}"""
_FREE = f"""{_LOCK_OWN.format("owner = %s")}
    UPDATE partitions SET owner = '', heartbeat = 0 FROM own WHERE {_IS_OWN}"""
_FORGET = f"""{_LOCK_OWN.format("true")}
    DELETE FROM partitions USING own WHERE {_IS_OWN} RETURNING token"""
# members that are at it themselves are left alone: waiting for each other they might wait for ever
_SILENT = """DELETE FROM members WHERE (consumer_group, topic, member) IN (
    SELECT consumer_group, topic, member FROM members
    WHERE consumer_group = %s AND topic = %s AND heartbeat < %s FOR UPDATE SKIP LOCKED)"""


class PostgresStore:
    """Implements :class:`market_data_core.contracts.store.Store` on a PostgreSQL database.

    Nothing is connected to before the first call.

    Args:
        uri: ``postgresql://user:password@host:port/database?…`` with libpq's parameters
            (``sslmode``, ``application_name``, …) and ``pool_size``, ``statement_timeout_ms``,
            ``lock_timeout_ms``.
        clock: tells the time of leases and bookkeeping.

    Raises:
        UsageError: the URI is wrong.
    """

    def __init__(self, uri: str, clock: Clock | None = None) -> None:
        self._link = Link(uri)
        self._clock = clock or SystemClock()
        self._frontier = Frontier()
        self._in_doubt: set[tuple[str, str]] = set()

    async def migrate(self) -> None:
        """Bring the schema to this release's version; several processes may do it at once."""
        async with self._link.transaction() as db:
            await db.execute("SET LOCAL statement_timeout = 0")
            await db.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
            for dialect, step in await self._steps(db):
                await db.execute(
                    """CREATE TABLE IF NOT EXISTS mdp_schema (dialect text, number integer,
                        name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),
                        PRIMARY KEY (dialect, number))"""
                )
                await db.execute(step.up.encode())
                await db.execute(
                    "INSERT INTO mdp_schema VALUES (%s, %s, %s)", (dialect, step.number, step.name)
                )

    async def schema_behind(self) -> int:
        """How many steps `migrate` would take; writes nothing."""
        async with self._link.transaction() as db:
            return len(await self._steps(db))

    async def _steps(self, db: AsyncConnection[Any]) -> list[tuple[str, Migration]]:
        """The steps that have not been taken, in order."""
        there = await db.execute("SELECT to_regclass('mdp_schema') IS NOT NULL")
        taken: dict[str, int] = {}
        if await there.fetchone() == (True,):
            rows = await db.execute("SELECT dialect, max(number) FROM mdp_schema GROUP BY 1")
            taken = dict(await rows.fetchall())
        found = await db.execute(
            "SELECT extname FROM pg_extension WHERE extname = ANY (%s)", (list(_EXTENSIONS),)
        )
        dialects = [_DIALECT, *(_EXTENSIONS[name] for (name,) in await found.fetchall())]
        steps = []
        for dialect in dialects:
            known = migrations(dialect)
            number = taken.get(dialect, 0)
            if number > known[-1].number:
                msg = (
                    f"{self._link.name} has schema {number} ({dialect}), this release knows "
                    f"{known[-1].number}; use a newer release"
                )
                raise UsageError(msg)
            steps += [(dialect, step) for step in known if step.number > number]
        return steps

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        """Tell that `member` lives and owns partition -> token; returns all live members."""
        now = self._clock.now_ns()
        scope = (group, topic)
        async with self._link.transaction() as db:
            await db.execute(
                """INSERT INTO members VALUES (%s, %s, %s, %s)
                    ON CONFLICT (consumer_group, topic, member)
                    DO UPDATE SET heartbeat = excluded.heartbeat""",
                (*scope, member, now),
            )
            await db.execute(_SILENT, (*scope, now - lease_ns))
            if owned:
                tokens = (integers(np.array([*owned])), integers(np.array([*owned.values()])))
                await db.execute(_RENEW, (*scope, member, *tokens, now))
            rows = await db.execute(
                """SELECT member FROM members
                    WHERE consumer_group = %s AND topic = %s AND heartbeat >= %s ORDER BY 1""",
                (*scope, now - lease_ns),
            )
            return [name for (name,) in await rows.fetchall()]

    async def leave(self, group: str, topic: str, member: str) -> None:
        """The member goes; its partitions are free at once."""
        scope = (group, topic, member)
        async with self._link.transaction() as db:
            await db.execute(
                "DELETE FROM members WHERE consumer_group = %s AND topic = %s AND member = %s",
                scope,
            )
            await db.execute(_FREE, scope)

    async def claim(self, key: PartitionKey, member: str, lease_ns: int) -> Claim | None:
        """Take a partition that is free or whose owner's lease has run out; None if neither."""
        now = self._clock.now_ns()
        mine = row_of(key)
        async with self._link.transaction() as db:
            await db.execute(
                """INSERT INTO partitions VALUES (%s, %s, %s, 0, '', 0, 0, NULL)
                    ON CONFLICT DO NOTHING""",
                mine,
            )
            # by a statement of its own, which sees what was forgotten up to now
            cursor = await db.execute(
                f"""UPDATE partitions SET owner = %s, heartbeat = %s, token = 1 + greatest(token,
                    (SELECT value FROM sequences WHERE name = 'forgotten_token'))
                    WHERE {MINE} AND (owner IN ('', %s) OR heartbeat < %s)
                    RETURNING token, sequence, checkpoint""",
                (member, now, *mine, member, now - lease_ns),
            )
            taken = await cursor.fetchone()
            return Claim(key, *taken) if taken else None

    async def release(self, claim: Claim) -> None:
        """Give a partition up; no effect if it was lost already."""
        async with self._link.transaction() as db:
            await db.execute(
                f"UPDATE partitions SET owner = '', heartbeat = 0 WHERE {MINE} AND token = %s",
                (*row_of(claim.key), claim.token),
            )

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        """Write all groups in one transaction, and forget outbox rows already `published`."""
        now = self._clock.now_ns()
        try:
            async with self._link.transaction() as db:
                result = await commit_groups(db, groups, guard, now, self._frontier)
                if published:
                    await db.execute(
                        """DELETE FROM outbox WHERE id IN (SELECT id FROM outbox
                            WHERE id = ANY (%s) ORDER BY id FOR UPDATE)""",
                        (list(published),),
                    )
        except (TransientError, asyncio.CancelledError):
            self._in_doubt |= {(g.claim.key.group, g.claim.key.topic) for g in groups}
            raise
        return result

    async def outbox(self, group: str, topic: str, partition: int) -> list[OutboxItem]:
        """What a partition's earlier owner left unpublished, in order."""
        async with self._link.transaction() as db:
            rows = await db.execute(
                f"SELECT id, {MESSAGE} FROM outbox WHERE {MINE} ORDER BY id",
                (group, topic, partition),
                binary=True,
            )
            return [
                OutboxItem(number, partition, Message(*message))
                for number, *message in await rows.fetchall()
            ]

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        """Partition rows, optionally of one group or topic.

        After a commit whose outcome is unknown, waits until the server has settled it.
        """
        doubtful = (group, topic) in self._in_doubt
        async with self._link.transaction() as db:
            rows = await db.execute(
                f"""SELECT consumer_group, topic, partition, token, owner, heartbeat, sequence,
                    checkpoint FROM partitions
                    WHERE consumer_group = coalesce(%s, consumer_group)
                    AND topic = coalesce(%s, topic)
                    ORDER BY 1, 2, 3 {"FOR SHARE" if doubtful else ""}""",
                (group, topic),
                binary=True,
            )
            found = [
                PartitionStatus(PartitionKey(*row[:3]), *row[3:]) for row in await rows.fetchall()
            ]
        if doubtful:
            self._in_doubt.discard((group or "", topic or ""))
        return found

    async def forget(self, group: str, topic: str) -> None:
        """Remove a topic's partition rows; tokens go on rising, should the topic come back."""
        async with self._link.transaction() as db:
            rows = await db.execute(_FORGET, (group, topic))
            highest = max((token for (token,) in await rows.fetchall()), default=0)
            await db.execute(
                """INSERT INTO sequences AS s VALUES ('forgotten_token', %s)
                    ON CONFLICT (name) DO UPDATE SET value = greatest(s.value, excluded.value)""",
                (highest,),
            )

    async def bars(
        self,
        symbol: str | None = None,
        interval: str | None = None,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> pl.DataFrame:
        """Bars with start <= ts < end (UTC ns), ordered by key; None means any."""
        wanted = {"provider": provider, "symbol": symbol, "interval": interval}
        async with self._link.transaction() as db:
            return await read_bars(db, wanted, start, end)

    async def gaps(self) -> list[Gap]:
        """The gap ledger, in the order of its entries; spans in whole microseconds."""
        async with self._link.transaction() as db:
            rows = await db.execute(
                """SELECT provider, symbol, (extract(epoch FROM from_ts) * 1000000)::bigint * 1000,
                    (extract(epoch FROM to_ts) * 1000000)::bigint * 1000, cause, detail, state
                    FROM gaps ORDER BY id"""
            )
            return [Gap(*row) for row in await rows.fetchall()]

    async def close(self) -> None:
        """Close all connections; no error if called twice."""
        await self._link.close()


def _open(uri: str, clock: Clock) -> PostgresStore:
    """The store at ``postgresql://user@host:port/database``, or ``postgres://…``."""
    return PostgresStore(uri, clock)


BACKEND = Backend("postgres", "A PostgreSQL server, 13 or newer.", None, _open, "postgres")
