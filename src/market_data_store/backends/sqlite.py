"""The embedded store: one SQLite file, shared by any number of processes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
from market_data_core.errors import DamagedFileError, UsageError
from market_data_core.registry import Backend
from market_data_store.backends._sqlite_bars import STAGE
from market_data_store.backends._sqlite_groups import MESSAGE, MINE, commit_group, require, row_of
from market_data_store.migrations import Migration, migrations
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
_BAR_COLUMNS = (
    "provider, symbol, interval, ts, open, high, low, close, volume, vwap, trade_count, state, "
    "created_at, updated_at"
)


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

    async def _read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        def run() -> list[Any]:
            with translated(self._path):
                return self._reader.execute(sql, values).fetchall()

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

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

        def run(db: sqlite3.Connection) -> None:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            for step in self._steps_from(version):
                for statement in _statements(step.up):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {step.number}")

        await self._write(run)

    async def schema_behind(self) -> int:
        """How many steps `migrate` would take; writes nothing."""
        ((version,),) = await self._read("PRAGMA user_version")
        return len(self._steps_from(version))

    def _steps_from(self, version: int) -> list[Migration]:
        steps = migrations("sqlite")
        if version > steps[-1].number:
            msg = (
                f"{self._path} has schema {version}, this release knows {steps[-1].number}; "
                "use a newer release"
            )
            raise UsageError(msg)
        return [step for step in steps if step.number > version]

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
            db.executemany("DELETE FROM outbox WHERE id = ?", [(i,) for i in published])
            return result

        return await self._write(run)

    async def outbox(self, group: str, topic: str, partition: int) -> list[OutboxItem]:
        """What a partition's earlier owner left unpublished, in order."""
        rows = await self._read(
            f"SELECT id, {MESSAGE} FROM outbox WHERE {MINE} ORDER BY id",
            (group, topic, partition),
        )
        return [OutboxItem(i, partition, Message(*message)) for i, *message in rows]

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        """Partition rows, optionally of one group or topic."""
        rows = await self._read(
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

    async def bars(
        self,
        symbol: str | None = None,
        interval: str | None = None,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> pl.DataFrame:
        """Bars with start <= ts < end (UTC ns), ordered by key; None means any."""
        import polars as pl

        wanted = {"symbol": symbol, "interval": interval, "provider": provider}
        terms = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        terms += [f"ts {op} ?" for op, at in ((">=", start), ("<", end)) if at is not None]
        values = [v for v in (*wanted.values(), start, end) if v is not None]
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        rows = await self._read(
            f"SELECT {_BAR_COLUMNS} FROM bars_ohlcv {where} ORDER BY 1, 2, 3, 4",
            values,
        )
        names = _BAR_COLUMNS.split(", ")
        types: dict[str, Any] = dict.fromkeys(names, pl.Float64)
        types |= dict.fromkeys(("provider", "symbol", "interval", "state"), pl.String)
        types |= dict.fromkeys(("ts", "created_at", "updated_at", "trade_count"), pl.Int64)
        frame = pl.DataFrame(rows, schema=types, orient="row")
        moments = [
            pl.col(c).cast(pl.Datetime("ns", "UTC")) for c in ("ts", "created_at", "updated_at")
        ]
        return frame.with_columns(moments)

    async def gaps(self) -> list[Gap]:
        """The gap ledger, in the order of its entries."""
        rows = await self._read(
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


def _statements(script: str) -> list[str]:
    """The statements of a migration (none of ours holds a semicolon inside)."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    return [s.strip() for s in "\n".join(lines).split(";") if s.strip()]


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
