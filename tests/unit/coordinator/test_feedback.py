"""Feedback: levels, repetition, and the ways it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.errors import RejectedError, UsageError
from market_data_core.feedback import FeedbackEvent, decode_feedback, encode_feedback
from market_data_store.coordinator import FeedbackBus, HttpFeedbackBroadcaster

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make


def _event(level: Any = "soft", size: int = 60, coordinator: str = "c") -> FeedbackEvent:
    return FeedbackEvent(coordinator_id=coordinator, level=level, queue_size=size, capacity=100)


def test_an_event_is_json_of_the_agreed_shape() -> None:
    event = FeedbackEvent(
        coordinator_id="production",
        level="hard",
        queue_size=9001,
        capacity=10_000,
        ts=datetime(2025, 10, 24, 14, tzinfo=UTC),
        reason="full",
    )
    assert json.loads(encode_feedback(event)) == {
        "coordinator_id": "production",
        "source": "store_coordinator",
        "level": "hard",
        "queue_size": 9001,
        "capacity": 10_000,
        "ts": "2025-10-24T14:00:00Z",
        "reason": "full",
    }
    assert decode_feedback(encode_feedback(event)) == event


@pytest.mark.parametrize(
    "change",
    [{"level": "panic"}, {"queue_size": -1}, {"ts": "2025-10-24T14:00:00"}, {"capacity": 0}],
)
def test_what_is_no_event_is_refused(change: dict[str, Any]) -> None:
    broken = json.loads(encode_feedback(_event())) | change
    with pytest.raises(RejectedError) as caught:
        decode_feedback(json.dumps(broken))
    assert caught.value.reason == "malformed"


class Heard:
    """A feedback sink that remembers."""

    def __init__(self) -> None:
        self.events: list[FeedbackEvent] = []
        self.more = asyncio.Event()

    def publish(self, event: FeedbackEvent) -> None:
        self.events.append(event)
        self.more.set()

    async def until(self, count: int) -> list[FeedbackEvent]:
        while len(self.events) < count:
            self.more.clear()
            await self.more.wait()
        return self.events


async def test_levels_are_told_on_change_and_repeated(make: Make, sink: ControlledSink) -> None:
    heard = Heard()
    sink.open.clear()
    async with make(
        capacity=10, workers=1, batch_size=1, feedback=heard, feedback_repeat=0.005
    ) as coordinator:
        await coordinator.submit_many(range(5))
        await sink.wait_until_called(1)
        await asyncio.sleep(0.02)
        assert heard.events == []  # four of ten wait
        await coordinator.submit(5)
        events = await heard.until(3)
        assert {(event.level, event.queue_size) for event in events} == {("soft", 5)}
        await coordinator.submit_many(range(4))
        events = await heard.until(len(events) + 1)
        assert events[-1].level == "hard"
        assert events[-1].coordinator_id == coordinator.coord_id
        sink.open.set()
        await coordinator.flush()
        while heard.events[-1].level != "ok":
            await heard.until(len(heard.events) + 1)
        told = len(heard.events)
        await asyncio.sleep(0.02)
        assert len(heard.events) == told


async def test_a_feedback_sink_that_raises_or_hangs_hurts_nobody(
    make: Make, sink: ControlledSink
) -> None:
    class Broken:
        async def publish(self, event: FeedbackEvent) -> None:
            if event.level == "soft":
                raise RuntimeError
            await asyncio.Event().wait()

    heard = Heard()
    sink.open.clear()
    async with make(
        capacity=10, batch_size=1, feedback=[Broken(), heard], callback_timeout=0.001, workers=1
    ) as coordinator:
        await coordinator.submit_many(range(7))
        await heard.until(1)
        await coordinator.submit_many(range(4))
        await heard.until(2)
        assert coordinator.health().callback_errors == 2
        sink.open.set()
    assert len(sink.items) == 11


async def test_a_slow_subscriber_gets_the_latest_and_keeps_no_other_waiting() -> None:
    bus = FeedbackBus()
    slow: list[int] = []
    quick: list[int] = []
    hold = asyncio.Event()

    async def sluggish(event: FeedbackEvent) -> None:
        slow.append(event.queue_size)
        await hold.wait()

    bus.subscribe(sluggish)
    stop = bus.subscribe(lambda event: quick.append(event.queue_size))
    for size in range(1000):
        bus.publish(_event(size=size))
        await asyncio.sleep(0)
    assert quick[-1] == 999
    assert len(quick) > 900
    stop()
    bus.publish(_event(size=1000))
    hold.set()
    await bus.close()
    assert slow == [0, 1000]
    assert 1000 not in quick


async def test_a_subscriber_that_raises_gets_the_next_event() -> None:
    bus = FeedbackBus()
    seen: list[str] = []

    def touchy(event: FeedbackEvent) -> None:
        seen.append(event.level)
        raise RuntimeError

    bus.subscribe(touchy)
    bus.publish(_event("soft", coordinator="a"))
    bus.publish(_event("hard", coordinator="b"))
    await bus.close()
    assert seen == ["soft", "hard"]


class Server:
    """Answers posts with the statuses it is given."""

    def __init__(self, statuses: list[str]) -> None:
        self.statuses = statuses
        self.requests: list[bytes] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, rest = head.lower().partition(b"content-length: ")
        length = int(rest.split(b"\r\n")[0] or 0)
        self.requests.append(head + await reader.readexactly(length))
        status = self.statuses.pop(0) if self.statuses else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def _serving(*statuses: str) -> AsyncIterator[Server]:
    server = Server(list(statuses))
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}/feedback"
        yield server


async def test_http_posts_the_event_with_the_token() -> None:
    async with _serving() as server:
        broadcaster = HttpFeedbackBroadcaster(server.url, token="s3cret")
        event = _event("hard")
        broadcaster.publish(event)
        await broadcaster.close()
    (request,) = server.requests
    assert request.startswith(b"POST /feedback ")
    assert b"Authorization: Bearer s3cret" in request
    assert decode_feedback(request.split(b"\r\n\r\n")[1]) == event


async def test_http_tries_again_and_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "503 Unavailable"
    async with _serving(bad, bad, "200 OK", bad, bad, bad) as server:
        broadcaster = HttpFeedbackBroadcaster(server.url, token="s3cret", backoff_s=0.001)
        broadcaster.publish(_event(coordinator="a"))
        broadcaster.publish(_event(coordinator="b"))
        await broadcaster.close()
        assert (broadcaster.sent, broadcaster.failed) == (1, 1)
    assert len(server.requests) == 6
    assert "s3cret" not in "".join(capsys.readouterr())


async def test_http_follows_no_redirect() -> None:
    async with _serving() as other, _serving(f"302 Found\r\nLocation: {other.url}") as server:
        broadcaster = HttpFeedbackBroadcaster(server.url, token="s3cret", attempts=1)
        broadcaster.publish(_event())
        await broadcaster.close()
        assert broadcaster.failed == 1
    assert other.requests == []


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid"):
        HttpFeedbackBroadcaster("file:///etc/passwd")
