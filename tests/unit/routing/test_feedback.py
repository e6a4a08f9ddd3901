"""Feedback goes over the bus, survives what happens to it, and can hurt nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.unit.routing.test_rate import event

from market_data_core.clock import ManualClock
from market_data_core.errors import LogLostError, MdpError, TransientError
from market_data_core.feedback import FEEDBACK_TOPIC, FeedbackEvent
from market_data_core.records import Entry, Record
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.routing.feedback import FeedbackListener, FeedbackTopic

ENOUGH_S = 10.0
HOUR_NS = 3_600 * 10**9


class FlakyBus(EmbeddedBus):
    """Fails the next calls."""

    failures = 0
    error: type[MdpError] = TransientError

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error("as it was told to")

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        self._fail()
        await super().append(topic, entries)

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        self._fail()
        return await super().poll(topic, positions, max_bytes, timeout_s)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[FlakyBus]:
    opened = FlakyBus(tmp_path)
    yield opened
    await opened.close()


class Heard:
    """What a listener was told."""

    def __init__(self, bus: EmbeddedBus) -> None:
        self.events: list[FeedbackEvent] = []
        self.listener = FeedbackListener(bus, self.take)

    async def take(self, event: FeedbackEvent) -> None:
        self.events.append(event)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(ENOUGH_S):
            while len(self.events) < count:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def listening(bus: EmbeddedBus) -> AsyncIterator[Heard]:
    """A listener that has found the present end."""
    heard = Heard(bus)
    looked = asyncio.Event()
    poll = bus.poll

    async def told(*arguments: object) -> dict[int, list[Record]]:
        found = await poll(*arguments)  # type: ignore[arg-type]
        looked.set()
        return found

    bus.poll = told  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(heard.listener.run())
    try:
        await asyncio.wait_for(looked.wait(), ENOUGH_S)
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_published_is_heard_from_now_on(bus: FlakyBus) -> None:
    topic = FeedbackTopic(bus)
    await topic.publish(event("hard"))
    async with listening(bus) as heard:
        sent = [event("soft", at_s=1), event("ok", "b", 2)]
        for each in sent:
            await topic.publish(each)
        await heard.until(2)
    assert heard.events == sent
    assert heard.listener.received == 2
    assert topic.sent == 3
    info = await bus.find_topic(FEEDBACK_TOPIC)
    assert info
    assert info.partitions == 1


async def test_what_is_no_feedback_is_counted_and_skipped(bus: FlakyBus) -> None:
    topic = FeedbackTopic(bus)
    with capture_logs() as logs:
        async with listening(bus) as heard:
            for payload in (b"\x00", b'{"level": "harder"}'):
                await bus.append(FEEDBACK_TOPIC, [Entry(0, payload)])
            await topic.publish(event("soft"))
            await heard.until(1)
    assert heard.events == [event("soft")]
    assert heard.listener.malformed == 2
    assert [line["offset"] for line in logs if line["event"] == "not a feedback event"] == [0, 1]


@pytest.mark.parametrize("error", [TransientError, LogLostError])
async def test_a_listener_goes_on_after_an_error(bus: FlakyBus, error: type[MdpError]) -> None:
    """The bus does not answer, or was trimmed beyond where the listener stood."""
    topic = FeedbackTopic(bus)
    async with listening(bus) as heard:
        bus.failures, bus.error = 2, error
        async with asyncio.timeout(ENOUGH_S):
            while bus.failures:
                await asyncio.sleep(0.001)
        await topic.publish(event("hard"))
        await heard.until(1)


async def test_a_topic_that_is_dropped_is_made_and_heard_again(bus: FlakyBus) -> None:
    topic = FeedbackTopic(bus)
    async with listening(bus) as heard:
        await topic.publish(event("soft"))
        await heard.until(1)
        await bus.drop_topic(FEEDBACK_TOPIC)
        number = 0
        async with asyncio.timeout(ENOUGH_S):
            while len(heard.events) < 2:  # a coordinator repeats what is not ok
                number += 1
                await topic.publish(event("hard", at_s=number))
                await asyncio.sleep(0.01)
    assert heard.events[1].level == "hard"


async def test_publishing_never_raises(bus: FlakyBus) -> None:
    topic = FeedbackTopic(bus)
    bus.failures = 1
    with capture_logs() as logs:
        await topic.publish(event("hard"))
    assert (topic.sent, topic.failed) == (0, 1)
    assert [line["event"] for line in logs] == ["feedback was not sent"]
    await topic.publish(event("hard"))
    assert (topic.sent, topic.failed) == (1, 1)
    await bus.close()
    await topic.publish(event("hard"))
    assert topic.failed == 2


async def test_old_feedback_is_trimmed(tmp_path: Path) -> None:
    clock = ManualClock(10**18)
    bus = EmbeddedBus(tmp_path, clock=clock)
    try:
        topic = FeedbackTopic(bus, clock=clock)
        for _ in range(3):
            await topic.publish(event("hard"))
        clock.advance(HOUR_NS + 1)
        await topic.publish(event("ok"))
        bounds = await bus.bounds(FEEDBACK_TOPIC, 0)
        assert (bounds.first, bounds.next) == (3, 4)
    finally:
        await bus.close()
