"""What the tests of the Redis bus share: buses on any server, and readers that go on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.servers.redis import Server

from market_data_core.config import RedisBusSettings
from market_data_core.errors import TransientError
from market_data_core.records import Entry, Record
from market_data_pipeline.bus.redis import RedisBus

TOPIC = "mdp.events"
PLENTY = 1 << 30


def entry(payload: str | bytes, partition: int = 0, count: int = 1, **more: Any) -> Entry:
    """An entry of events at time 1."""
    data = payload.encode() if isinstance(payload, str) else payload
    return Entry(partition, data, count, "p", 1, 1, **more)


def event(symbol: str = "SPY", seq: int = 1, second: int = 1, **more: Any) -> str:
    """A tick as others write it."""
    price = dict.fromkeys("ohlc", 100.25 + seq)
    src_ts = f"2025-10-24T14:02:{second:02}.{seq:06}Z"
    plain = {"ver": 1, "provider": "them", "symbol": symbol, "src_ts": src_ts, "v": 10, "seq": seq}
    return json.dumps(plain | price | more)


@asynccontextmanager
async def opened(uri: str, prefix: str = "", replicas: int = 0) -> AsyncIterator[RedisBus]:
    """A bus on a server, closed at the end."""
    bus = RedisBus(RedisBusSettings(uri=uri, key_prefix=prefix, replicas=replicas))
    try:
        yield bus
    finally:
        await bus.close()


def needs_7(server: Server) -> None:
    """Skip a test of what older servers cannot tell, or keep elsewhere."""
    with server.client() as client:
        version = client.info("server")["redis_version"]
    if int(version.split(".")[0]) < 7:
        pytest.skip(f"Redis {version} does not count what others remove")


def data_of(server: Server) -> Path:
    """The folder in which a server keeps what it has taken."""
    with server.client() as client:
        return Path(client.config_get("dir")["dir"])


async def read_all(bus: RedisBus, partition: int = 0, position: int | None = None) -> list[Record]:
    """Everything from a position (None: the first) to the partition's end."""
    if position is None:
        position = (await bus.bounds(TOPIC, partition)).first
    records: list[Record] = []
    while found := await bus.poll(TOPIC, {partition: position}, PLENTY, 0):
        records += found[partition]
        position = records[-1].offset + 1
    return records


def texts(records: list[Record]) -> list[str]:
    """The payloads as text."""
    return [record.payload.decode() for record in records]


async def received(bus: RedisBus, partition: int = 0) -> int | None:
    """Events that the partition has received."""
    return await bus.received(TOPIC, partition, (await bus.bounds(TOPIC, partition)).next)


async def patient(call: Callable[[], Any], patience_s: float = 20.0) -> Any:
    """The result of a call, made again while the server is away."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await call()
        except TransientError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def until(check: Callable[[], Any], patience_s: float = 20.0) -> Any:
    """The first true answer of a check."""
    deadline = time.monotonic() + patience_s
    while not (found := check()):
        assert time.monotonic() < deadline, "nothing has happened"
        await asyncio.sleep(0.01)
    return found
