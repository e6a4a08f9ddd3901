"""Connections to a PostgreSQL server: a bounded number, opened when needed, with our errors."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from psycopg import (
    AsyncConnection,
    AsyncCursor,
    Error,
    InterfaceError,
    OperationalError,
    conninfo,
)
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus

from market_data_core.errors import DamagedFileError, MdpError, TransientError, UsageError
from market_data_core.redaction import MASK, redact
from market_data_store.backends._postgres_arrays import dumpers

_TRANSIENT = ("08", "40", "53", "55", "57", "58", "25006", "25P03")
"""SQLSTATEs that pass: connection, conflict, resources, locks, shutdown, disk, read-only mode."""
_DENIED = ("28", "3D", "3F", "42501")
_NO_SCHEMA = ("42P01", "42703", "42883")
_REFUSED = (
    "authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied",
    "permission denied", "does not support SSL", "certificate", "invalid",
)  # fmt: skip
"""Words of the server for what waiting does not heal: to who cannot connect it tells no code."""
_DAMAGED = ("XX001", "XX002")
_DEFAULTS = {
    "fallback_application_name": "mdp",
    "connect_timeout": "10",
    "client_encoding": "UTF8",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
# A server that never hears that its client is gone would hold the locks of its transaction, and
# then those of whatever the client's other connections had on their way.
_SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
}
UNLIMITED = "SET LOCAL statement_timeout = 0"
"""Statement that lifts the limit until its transaction ends, on the server and here."""
_GRACE_S = 2.0
"""What the server has, beyond the time for a statement, to tell that it was given up."""


logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of, our errors tell


@dataclass(frozen=True, slots=True)
class Options:
    """Our own parameters of a store's URI.

    Attributes:
        pool_size: connections at most.
        statement_timeout_ms: after which the server gives a statement up, and soon after that we
            a server that does not answer; 0 for never.
        lock_timeout_ms: after which it gives up waiting for a lock; 0 for never.
    """

    pool_size: int = 4
    statement_timeout_ms: int = 30_000
    lock_timeout_ms: int = 10_000


def parse(uri: str) -> tuple[str, Options]:
    """What libpq is to be given, and our own parameters, which it does not know.

    Raises:
        UsageError: a parameter is wrong; the message does not repeat secrets.
    """
    base, _, query = uri.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    ours = {}
    for name, value in given:
        if name in Options.__slots__:
            if not value.isascii() or not value.isdigit() or (name == "pool_size" and value == "0"):
                msg = f"store.uri: {name}={value!r} is not a number; write {name}=1 or more"
                raise UsageError(msg)
            ours[name] = int(value)
    rest = [(name, value) for name, value in given if name not in ours]
    dsn = f"{base}?{urlencode(rest, quote_via=quote)}" if rest else base
    try:
        known = conninfo.conninfo_to_dict(dsn)
    except Error as error:
        msg = f"store.uri {redact(uri)!r}: {redact(str(error)).strip()}"
        raise UsageError(msg) from None  # libpq's words may quote the password
    wanted = {name: value for name, value in _DEFAULTS.items() if name not in known}
    return conninfo.make_conninfo(dsn, **wanted), Options(**ours)


class _Connection(AsyncConnection[Any]):
    """A connection that is given up when the server does not answer at all.

    The server itself ends statements that take too long, but not where it stands still or was cut
    off: its kernel, or nobody, would let us wait for ever. Nor can waiting be cancelled then, since
    the driver first asks the server to stop. So the socket is shut down, which ends the waiting.

    Attributes:
        answer_s: longest wait for an answer, in seconds; 0 for no limit.
    """

    answer_s: float = 0.0
    _unlimited = False
    _silent = False
    _timer: asyncio.TimerHandle

    async def execute(self, query: Any, *args: Any, **options: Any) -> AsyncCursor[Any]:
        """As the base class; UNLIMITED is in force here, too, until the transaction ends."""
        cursor = await super().execute(query, *args, **options)
        self._unlimited = self._unlimited or query == UNLIMITED
        return cursor

    async def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """As the base class.

        Raises:
            OperationalError: no answer has come in time; the connection is of no use any more.
        """
        if self._unlimited:
            self._unlimited = self.info.transaction_status is not TransactionStatus.IDLE
        if self._unlimited or not self.answer_s:
            return await super().wait(gen, *args, **options)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.answer_s / 2, self._go_on, loop)
        try:
            return await super().wait(gen, *args, **options)
        except Error as error:
            if not self._silent:
                raise
            msg = f"the server gave no answer within {self.answer_s:g} s"
            raise OperationalError(msg) from error
        finally:
            self._timer.cancel()

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the second half: if this process itself stood still, it first reads on."""
        self._timer = loop.call_later(self.answer_s / 2, self._give_up)

    def _give_up(self) -> None:
        if self.closed:
            return
        self._silent = True
        with (
            socket.fromfd(self.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM) as end,
            suppress(OSError),  # the other side was quicker
        ):
            end.shutdown(socket.SHUT_RDWR)


