"""The embedded store: one SQLite file, shared by any number of processes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
from market_data_core.errors import DamagedFileError, UsageError
from market_data_core.registry import Backend
from market_data_core.tables import BARS, SIGNALS, Policy, Select, StoreStatus, Table
from market_data_store.backends._outbox import MESSAGE
from market_data_store.backends._sqlite_bars import STAGE, write_all_bars
from market_data_store.backends._sqlite_groups import (
    MINE,
    commit_group,
    forget_messages,
    require,
    row_of,
)
from market_data_store.backends._sqlite_read import frame, query, select
from market_data_store.backends._sqlite_rows import replace_row, upsert_rows
from market_data_store.backends._sqlite_upkeep import (
    delete_some,
    inspect,
    migrate,
    migrate_down,
    policies,
    steps_ahead,
    stretches,
)
from market_data_store.sqlite_file import LogFolder, connect, inode_of, transaction, translated

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

_APPLICATION_ID = 0x4D445053
_FOLD_AT, _FOLD_FORCED_AT = 4 << 20, 256 << 20
_SYNCHRONOUS: dict[str, Literal["normal", "full"]] = {
    "": "normal",
    "synchronous=normal": "normal",
    "synchronous=full": "full",
}


class SqliteStore:
    """Implements :class:`market_data_core.contracts.store.Store` on one file."""

    def __init__(
        self,
        path: Path,
        synchronous: Literal["normal", "full"] = "normal",
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._db = connect(path, _APPLICATION_ID, synchronous)
        self._reader = connect(path, _APPLICATION_ID, synchronous)
        self._folder = connect(path, _APPLICATION_ID, synchronous)
        self._db.execute(STAGE)
        self._inode = inode_of(path)
        self._writing = ThreadPoolExecutor(1, "store-write")
        self._reading = ThreadPoolExecutor(1, "store-read")
        self._log = LogFolder(self._folder, path)
        self._folding = ThreadPoolExecutor(1, "store-fold")
        self._fold_done: Future[None] | None = None
        self._open = True

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            self._require_same_file()
            with translated(self._path), transaction(self._db):
                return work(self._db)

        done = await asyncio.get_running_loop().run_in_executor(self._writing, run)
        if self._fold_done is None or self._fold_done.done():  # in the background: it may flush
            self._fold_done = self._folding.submit(self._fold)
        return done

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with translated(self._path):
                return work(self._reader)

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    async def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return await self._read(lambda db: db.execute(sql, values).fetchall())

    def _require_same_file(self) -> None:
        if inode_of(self._path) != self._inode:
            msg = (
                f"{self._path} was removed or replaced while in use, and nothing more was written; "
                "put it back and restart, or restart to begin with an empty one"
            )
            raise DamagedFileError(msg)

    def _fold(self) -> None:
        self._log.fold(_FOLD_AT, _FOLD_FORCED_AT)

    async def migrate(self) -> None:
        """Bring the schema to this release's version; several processes may do it at once."""
        await self._write(lambda db: migrate(db, self._path))

    async def migrate_down(self, to: int) -> None:
        """Take the schema back to step `to`; what only newer steps have is lost.

        Raises:
            UsageError: there is no such step below the present one.
        """
        await self._write(lambda db: migrate_down(db, self._path, to))

    async def schema_behind(self) -> int:
        """How many steps `migrate` would take; writes nothing."""
        return len(await self._read(lambda db: steps_ahead(db, self._path)))

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        """Tell that `member` lives and owns partition -> token; returns all live members."""
        now = self._clock.now_ns()

        def run(db: sqlite3.Connection) -> list[str]:
            scope = (group, topic)
            db.execute(
                "DELETE FROM members WHERE consumer_group = ? AND topic = ? AND heartbeat < ?",
                (*scope, now - lease_ns),
            )
            db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?)", (*scope, member, now))
            db.executemany(
                f"UPDATE partitions SET heartbeat = ? WHERE {MINE} AND token = ? AND owner = ?",
                [(now, *scope, p, token, member) for p, token in owned.items()],
            )
            rows = db.execute(
                "SELECT member FROM members WHERE consumer_group = ? AND topic = ? ORDER BY 1",
                scope,
            )
            return [name for (name,) in rows]

        return await self._write(run)

    async def leave(self, group: str, topic: str, member: str) -> None:
        """The member goes; its partitions are free at once."""

        def run(db: sqlite3.Connection) -> None:
            scope = (group, topic, member)
            db.execute(
                "DELETE FROM members WHERE consumer_group = ? AND topic = ? AND member = ?", scope
            )
            db.execute(
                """UPDATE partitions SET owner = '', heartbeat = 0
                    WHERE consumer_group = ? AND topic = ? AND owner = ?""",
                scope,
            )

        await self._write(run)

    async def claim(self, key: PartitionKey, member: str, lease_ns: int) -> Claim | None:
        """Take a partition that is free or whose owner's lease has run out; None if neither."""
        now = self._clock.now_ns()

        def run(db: sqlite3.Connection) -> Claim | None:
            mine = row_of(key)
            db.execute(
                """INSERT INTO partitions
                    SELECT ?, ?, ?, coalesce(max(value), 0), '', 0, 0, NULL FROM sequences
                    WHERE name = 'forgotten_token' ON CONFLICT DO NOTHING""",
                mine,
            )
            taken = db.execute(
                f"""UPDATE partitions SET token = token + 1, owner = ?, heartbeat = ?
                    WHERE {MINE} AND (owner IN ('', ?) OR heartbeat < ?)
                    RETURNING token, sequence, checkpoint""",
                (member, now, *mine, member, now - lease_ns),
            ).fetchone()
            return Claim(key, *taken) if taken else None

        return await self._write(run)

    async def release(self, claim: Claim) -> None:
        """Give a partition up; no effect if it was lost already."""
        values = (*row_of(claim.key), claim.token)
        await self._write(
            lambda db: db.execute(
                f"UPDATE partitions SET owner = '', heartbeat = 0 WHERE {MINE} AND token = ?",
                values,
            )
        )

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        """Write all groups in one transaction, and forget outbox rows already `published`."""
        now = self._clock.now_ns()

        def run(db: sqlite3.Connection) -> CommitResult:
            result = CommitResult()
            if guard:
                held = db.execute(
                    f"SELECT 1 FROM partitions WHERE {MINE} AND token = ?",
                    (*row_of(guard.key), guard.token),
                )
                require(held.fetchone() is not None, guard)
            for group in groups:
                commit_group(db, group, now, result)
            signals = [signal for group in groups for signal in group.signals]
            result.signals = upsert_rows(db, SIGNALS, signals, now)
            forget_messages(db, published)
            return result

        return await self._write(run)

    async def outbox(self, group: str, topic: str, partition: int) -> list[OutboxItem]:
        """What a partition's earlier owner left unpublished, in order."""
        rows = await self._rows(
            f"SELECT id, {MESSAGE} FROM outbox WHERE {MINE} ORDER BY id",
            (group, topic, partition),
        )
        return [OutboxItem(i, partition, Message(*message)) for i, *message in rows]

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        """Partition rows, optionally of one group or topic."""
        rows = await self._rows(
            """SELECT consumer_group, topic, partition, token, owner, heartbeat, sequence,
                checkpoint FROM partitions
                WHERE consumer_group = coalesce(?, consumer_group) AND topic = coalesce(?, topic)
                ORDER BY 1, 2, 3""",
            (group, topic),
        )
        return [PartitionStatus(PartitionKey(*row[:3]), *row[3:]) for row in rows]

    async def forget(self, group: str, topic: str) -> None:
        """Remove a topic's partition rows; tokens go on rising, should the topic come back."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                """INSERT INTO sequences SELECT 'forgotten_token', coalesce(max(token), 0)
                    FROM partitions WHERE consumer_group = ? AND topic = ?
                    ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)""",
                (group, topic),
            )
            db.execute(
                "DELETE FROM partitions WHERE consumer_group = ? AND topic = ?", (group, topic)
            )

        await self._write(run)

    async def write_bars(self, batches: Sequence[BarBatch]) -> WriteCounts:
        """Upsert bars in one transaction, by the same rules as `commit`; no one is told of them.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        now = self._clock.now_ns()
        return await self._write(lambda db: write_all_bars(db, batches, now))

    async def upsert(self, table: Table, rows: Sequence[Any]) -> WriteCounts:
        """Insert rows, or update those that differ from what is stored, in one transaction.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        now = self._clock.now_ns()
        return await self._write(lambda db: upsert_rows(db, table, rows, now))

    async def replace(self, table: Table, old: Any, new: Any) -> bool:
        """Put `new` in the place of `old`, which has the same key, if it is still stored so."""
        now = self._clock.now_ns()
        return await self._write(lambda db: replace_row(db, table, old, new, now))

    async def select(self, what: Select) -> pl.DataFrame:
        """The rows as a frame: texts and JSON as String, times as Datetime("ns", "UTC")."""
        return await self._read(lambda db: select(db, what))

    async def scan(self, what: Select, rows_max: int = 100_000) -> AsyncGenerator[pl.DataFrame]:
        """The same rows in frames of at most `rows_max`, all as of one moment."""
        statement = query(what)
        self._require_same_file()
        loop = asyncio.get_running_loop()
        scanning = ThreadPoolExecutor(1, "store-scan")
        try:
            db = await loop.run_in_executor(scanning, connect, self._path, _APPLICATION_ID)
            try:
                with translated(self._path):
                    db.execute("PRAGMA temp_store=FILE")  # sorting may take more than memory
                    cursor = await loop.run_in_executor(scanning, db.execute, *statement)
                    while rows := await loop.run_in_executor(scanning, cursor.fetchmany, rows_max):
                        yield frame(what.table, rows)
            finally:
                db.interrupt()
                scanning.submit(db.close)  # once what it was doing is over
        finally:
            scanning.shutdown(wait=False)

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

    async def retain(self, table: Table, before: int, interval: str | None = None) -> int:
        """Delete rows whose time is before `before` (UTC ns), a bounded number at a time."""
        rest = await self._read(lambda db: stretches(db, table, interval))
        deleted = 0
        while rest:
            deleted += await self._write(lambda db: delete_some(db, table, before, rest))
        return deleted

    async def ping(self) -> None:
        """Return if the file can be written; raises TransientError if it cannot."""
        await self._write(lambda _: None)

    async def inspect(self) -> StoreStatus:
        """How the store stands."""
        return await self._read(lambda db: inspect(db, self._path))

    async def policies(self) -> list[Policy]:
        """The views of wider bars; nothing else is done by the file itself."""
        return await self._read(policies)

    async def gaps(self) -> list[Gap]:
        """The gap ledger, in the order of its entries."""
        rows = await self._rows(
            "SELECT provider, symbol, from_ts, to_ts, cause, detail, state FROM gaps ORDER BY id"
        )
        return [Gap(*row) for row in rows]

    async def close(self) -> None:
        """Close the file; no error if called twice."""
        if self._open:
            self._open = False
            self._writing.shutdown()
            self._reading.shutdown()
            self._folding.shutdown()
            for db in (self._folder, self._reader, self._db):
                db.close()


def _open(uri: str, clock: Clock) -> SqliteStore:
    """The store at ``sqlite:///relative/path`` or ``sqlite:////absolute/path``.

    ``?synchronous=full`` makes every commit durable against power loss too.
    """
    path, _, options = uri.removeprefix("sqlite:///").partition("?")
    if path == uri or not path:
        msg = f"store.uri {uri!r} names no file; write sqlite:///path/to/store.db"
        raise UsageError(msg)
    synchronous = _SYNCHRONOUS.get(options)
    if synchronous is None:
        msg = f"store.uri {uri!r}: {options!r} is not known; write synchronous=normal or =full"
        raise UsageError(msg)
    return SqliteStore(Path(path), synchronous, clock)


BACKEND = Backend("sqlite", "One SQLite file; needs no server.", None, _open)
