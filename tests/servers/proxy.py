"""A TCP proxy that stands between our processes and a server, and does to their connections what
networks do: delays them, cuts them, lets one direction through and not the other, goes silent.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

Direction = Literal["up", "down"]
"""``up`` is from the client to the server."""
_CHUNK = 1 << 16
_WAIT_S = 10.0
_BACKLOG = 128
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST."""


@dataclass
class _State:
    """What happens to connections, and since when."""

    refuses: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    stopped: set[Direction] = field(default_factory=set)


@dataclass(eq=False)
class _Connection:
    """One client's, with what is on its way through."""

    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    lost: set[Direction] = field(default_factory=set)

    def reset(self) -> None:
        """End both sides with RST."""
        for _, writer in filter(None, (self.client, self.server)):
            with suppress(OSError):
                link = writer.get_extra_info("socket")
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def close(self) -> None:
        """End both sides in good order; no error if they have ended."""
        for _, writer in filter(None, (self.client, self.server)):
            writer.close()


class Proxy:
    """Forwards connections from `port` to a server; its loop runs in a thread of its own.

    A direction that is stopped swallows what comes, as a network does that drops packets for
    longer than anybody repeats them: the connection stays open, and carries nothing that way any
    more. What is only delayed arrives, in order.

    Attributes:
        port: on 127.0.0.1, for clients.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, seed: int = 0) -> None:
        self._to = (host, port)
        self._state, self._chance = _State(), random.Random(seed)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: WeakSet[asyncio.WriteTransport] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._listener: socket.socket | None = None
        self.port = 0
        self._call(self._listen())

    # ---- what can happen -------------------------------------------------------------------

    def delay(self, seconds: float, jitter_s: float = 0.0) -> None:
        """Keep everything, in both directions, for so long, plus up to `jitter_s` more."""
        self._change(delay_s=seconds, jitter_s=jitter_s)

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._change(refuses=True)

    def half_open(self) -> None:
        """Accept connections and keep them, but let nothing through either way."""
        self._change(stopped={"up", "down"})

    def split(self, direction: Direction) -> None:
        """Let nothing through in one direction; connections stay open."""
        self._change(stopped={direction})

    def heal(self) -> None:
        """Let everything through again; connections that have lost something end first."""
        self._change()

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self._connections)

    def close(self) -> None:
        """End all connections and the thread."""
        self._change(refuses=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    # ---- how -------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_S)

    def _change(self, **changes: Any) -> None:
        self._call(self._enter(_State(**changes)))

    async def _enter(self, state: _State) -> None:
        self._state = state
        if state.refuses:
            self._refuse()
        for connection in list(self._connections):
            # bytes are missing from those that lost some: no heal may join what is around them
            if state.refuses or connection.lost - state.stopped:
                connection.reset()
        if state.refuses:
            await self._ended()
        else:
            await self._listen()

    async def _ended(self) -> None:
        await asyncio.sleep(0)  # let what was accepted just now begin
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in list(self._transports):  # those that still wait to be rid of something
            transport.abort()
        await asyncio.sleep(0)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=_BACKLOG)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._take_one, self._listener)

    def _refuse(self) -> None:
        """Nobody listens on the port any more."""
        listener, self._listener = self._listener, None
        if listener:
            self._loop.remove_reader(listener)
            listener.close()

    def _take_one(self, listener: socket.socket) -> None:
        # asyncio's own servers leave behind what they accept while they are closed
        with suppress(OSError):  # it may have gone again
            link, _ = listener.accept()
            link.setblocking(False)
            task = asyncio.create_task(self._accept(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _accept(self, link: socket.socket) -> None:
        connection = None
        try:
            connection = _Connection(await asyncio.open_connection(sock=link))
            self._connections.add(connection)
            self._transports.add(connection.client[1].transport)
            await self._carry(connection)
        except OSError:
            return
        finally:
            if connection is None:
                link.close()
            else:
                (connection.reset if self._state.refuses else connection.close)()
                self._connections.discard(connection)

    async def _carry(self, connection: _Connection) -> None:
        server = connection.server = await asyncio.open_connection(*self._to)
        self._transports.add(server[1].transport)
        ways = (
            self._pass("up", connection, connection.client[0], server[1]),
            self._pass("down", connection, server[0], connection.client[1]),
        )
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(
        self,
        direction: Direction,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Until one side ends; its end is passed on like everything else."""
        due = 0.0
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def deliver() -> None:
            while True:
                at, data = await line.get()
                await asyncio.sleep(at - self._loop.time())
                if direction in self._state.stopped:
                    connection.lost.add(direction)
                if direction in connection.lost:
                    continue  # an end that nobody hears of, too
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        async def collect() -> None:
            nonlocal due
            data = b"-"
            while data:
                data = await reader.read(_CHUNK)
                state = self._state
                wait_s = state.delay_s + self._chance.uniform(0, state.jitter_s)
                due = max(due, self._loop.time() + wait_s)  # a jitter that does not reorder
                await line.put((due, data))
            await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(step) for step in (deliver(), collect())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def between(port: int) -> Iterator[Proxy]:
    """A proxy to a server's port on this machine, closed at the end."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