class Link:
    """A bounded set of connections to one database.

    Args:
        uri: with our own parameters in it.

    Raises:
        UsageError: the URI is wrong.
    """

    def __init__(self, uri: str) -> None:
        self._dsn, self._options = parse(uri)
        parts = conninfo.conninfo_to_dict(self._dsn)
        self._password = str(parts.get("password") or "")
        host, name = parts.get("host") or "localhost", parts.get("dbname") or parts.get("user")
        self.name = f"PostgreSQL database {name!r} at {host}:{parts.get('port') or 5432}"
        self._idle: list[AsyncConnection[Any]] = []
        self._all: set[AsyncConnection[Any]] = set()
        self._free = asyncio.Semaphore(self._options.pool_size)
        self._closed = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection in a transaction: committed at the end, undone on any error.

        Raises:
            TransientError: the server cannot be used now.
            UsageError: it refuses us, or lacks our tables.
            DamagedFileError: its files are damaged.
        """
        async with self._free, self._translated(), self._connection() as db, db.transaction():
            yield db

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection beside the others, not in a transaction, closed at the end."""
        async with self._translated():
            db = await self._open()
            try:
                yield db
            finally:
                await db.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        if self._idle:
            db = self._idle.pop()
        else:
            db = await self._open()
            self._all.add(db)
        try:
            yield db
        except BaseException:
            if db.closed or db.info.transaction_status is not TransactionStatus.IDLE:
                await self._drop(db)
                while self._idle:  # they are likely to be broken too
                    await self._drop(self._idle.pop())
            raise
        finally:
            if db in self._all:
                self._idle.append(db)
            if self._closed:
                await self._drop_idle()

    async def _open(self) -> AsyncConnection[Any]:
        db = await _Connection.connect(self._dsn, autocommit=True)
        limit_ms = self._options.statement_timeout_ms
        db.answer_s = limit_ms / 1e3 + _GRACE_S if limit_ms else 0.0
        try:
            for cls, dumper in dumpers():
                db.adapters.register_dumper(cls, dumper)
            wanted = _SESSION | {
                "statement_timeout": f"{limit_ms}ms",
                "lock_timeout": f"{self._options.lock_timeout_ms}ms",
            }
            await db.execute(
                "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[])"
                " AS s (name, value)",
                (list(wanted), list(wanted.values())),
            )
        except BaseException:
            await db.close()
            raise
        return db

    async def _drop(self, db: AsyncConnection[Any]) -> None:
        self._all.discard(db)
        await db.close()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._drop(self._idle.pop())

    async def close(self) -> None:
        """Close all connections; those at work are closed when it is done."""
        self._closed = True
        await self._drop_idle()

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except Error as error:
            found = self._translate(error)
            if found is error:
                raise
            raise found from None  # the driver's error may hold the connection's parameters

    def _translate(self, error: Error) -> MdpError | Error:
        """The platform's error for the driver's; `error` itself if it is a fault of ours."""
        code = error.sqlstate or ""
        told = redact(" ".join(str(error).split()))
        if self._password:
            told = told.replace(self._password, MASK)
        where = f"{self.name}: {told}"
        refused = not code and "connection failed" in told and any(w in told for w in _REFUSED)
        if refused or code.startswith(_DENIED):
            return UsageError(f"{where}; check store.uri and what its user may do")
        if code in _NO_SCHEMA:
            return UsageError(f"{where}; its schema is not this release's: migrate it")
        if code in _DAMAGED:
            return DamagedFileError(f"{where}; restore it from a backup")
        lost = not code and isinstance(error, OperationalError | InterfaceError)
        if lost or code.startswith(_TRANSIENT):
            return TransientError(where)
        return error
