"""A log, a store and an archive in a folder of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Claim, CommitResult, Group, Positions
from market_data_core.events import EventBatch, make_batch
from market_data_core.records import Entry
from market_data_pipeline.archive import topic
from market_data_pipeline.archive.archiver import Archiver
from market_data_pipeline.archive.files import Archive, Selection
from market_data_pipeline.archive.settings import Archived, ArchiverSettings
from market_data_pipeline.archive.shelf import Shelf
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_store.backends.sqlite import SqliteStore
from market_data_store.opening import open_ready_store

NS = 10**9
START = 1_761_350_370 * NS  # 2025-10-24T23:59:30Z, so that a minute lies on two days
TOPIC, GROUP = "mdp.events", "g-archive"
LEASE_NS = 30 * NS


class Direct:
    """Commits without a coordinator: each error reaches whoever commits."""

    def __init__(self, store: Positions) -> None:
        self._store = store

    async def __aenter__(self) -> Direct:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        return await self._store.commit(groups, published, guard)

    def hold(self, rows: int) -> None:
        pass


@dataclass
class Desk:
    """A deployment whose clock stands still."""

    path: Path
    partitions: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)
    members: int = 0

    def __post_init__(self) -> None:
        self.clock = ManualClock(START + 120 * NS)

    @property
    def root(self) -> Path:
        return self.path / "archive"

    @property
    def archive(self) -> Archive:
        return Archive(self.root)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[EmbeddedBus, SqliteStore]]:
        bus = EmbeddedBus(self.path / "bus", clock=self.clock)
        store = await open_ready_store(f"sqlite:///{self.path}/store.db", self.clock)
        assert isinstance(store, SqliteStore)
        try:
            yield bus, store
        finally:
            await store.close()
            await bus.close()

    async def append(self, *payloads: bytes, partition: int = 0, topic: str = TOPIC) -> None:
        async with self.open() as (bus, _):
            if await bus.find_topic(topic) is None:
                await bus.create_topic(topic, self.partitions if topic == TOPIC else 1)
            await bus.append(topic, [Entry(partition, p, _events(p), "f") for p in payloads])

    def archiver(self, bus: Any, store: Any, shelf: Shelf | None = None) -> Archiver:
        self.members += 1
        values = {
            "group": GROUP,
            "member": f"m{self.members}",
            "lease_ns": LEASE_NS,
            "poll_bytes": 1 << 16,
            "file_bytes_max": 1 << 20,
            "file_seconds_max": 3600.0,
            "memory_bytes_max": 1 << 22,
            **self.settings,
        }
        return Archiver(
            bus, store, codec, shelf or Shelf(self.root), Direct(store),
            ArchiverSettings(**values), self.clock, {TOPIC: self.partitions, "mdp.dlq": 1},
        )  # fmt: skip

    async def once(self) -> Archived:
        """Archive what the log holds now."""
        async with self.open() as (bus, store):
            return await self.archiver(bus, store).run(asyncio.Event(), once=True)

    async def logged(self) -> Counter[tuple[Any, ...]]:
        """Every event of the log with its position, as the codec reads it."""
        async with self.open() as (bus, _):
            info = await bus.find_topic(TOPIC)
            assert info
            found: Counter[tuple[Any, ...]] = Counter()
            for number in range(info.partitions):
                bounds = await bus.bounds(TOPIC, number)
                position = bounds.first
                while position < bounds.next:
                    records = (await bus.poll(TOPIC, {number: position}, 1 << 20, 0))[number]
                    for record in records:
                        item = codec.decode(record.payload)
                        if isinstance(item, EventBatch):
                            for row, e in enumerate(item.events()):
                                where = (info.log_id, number, record.offset, row)
                                found[(*where, *_plain(e))] += 1
                    position = records[-1].offset + 1
            return found

    def archived(self) -> Counter[tuple[Any, ...]]:
        """Every event of the archive with its position."""
        found: Counter[tuple[Any, ...]] = Counter()
        for frame in self.archive.frames(Selection()):
            places = frame.select("log", "partition", "offset", "row").rows()
            values = frame.select(
                "provider", "symbol", pl.col("src_ts").cast(pl.Int64), "seq", *"ohlcv"
            ).rows()
            found.update((*a, *b) for a, b in zip(places, values, strict=True))
        return found


def _events(payload: bytes) -> int:
    try:
        item = codec.decode(payload)
    except Exception:
        return 1
    return len(item) if isinstance(item, EventBatch) else 1


def _plain(e: Any) -> tuple[Any, ...]:
    from market_data_core.events import parse_ts

    return (e.provider, e.symbol, parse_ts(e.src_ts), e.seq, e.o, e.h, e.l, e.c, e.v)


def batch(*rows: tuple[str, float, int, float], provider: str = "f", **more: Any) -> EventBatch:
    """Trades of (symbol, seconds after START, seq, price)."""
    symbols, at, seq, price = zip(*rows, strict=True)
    ts = [START + round(s * NS) for s in at]
    return make_batch(provider, symbols, ts, seq, price, [1.5] * len(rows), **more)


def packed(item: EventBatch) -> bytes:
    (payload,) = codec.encode_events(item, "columnar")
    return payload


def as_json(item: EventBatch) -> list[bytes]:
    return [msgspec.json.encode(e) for e in item.events()]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic, "_WAIT_S", 0.005)
    monkeypatch.setattr(topic, "_TICK_S", 0.002)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
