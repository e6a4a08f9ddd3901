"""``mdp`` that kills itself at a chosen write boundary of the bus or the store, if told to.

The store is a SQLite file, or whatever psycopg is connected to. A topic is a SQLite file, or on a
server: then ``append`` is a call of the bus, and ``EVALSHA`` and ``produce`` are what it sends.

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

_STORE = (
    "store:BEGIN:after",
    "store:INSERT INTO bars:after",
    "store:UPDATE partitions:after",
    "store:INSERT INTO outbox:after",
    "store:COMMIT:before",
    "store:COMMIT:after",
    "store:DELETE FROM outbox:after",
)
_SERVED = (
    "mdp.bars:append:before",
    "mdp.bars:append:after",
    "mdp.dlq:append:before",
    "bus:append:after",
)
_ON: dict[str, tuple[str, ...]] = {
    "embedded": (
        "mdp.bars:COMMIT:before",
        "mdp.dlq:COMMIT:before",
        "mdp.bars:COMMIT:after",
        "bus:BEGIN:after",
        "bus:INSERT INTO log:after",
        "bus:UPDATE heads:after",
        "bus:COMMIT:before",
        "bus:COMMIT:after",
    ),
    "redis": (*_SERVED, "bus:EVALSHA:before", "bus:EVALSHA:after"),
    "kafka": (*_SERVED, "bus:produce:before", "bus:produce:after"),
}


def boundaries(bus: str) -> tuple[str, ...]:
    """Everything after which, or before which, a death could matter."""
    return _ON[bus] + _STORE


class _Doom:
    """Counts statements, and acts on the one that was named."""

    def __init__(self, text: str) -> None:
        self.place, self.verb, self.when, count = text.split(":")
        self._left = int(count)
        self._counting = threading.Lock()

    def strike(self, place: str, statement: object, when: str) -> None:
        """Die if this is the statement; `place` is a topic, ``bus`` for any, or ``store``."""
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
            self._place = Path(database).name.removesuffix(".db")
            super().__init__(database, *args, **options)

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            doom.strike(self._place, sql, "before")
            cursor = super().execute(sql, parameters)
            doom.strike(self._place, sql, "after")
            return cursor

        def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
            doom.strike(self._place, sql, "before")
            cursor = super().executemany(sql, parameters)
            doom.strike(self._place, sql, "after")
            return cursor

    return Doomed


def _doom_psycopg(doom: _Doom) -> None:
    """Count the statements of all connections, those that begin and end transactions too."""
    from psycopg import AsyncConnection, AsyncCursor

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
            doom.strike("store", statement, "before")
            done = await method(self, statement, *args, **options)
            doom.strike("store", statement, "after")
            return done

        return call

    command, copy = AsyncConnection._exec_command, AsyncCursor.copy

    @asynccontextmanager
    async def counted_copy(self: Any, statement: Any, *args: Any, **options: Any) -> Any:
        named = statement.replace("COPY", "INSERT INTO", 1)  # another way to do the same
        doom.strike("store", named, "before")
        async with copy(self, statement, *args, **options) as copying:
            yield copying
        doom.strike("store", named, "after")

    def counted_command(self: Any, statement: Any, *args: Any) -> Any:
        doom.strike("store", statement, "before")
        yield from command(self, statement, *args)
        doom.strike("store", statement, "after")

    changed: Any = AsyncCursor
    changed.execute, changed.executemany = (
        counted(changed.execute),
        counted(changed.executemany),
    )
    changed.copy = counted_copy
    AsyncConnection._exec_command = counted_command  # type: ignore[assignment,method-assign]


def _doom_servers(doom: _Doom) -> None:
    """Count what is appended on servers, and what is sent to them for that."""
    import confluent_kafka
    from redis.asyncio import Redis

    from market_data_pipeline.bus import _kafka_link
    from market_data_pipeline.bus._kafka_bus import KafkaBus
    from market_data_pipeline.bus.redis import RedisBus

    def counted(append: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: Any, topic: str, entries: Any) -> None:
            doom.strike(topic, "append", "before")
            await append(self, topic, entries)
            doom.strike(topic, "append", "after")

        return call

    execute: Any = Redis.execute_command

    async def command(self: Any, *words: Any, **options: Any) -> Any:
        doom.strike("bus", words[0], "before")
        answer = await execute(self, *words, **options)
        doom.strike("bus", words[0], "after")
        return answer

    class Producer(confluent_kafka.Producer):
        """A producer whose messages are counted."""

        def produce(self, *args: Any, **options: Any) -> None:
            doom.strike("bus", "produce", "before")
            super().produce(*args, **options)
            doom.strike("bus", "produce", "after")

    for bus in (RedisBus, KafkaBus):
        changed: Any = bus
        changed.append = counted(changed.append)
    Redis.execute_command = command  # type: ignore[method-assign]
    setattr(_kafka_link, "Producer", Producer)  # noqa: B010  (which it does not offer)


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
        else:
            _doom_servers(doom)
    mdp()
