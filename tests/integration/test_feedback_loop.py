"""A store that falls behind stops the producers of other processes, and lets them go again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.integration.conftest import Deployment

from market_data_core.feedback import FeedbackEvent, FeedbackLevel
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.routing.feedback import FeedbackTopic

EVENTS = "mdp.events"
ENOUGH_S = 30.0
STOPS_WITHIN_S = 1.0
REPEATED_S = 0.1  # a coordinator does every second
QUIET_S = 0.4
STALE_S = 2.0
_PRODUCE = f"""
from market_data_pipeline.cli import main
from market_data_pipeline.routing.rate import RateCoordinator
RateCoordinator.__init__.__kwdefaults__["stale_s"] = {STALE_S}  # for which nobody wants to wait
main()
"""


@dataclass
class Producing:
    """A producer in a process of its own, and the log that it writes to."""

    bus: EmbeddedBus
    partitions: int
    topic: FeedbackTopic
    repeating: set[asyncio.Task[None]] = field(default_factory=set)

    async def received(self) -> int:
        ends = [(await self.bus.bounds(EVENTS, p)).next for p in range(self.partitions)]
        return sum([await self.bus.received(EVENTS, p, end) or 0 for p, end in enumerate(ends)])

    async def until(self, reached: Callable[[int], bool], within_s: float = ENOUGH_S) -> int:
        async with asyncio.timeout(within_s):
            while not reached(found := await self.received()):
                await asyncio.sleep(0.005)
        return found

    async def until_quiet(self) -> float:
        """When the last event came (seconds of time.monotonic), once none has for a while."""
        count, since = await self.received(), time.monotonic()
        async with asyncio.timeout(ENOUGH_S):
            while time.monotonic() < since + QUIET_S:
                await asyncio.sleep(0.005)
                if (now := await self.received()) != count:
                    count, since = now, time.monotonic()
        return since

    async def say(self, level: FeedbackLevel) -> None:
        await self.topic.publish(
            FeedbackEvent(coordinator_id="c", level=level, queue_size=9, capacity=10)
        )

    @asynccontextmanager
    async def saying(self, level: FeedbackLevel) -> AsyncIterator[None]:
        """Say it, and again and again, as a coordinator does while it is not ok."""

        async def repeat() -> None:
            while True:
                await self.say(level)
                await asyncio.sleep(REPEATED_S)

        task = asyncio.create_task(repeat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def producing(deployment: Deployment) -> AsyncIterator[Producing]:
    config = deployment.folder / "configs" / "streaming.yaml"
    config.write_text(
        "version: 1\ntelemetry: {metrics_port: 0}\n"
        "producers: {synthetic: {symbols: [SPY, AAPL], tick_rate: 100}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PRODUCE, "stream", "produce"),
        cwd=deployment.folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    bus = EmbeddedBus(deployment.folder / ".mdp" / "bus")
    try:
        async with asyncio.timeout(ENOUGH_S):
            while (info := await bus.find_topic(EVENTS)) is None:
                await asyncio.sleep(0.01)
        running = Producing(bus, info.partitions, FeedbackTopic(bus))
        await running.until(lambda n: n > 50)
        yield running
        process.terminate()
        assert await asyncio.wait_for(process.wait(), ENOUGH_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await bus.close()


async def test_hard_stops_a_producer_and_ok_lets_it_go(producing: Producing) -> None:
    async with producing.saying("hard"):
        told = time.monotonic()
        assert await producing.until_quiet() < told + STOPS_WITHIN_S
        held = await producing.received()
    await producing.say("ok")
    await producing.until(lambda n: n > held + 50, STALE_S / 2)  # rather than when it expires


async def test_hard_that_is_not_repeated_expires(producing: Producing) -> None:
    told = time.monotonic()
    await producing.say("hard")
    await producing.until_quiet()
    held = await producing.received()
    await producing.until(lambda n: n > held + 50)
    assert time.monotonic() >= told + STALE_S
