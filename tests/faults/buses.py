"""The logs that deployments keep their events in, looked into past the processes under test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from market_data_core import registry
from market_data_core.clock import SystemClock
from market_data_core.config import BusSettings
from market_data_core.contracts.bus import Bus
from market_data_core.errors import TransientError
from market_data_core.records import Record

if TYPE_CHECKING:
    from tests.servers import kafka, redis

T = TypeVar("T")

_POLL_BYTES = 1 << 26
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Topic:
    """A topic read to its end: the records of each partition, and the log's own count of events."""

    name: str
    records: list[list[Record]]
    received: list[int]


class Log(Protocol):
    """One deployment's bus.

    Attributes:
        settings: section ``bus`` of the configuration, as far as it says where the bus is.
    """

    settings: Mapping[str, Any]

    def ask(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        """What `work` finds with a client of its own."""
        ...

    def close(self) -> None:
        """Let go of whatever looking needed."""
        ...


def _open(settings: Mapping[str, Any]) -> Bus:
    found = BusSettings.model_validate(settings)
    bus: Bus = registry.backend("bus", found.type).create(found, SystemClock())
    return bus


class Files:
    """A folder of files; each look opens them anew, as tests replace them."""

    def __init__(self, folder: Path) -> None:
        self.settings: Mapping[str, Any] = {
            "type": "embedded",
            "embedded": {"path": str(folder)},
        }

    def ask(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        async def run() -> T:
            bus = _open(self.settings)
            try:
                return await work(bus)
            finally:
                await bus.close()

        return asyncio.run(run())

    def close(self) -> None:
        return


class Served:
    """A server's; one client looks as often as it is asked to, and waits while the server is away.

    Args:
        settings: where the server is, and what names this deployment has on it.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bus: Bus | None = None

    def ask(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._ask(work))

    async def _ask(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        self._bus = self._bus or _open(self.settings)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return await work(self._bus)
            except TransientError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    def close(self) -> None:
        if self._loop and self._bus:
            self._loop.run_until_complete(self._bus.close())
            self._loop.close()


def on_redis(server: redis.Server, port: int | None = None) -> Served:
    """A deployment on a Redis server, with keys of its own; through another port if told."""
    uri = server.uri if port is None else f"redis://127.0.0.1:{port}/0"
    return Served({"type": "redis", "redis": {"uri": uri, "key_prefix": server.new_prefix()}})


def on_kafka(server: kafka.Server) -> Served:
    """A deployment on a Kafka broker, with topics and a group of its own."""
    prefix = server.new_prefix()
    return Served(
        {
            "type": "kafka",
            "redis": {"consumer_group": f"{prefix}group"},
            "kafka": {
                "bootstrap_servers": server.address,
                "topic_prefix": prefix,
                "session_timeout_ms": 1_000,
            },
        }
    )


async def read(bus: Bus, name: str) -> Topic:
    """All that a topic holds; nothing if it does not exist."""
    info = await bus.find_topic(name)
    if info is None:
        return Topic(name, [], [])
    bounds = {p: await bus.bounds(name, p) for p in range(info.partitions)}
    records: list[list[Record]] = [[] for _ in bounds]
    places = {p: b.first for p, b in bounds.items() if b.first < b.next}
    while places:
        found = await bus.poll(name, places, _POLL_BYTES, 0)
        for partition, polled in found.items():
            records[partition] += [r for r in polled if r.offset < bounds[partition].next]
            places[partition] = polled[-1].offset + 1
        places = {p: at for p, at in places.items() if p in found and at < bounds[p].next}
    return Topic(name, records, [await _received(bus, name, p, b.next) for p, b in bounds.items()])


async def received(bus: Bus, name: str) -> list[int]:
    """The log's own count of the events of each partition; empty if there is no topic."""
    info = await bus.find_topic(name)
    partitions = range(info.partitions if info else 0)
    ends = {p: (await bus.bounds(name, p)).next for p in partitions}
    return [await _received(bus, name, p, end) for p, end in ends.items()]


async def _received(bus: Bus, name: str, partition: int, offset: int) -> int:
    found = await bus.received(name, partition, offset)
    assert found is not None
    return found
