"""Micro-batchers come and go with the generations of the live topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from market_data_core.clock import ManualClock
from market_data_core.config import Settings
from market_data_core.contracts.store import Message, PartitionKey
from market_data_core.errors import LogLostError, TransientError
from market_data_core.events import make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Mark
from market_data_pipeline import live_batchers
from market_data_pipeline.assembly import Assembly, Summary
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.generations import Generations, lead_ns, sealed_at
from market_data_pipeline.live_batchers import LiveBatchers
from market_data_pipeline.patience import StoppedWaiting
from market_data_pipeline.windows.checkpoint import decode_checkpoint
from market_data_pipeline.windows.group import PartitionGroup

S = 10**9
T = 1_700_000_000 * S
LEAD = lead_ns(S)
BEGINS = (T, T + 20 * S, T + 40 * S)
COUNTS = (2, 3, 1)
TOPICS = ("mdp.events", "mdp.events-g2", "mdp.events-g3")


def settings(path: Path) -> Settings:
    return Settings.model_validate(
        {
            "bus": {"partitions": 2, "embedded": {"path": str(path / "bus")}},
            "store": {"uri": f"sqlite:///{path}/store.db"},
            "micro_batch": {
                "windows": ["2s", "4s"],
                "allow_late_ms": 0,
                "max_future_ms": 1000,
                "revise_horizon_ms": 2000,
                "commit_interval_ms": 10,
            },
        }
    )


class World:
    """Three generations, of which two are over."""

    def __init__(self, backends: Backends, chosen: Settings, clock: ManualClock) -> None:
        self.bus, self.store, self.clock = backends.bus, backends.store, clock
        self.parts = Assembly(chosen, backends)
        self.batchers = LiveBatchers(self.parts)

    async def begin(self) -> None:
        await self.parts.result_topics("mdp.bars")
        operator = Generations(self.bus, TOPICS[0], self.clock)
        await operator.open(COUNTS[0])
        for begins, count in zip(BEGINS[1:], COUNTS[1:], strict=True):
            self.clock.time_ns = begins - LEAD
            await operator.enter(count, begins, COUNTS[0], LEAD)
        for number, begins in enumerate(BEGINS):
            self.clock.time_ns = begins + 10 * S
            await self.append(number, begins + 5 * S)
            await self.tell(number, begins + 30 * S)
        await self.parts.generations.open(COUNTS[0])

    async def append(self, number: int, src_ts: int, symbol: str = "SPY") -> None:
        """An event of `src_ts` into the log of a generation."""
        self.clock.time_ns = max(self.clock.time_ns, src_ts)
        batch = make_batch("p", [symbol], [src_ts], [0], [1.0], [1.0])
        partition = partition_of(symbol, COUNTS[number])
        payload = codec.encode_columns(batch)
        await self.bus.append(TOPICS[number], [Entry(partition, payload, 1, "p", src_ts, src_ts)])

    async def tell(self, number: int, ts: int) -> None:
        """The feed has reached `ts`."""
        self.clock.time_ns = max(self.clock.time_ns, ts)
        payload = codec.encode_mark(Mark(kind="progress", provider="p", ts=ts))
        numbers = range(COUNTS[number])
        await self.bus.append(TOPICS[number], [Entry(p, payload, provider="p") for p in numbers])

    @property
    def working(self) -> set[int]:
        """Numbers of the generations that are worked on."""
        return set(self.batchers._works)

    async def sealed(self, number: int) -> bool:
        info = await self.bus.find_topic(TOPICS[number])
        assert info is not None
        return (
            await sealed_at(self.bus, self.store, self.parts.settings.bus.group, info) is not None
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[Summary]]:
        stop = asyncio.Event()
        task = asyncio.create_task(self.batchers.run(stop))
        try:
            yield task
        finally:
            stop.set()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name in ("_LOOK_EVERY_S", "_SEALED_EVERY_S", "_QUIET_S"):
        monkeypatch.setattr(live_batchers, name, 0.02)
    chosen, clock = settings(tmp_path), ManualClock(T)
    async with open_backends(chosen, clock) as backends:
        made = World(backends, chosen, clock)
        await made.begin()
        yield made


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_sealed_generation_is_let_go_and_the_configured_one_is_not(world: World) -> None:
    assert not await world.sealed(1)
    async with world.running() as task:
        await until(lambda: world.working == {1, 2, 3})
        await until(lambda: world.working == {1, 3})
    summary = task.result()
    assert [await world.sealed(n) for n in range(3)] == [True, True, True]
    assert summary.counts.received == summary.received == 3
    assert summary.counts.holds()
    assert summary.written.inserted == 2 * 3
    assert world.parts.progress.span == (BEGINS[0] + 4 * S, BEGINS[2] + 4 * S)


async def test_who_writes_to_a_sealed_generation_is_read(world: World) -> None:
    async with world.running() as task:
        await until(lambda: world.working == {1, 3})
        await world.append(1, BEGINS[2] + 31 * S, "QQQ")  # of the third by its time
        await until(lambda: 2 in world.working)
        await until(lambda: world.working == {1, 3})
        await until(lambda: world.parts.progress.received == 4)
    assert task.result().counts.received == 4
    bounds = await world.bus.bounds(TOPICS[2], 0)
    (record,) = (await world.bus.poll(TOPICS[2], {0: bounds.next - 1}, 1, 0))[0]
    assert record.count == 1


async def test_a_change_that_is_entered_meanwhile_is_worked_on(world: World) -> None:
    async with world.running():
        await until(lambda: world.working == {1, 3})
        operator = Generations(world.bus, TOPICS[0], world.clock)
        await operator.look(2)
        await operator.enter(5, world.clock.now_ns() + LEAD, 2, LEAD)
        await until(lambda: world.working == {1, 3, 4})


async def test_a_worker_that_has_not_looked_takes_nothing_of_a_generation_it_does_not_know(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running():
        await until(lambda: world.working == {1, 3})
        monkeypatch.setattr(live_batchers, "_LOOK_EVERY_S", 3600.0)
        await asyncio.sleep(0.05)  # the look that is under way
        operator = Generations(world.bus, TOPICS[0], world.clock)
        await operator.look(2)
        fourth = await operator.enter(1, world.clock.now_ns() + LEAD, 2, LEAD)
        await world.append(2, fourth.from_ts + S)
        async with asyncio.timeout(10):
            while not (await world.bus.bounds(fourth.topic, 0)).next:
                await asyncio.sleep(0.01)
        assert 4 not in world.working


async def test_messages_of_a_worker_that_died_are_published(world: World) -> None:
    async with world.running():
        await until(lambda: world.working == {1, 3})
    key = PartitionKey(world.parts.settings.bus.group, TOPICS[1], partition_of("SPY", 3))
    claim = await world.store.claim(key, "dying", S)
    assert claim is not None
    assert claim.checkpoint is not None
    left = decode_checkpoint(claim.checkpoint)
    message = Message("mdp.dlq", "left", b"x", partition=0)
    await world.store.commit([PartitionGroup(claim, [], "", left, [], [message], "mdp.dlq")], [])
    world.clock.advance(3600 * S)
    before = (await world.bus.bounds("mdp.dlq", 0)).next
    async with world.running():
        await until(lambda: 2 in world.working)
        await until(lambda: world.working == {1, 3})
    assert (await world.bus.bounds("mdp.dlq", 0)).next == before + 1


async def test_a_log_that_is_gone_ends_the_run(world: World, tmp_path: Path) -> None:
    async with world.running() as task:
        await until(lambda: world.working == {1, 3})
        (tmp_path / "bus" / f"{TOPICS[2]}.db").unlink()
        with pytest.raises(LogLostError):
            await asyncio.wait_for(asyncio.shield(task), 20)


async def test_who_is_asked_to_end_does_not_wait_for_a_bus_that_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = asyncio.Event()

    async def away() -> None:
        stop.set()
        raise TransientError("the bus is away")

    monkeypatch.setattr(world.parts.generations, "refresh", away)
    with pytest.raises(StoppedWaiting, match="the bus is away"):
        await asyncio.wait_for(world.batchers.run(stop), 10)
