"""``mdp`` that kills itself at a chosen write boundary of the bus or the store, if told to.

The store is a SQLite file, or whatever psycopg is connected to.

``MDP_DOOM=store:COMMIT:after:3`` means: right after the third COMMIT on a store's connection,
kill -9. The first word is ``store``, how a topic's name begins, or ``bus`` for any topic; the
second one is how the statement begins; the third one ``before`` or ``after``.

``MDP_BLOCK_ROWS=100`` lets a recording come in so small blocks that even a short one is written
to the bus in many steps.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

BOUNDARIES = (
    "store:BEGIN:after",
    "store:INSERT INTO bars:after",
    "store:UPDATE partitions:after",
    "store:INSERT INTO outbox:after",
    "store:COMMIT:before",
    "store:COMMIT:after",
    "store:DELETE FROM outbox:after",
    "bus:BEGIN:after",
    "bus:INSERT INTO log:after",
    "bus:UPDATE heads:after",
    "bus:COMMIT:before",
    "bus:COMMIT:after",
    "mdp.bars:COMMIT:before",
    "mdp.bars:COMMIT:after",
    "mdp.dlq:COMMIT:before",
)
"""Everything after which, or before which, a death could matter."""


class _Doom:
    """Counts statements, and acts on the one that was named."""

    def __init__(self, text: str) -> None:
        self.place, self.verb, self.when, count = text.split(":")
        self._left = int(count)
        self._counting = threading.Lock()

    def strike(self, path: Path, statement: object, when: str) -> None:
        """Die if this is the statement."""
        place = "store" if path.name == "store.db" else path.name.removesuffix(".db")
        statement = statement.decode() if isinstance(statement, bytes) else str(statement)
        named = place.startswith(self.place) or (self.place == "bus" and place != "store")
        if not named or when != self.when or not statement.lstrip().startswith(self.verb):
            return
        with self._counting:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _connections_of(doom: _Doom) -> type[sqlite3.Connection]:
    class Doomed(sqlite3.Connection):
        """A connection whose statements are counted."""

        def __init__(self, database: Any, *args: Any, **options: Any) -> None:
            self._path = Path(database)
            super().__init__(database, *args, **options)

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            doom.strike(self._path, sql, "before")
            cursor = super().execute(sql, parameters)
            doom.strike(self._path, sql, "after")
            return cursor

        def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
            doom.strike(self._path, sql, "before")
            cursor = super().executemany(sql, parameters)
            doom.strike(self._path, sql, "after")
            return cursor

    return Doomed


def _doom_psycopg(doom: _Doom) -> None:
    """Count the statements of all connections, those that begin and end transactions too."""
    from psycopg import AsyncConnection, AsyncCursor

    path = Path("store.db")

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
            doom.strike(path, statement, "before")
            done = await method(self, statement, *args, **options)
            doom.strike(path, statement, "after")
            return done

        return call

    command, copy = AsyncConnection._exec_command, AsyncCursor.copy

    @asynccontextmanager
    async def counted_copy(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
        named = statement.replace("COPY", "INSERT INTO", 1)  # another way to do the same
        doom.strike(path, named, "before")
        async with copy(self, statement, *args, **options) as copying:
            yield copying
        doom.strike(path, named, "after")

    def counted_command(self: Any, statement: Any, *args: Any) -> Any:
        doom.strike(path, statement, "before")
        yield from command(self, statement, *args)
        doom.strike(path, statement, "after")

    changed: Any = AsyncCursor
    changed.execute, changed.executemany = (
        counted(changed.execute),
        counted(changed.executemany),
    )
    changed.copy = counted_copy
    AsyncConnection._exec_command = counted_command  # type: ignore[assignment,method-assign]


def main() -> None:
    """Run the command line under what the environment says."""
    from market_data_pipeline.cli import main as mdp
    from market_data_pipeline.providers._formats import merge

    if os.environ.get("MDP_BLOCK_ROWS"):
        merge.BLOCK_ROWS = int(os.environ["MDP_BLOCK_ROWS"])
    if os.environ.get("MDP_DOOM"):
        doom = _Doom(os.environ["MDP_DOOM"])
        connect, factory = sqlite3.connect, _connections_of(doom)

        def doomed_connect(database: Any, **options: Any) -> sqlite3.Connection:
            return connect(database, factory=factory, **options)

        sqlite3.connect = doomed_connect  # type: ignore[assignment]
        if doom.place == "store":
            _doom_psycopg(doom)
    mdp()
