"""The store on a PostgreSQL server, 13 or newer; shared by any number of processes and machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np

from market_data_core.bars import BarBatch
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
    WriteCounts,
)
from market_data_core.errors import TransientError
from market_data_core.registry import Backend
from market_data_core.tables import BARS, Policy, Select, StoreStatus, Table
from market_data_store.backends._outbox import MESSAGE
from market_data_store.backends._postgres_arrays import integers
from market_data_store.backends._postgres_bars import Frontier, write_all_bars
from market_data_store.backends._postgres_groups import MINE, commit_groups, row_of
from market_data_store.backends._postgres_link import Link
from market_data_store.backends._postgres_read import read_all, read_parts
from market_data_store.backends._postgres_records import replace_row, upsert_rows
from market_data_store.backends._postgres_schema import migrate, migrate_down, steps_ahead
from market_data_store.backends._postgres_upkeep import inspect, policies, retain

if TYPE_CHECKING:
    import polars as pl

_PING_S = 3.0
_PATIENCE = "SET LOCAL idle_in_transaction_session_timeout = '10min'"
"""As long as whoever scans may take for one frame."""
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
            await migrate(db, self._link.name)

    async def migrate_down(self, to: int) -> None:
        """Take the schema back to step `to`; what only newer steps have is lost.

        Raises:
            UsageError: there is no such step below the present one.
        """
        async with self._link.transaction() as db:
            await migrate_down(db, self._link.name, to)

    async def schema_behind(self) -> int:
        """How many steps `migrate` would take; writes nothing."""
        async with self._link.transaction() as db:
            return len(await steps_ahead(db, self._link.name))

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

    async def write_bars(self, batches: Sequence[BarBatch]) -> WriteCounts:
        """Upsert bars in one transaction, by the same rules as `commit`; no one is told of them.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        now = self._clock.now_ns()
        async with self._link.transaction() as db:
            return await write_all_bars(db, batches, now // 1000, self._frontier)

    async def upsert(self, table: Table, rows: Sequence[Any]) -> WriteCounts:
        """Insert rows, or update those that differ from what is stored, in one transaction.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        now = self._clock.now_ns()
        async with self._link.transaction() as db:
            return await upsert_rows(db, table, rows, now // 1000)

    async def replace(self, table: Table, old: Any, new: Any) -> bool:
        """Put `new` in the place of `old`, which has the same key, if it is still stored so."""
        async with self._link.transaction() as db:
            return await replace_row(db, table, old, new)

    async def select(self, what: Select) -> pl.DataFrame:
        """The rows as a frame: texts and JSON as String, times as Datetime("ns", "UTC")."""
        async with self._link.transaction() as db:
            return await read_all(db, what)

    async def scan(self, what: Select, rows_max: int = 100_000) -> AsyncGenerator[pl.DataFrame]:
        """The same rows in frames of at most `rows_max`, all as of one moment.

        Has a connection of its own, beside those of ``pool_size``, until it ends.
        """
        async with self._link.apart() as db, db.transaction():
            await db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await db.execute(_PATIENCE)
            async with aclosing(read_parts(db, what, rows_max)) as parts:
                async for part in parts:
                    yield part

    async def bars(
        self,
        symbol: str | None = None,
        interval: str | None = None,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> pl.DataFrame:
        """Bars with start <= ts < end (UTC ns), ordered by key; None means any."""
        wanted = {"symbol": symbol, "interval": interval, "provider": provider}
        where = {name: [value] for name, value in wanted.items() if value is not None}
        return await self.select(Select(BARS, where, start, end))

    async def ping(self) -> None:
        """Return if the database can be written; raises TransientError if it cannot.

        Has a connection of its own, and gives up after a few seconds.
        """
        try:
            async with asyncio.timeout(_PING_S), self._link.apart() as db:
                cursor = await db.execute(
                    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
                )
                writable = await cursor.fetchone() == (False,)
        except TimeoutError:
            msg = f"{self._link.name}: no answer within {_PING_S:g} s"
            raise TransientError(msg) from None
        if not writable:
            msg = f"{self._link.name}: it is read-only"
            raise TransientError(msg)

    async def inspect(self) -> StoreStatus:
        """How the store stands."""
        async with self._link.transaction() as db:
            return await inspect(db, self._link.name)

    async def policies(self) -> list[Policy]:
        """What is done to the tables as time goes on."""
        async with self._link.transaction() as db:
            return await policies(db)

    async def retain(self, table: Table, before: int, interval: str | None = None) -> int:
        """Delete rows whose time is before `before` (UTC ns), a bounded number at a time."""
        return await retain(self._link.transaction, table, before, interval)

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
