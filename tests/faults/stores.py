"""The databases that deployments keep their bars in, looked into past the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tests.servers.postgres import Server


class Database(Protocol):
    """One deployment's store.

    Attributes:
        uri: for the configuration.
        start_ns: SQL that gives the start of a bar, UTC ns.
    """

    uri: str
    start_ns: str

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows; none while the database or the table is not there yet."""
        ...

    def in_use(self) -> bool:
        """Whether somebody is inside a transaction."""
        ...


class SqliteFile:
    """A store, or a topic, that is a file."""

    start_ns = "ts"

    def __init__(self, path: Path) -> None:
        self.path, self.uri = path, f"sqlite:///{path}"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            try:
                return db.execute(sql).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return []

    def in_use(self) -> bool:
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=0.2)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                db.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return True
        return False


class PostgresSchema:
    """A store that is a schema of its own on a server; one test at a time uses the server."""

    start_ns = "(extract(epoch FROM ts) * 1000000)::bigint * 1000"

    def __init__(self, server: Server) -> None:
        self._server, self.uri = server, server.new_schema()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        from psycopg.errors import UndefinedTable

        try:
            return self._server.query(sql, self.uri)
        except UndefinedTable:
            return []

    def in_use(self) -> bool:
        ((count,),) = self._server.query(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        )
        return bool(count)


def ordered(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Rows in an order that does not depend on where they are kept."""
    return sorted(map(repr, rows))
