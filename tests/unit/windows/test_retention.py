"""What is forgotten on the bus, what never is, and who is told when that is too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from tests.property._harness import batcher_settings

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import PartitionKey, PartitionStatus, Positions
from market_data_core.errors import TransientError
from market_data_core.records import Entry, Record
from market_data_pipeline.archive.checkpoint import ArchiveCheckpoint
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.windows import retention
from market_data_pipeline.windows.checkpoint import Checkpoint
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.retention import Retention

EVENTS, BARS, LETTERS = "mdp.events", "mdp.bars", "mdp.dlq"
TOPICS = Topics(EVENTS, 2, BARS, LETTERS)
HOUR = 3_600 * 10**9
BYTES = 400_000


class Rows:
    """The positions of all groups, as the store tells them."""

    def __init__(self) -> None:
        self.rows: list[PartitionStatus] = []

    def add(
        self, group: str, partition: int, checkpoint: bytes | None, topic: str = EVENTS
    ) -> None:
        key = PartitionKey(group, topic, partition)
        self.rows.append(PartitionStatus(key, 1, "m", 0, 1, checkpoint))

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        wanted = [r for r in self.rows if topic in (None, r.key.topic)]
        return [r for r in wanted if group in (None, r.key.group)]


class World:
    """A bus with a topic of two partitions, and a worker that owns the first."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = ManualClock(10**18)
        self.store = Rows()
        self.bus = EmbeddedBus(folder, clock=self.clock)
        self.owned: dict[int, Any] = {}
        chosen: Any = {"retention_ns": HOUR, "group": "mine"} | settings
        self.settings = replace(batcher_settings("m", 1 << 20, 1), **chosen)
        self.retention = Retention(
            self.bus,
            cast("Positions", self.store),
            TOPICS,
            self.settings,
            self.clock,
            lambda: self.owned,
        )
        self.log_id = ""

    async def fill(self, records: int = 10, size: int = 10) -> None:
        """So many records in each partition, all of them old."""
        self.log_id = (await self.bus.create_topic(EVENTS, 2)).log_id
        for _ in range(records):
            await self.bus.append(EVENTS, [Entry(p, bytes(size), 1) for p in (0, 1)])
        self.clock.advance(2 * HOUR)

    async def left(self, topic: str = EVENTS, partition: int = 0) -> list[Record]:
        at = (await self.bus.bounds(topic, partition)).first
        found = await self.bus.poll(topic, {partition: at}, 1 << 30, 0)
        return found.get(partition, [])

    def own(self, partition: int, resume: int) -> None:
        self.owned[partition] = SimpleNamespace(place=SimpleNamespace(resume=resume))

    def windows_at(self, resume: int, log_id: str = "") -> bytes:
        return Checkpoint(log_id=log_id or self.log_id, resume=resume, counted=9).encode()

    def archive_at(self, position: int, log_id: str = "") -> bytes:
        checkpoint = ArchiveCheckpoint(archive="a", log_id=log_id or self.log_id, position=position)
        return checkpoint.encode()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    one = World(tmp_path / "bus")
    yield one
    await one.bus.close()


def exceeded() -> float:
    labels = {"component": "retention", "reason": "bound_exceeded"}
    return REGISTRY.get_sample_value("errors_total", labels) or 0.0


async def test_what_the_worker_has_passed_is_forgotten(world: World) -> None:
    await world.fill()
    world.own(0, 6)
    await world.retention.trim()
    assert [r.offset for r in await world.left()] == [6, 7, 8, 9]
    assert len(await world.left(partition=1)) == 10


@pytest.mark.parametrize(
    ("checkpoint", "kept_from"),
    [
        (lambda w: w.archive_at(4), 4),
        (lambda w: w.windows_at(5), 5),
        (lambda w: w.archive_at(8), 6),
        (lambda _: None, 0),
        (lambda w: w.archive_at(8, "another-log"), 0),
        (lambda _: b"\xc1 of a later release", 0),
        (lambda _: b"\x80", 0),
    ],
)
async def test_what_another_group_still_needs_is_kept(
    world: World, checkpoint: Any, kept_from: int
) -> None:
    """The slowest one decides; of one that tells nothing, everything is taken to be needed."""
    await world.fill()
    world.own(0, 6)
    world.store.add("mine", 0, world.windows_at(2))  # an older one of this very worker
    world.store.add("fast", 0, world.archive_at(10))
    world.store.add("theirs", 0, checkpoint(world))
    world.store.add("theirs", 1, world.archive_at(0))  # of another partition
    world.store.add("theirs", 0, world.archive_at(0), "another.topic")
    await world.retention.trim()
    assert (await world.bus.bounds(EVENTS, 0)).first == kept_from


async def test_what_is_published_is_forgotten_unless_a_group_reads_it(world: World) -> None:
    await world.fill()
    for topic in (BARS, LETTERS):
        log_id = (await world.bus.create_topic(topic, 1)).log_id
        await world.bus.append(topic, [Entry(0, b"x") for _ in range(5)])
    bars = await world.bus.find_topic(BARS)
    assert bars
    world.clock.advance(2 * HOUR)
    world.store.add("mine", 0, world.archive_at(3, bars.log_id), BARS)
    assert log_id != bars.log_id
    world.own(1, 0)
    await world.retention.trim()
    assert len(await world.left(BARS)) == 5  # that is the work of who owns partition 0
    world.own(0, 0)
    await world.retention.trim()
    assert [len(await world.left(topic)) for topic in (BARS, LETTERS)] == [2, 0]


async def test_a_topic_that_stays_too_large_is_told_of(tmp_path: Path) -> None:
    """Once a round, with the groups that it waits for; not while there is something to go."""
    world = World(tmp_path / "bus", retention_bytes=BYTES, retention_ns=100 * HOUR)
    await world.fill(40, 20_000)
    world.own(0, 30)
    world.own(1, 30)
    world.store.add("archive", 0, world.archive_at(3))
    world.store.add("archive", 1, world.archive_at(40))
    before = exceeded()
    with capture_logs() as logs:
        for _ in range(3):
            await world.retention.trim()
        assert exceeded() == before
        for _ in range(60):
            await world.retention.trim()
    told = [one for one in logs if one["log_level"] == "error"]
    assert exceeded() - before == len(told) > 0
    assert (told[-1]["topic"], told[-1]["groups_behind"]) == (EVENTS, ["archive"])
    assert "bus.retention.max_bytes" in told[-1]["event"]
    assert (await world.bus.bounds(EVENTS, 0)).first == 3
    assert (await world.bus.bounds(EVENTS, 1)).first == 30
    world.own(0, 40)
    world.own(1, 40)
    world.store.rows.clear()
    for _ in range(60):
        await world.retention.trim()
    before = exceeded()
    await world.retention.trim()
    assert exceeded() == before
    await world.bus.close()


async def test_it_works_beside_everything_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is entered; a bus or store that is away is met again in the next round."""
    monkeypatch.setattr(retention, "_FIRST_S", 0.0)
    monkeypatch.setattr(retention, "_EVERY_S", 0.001)
    await world.fill()
    world.own(0, 4)
    status, away = world.store.status, 3

    async def flaky(*arguments: Any) -> Any:
        nonlocal away
        away -= 1
        if away >= 0:
            msg = "away"
            raise TransientError(msg)
        return await status(*arguments)

    monkeypatch.setattr(world.store, "status", flaky)
    with capture_logs() as logs:
        async with world.retention, asyncio.timeout(10):
            while (await world.bus.bounds(EVENTS, 0)).first < 4:
                await asyncio.sleep(0.001)
    assert [one["log_level"] for one in logs].count("warning") == 3
    world.own(0, 8)
    await asyncio.sleep(0.02)
    assert (await world.bus.bounds(EVENTS, 0)).first == 4


async def test_a_lane_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_FIRST_S", 0.0)
    world = World(tmp_path / "bus", max_future_ns=None)
    await world.fill()
    world.own(0, 10)
    async with world.retention:
        await asyncio.sleep(0.02)
    assert len(await world.left()) == 10
    await world.bus.close()
