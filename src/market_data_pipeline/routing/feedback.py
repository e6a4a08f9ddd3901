"""Feedback over the bus: from the write coordinators to the producers of every process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from market_data_core.clock import Clock, SystemClock
from market_data_core.contracts.bus import Bus
from market_data_core.errors import DamagedFileError, LogLostError, RejectedError
from market_data_core.feedback import (
    FEEDBACK_TOPIC,
    FeedbackEvent,
    decode_feedback,
    encode_feedback,
)
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry, Record
from market_data_core.redaction import redact
from market_data_pipeline.metrics import ERRORS
from market_data_pipeline.patience import patient

log = structlog.get_logger("feedback")

_KEPT_NS, _KEPT_BYTES = 3_600 * NS_PER_S, 1 << 20
_TRIM_EVERY_NS = 60 * NS_PER_S
_POLL_BYTES = 1 << 20
_ID_MAX = 128
# Looking a few times a second is soon enough for levels that last for seconds. A poll that waits
# would look at every append to any topic of the process instead.
_LOOK_EVERY_S = 0.05


class FeedbackTopic:
    """A coordinator's feedback sink that appends to a topic of the bus.

    The topic is made with the first event. What is older than an hour, or more than a mebibyte,
    is trimmed as new events come: only the present end is ever read.

    Args:
        bus: where the topic is.
        topic: its name.
        sender: joins the coordinator's id, which may be the same in several processes.
        clock: tells what is old.

    Attributes:
        sent: events that were appended.
        failed: events that were not; a coordinator repeats what is not ok, so that heals.
    """

    def __init__(
        self,
        bus: Bus,
        topic: str = FEEDBACK_TOPIC,
        *,
        sender: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._bus, self._topic, self._sender = bus, topic, sender
        self._clock = clock or SystemClock()
        self._trim_at = 0
        self.sent = 0
        self.failed = 0

    async def publish(self, event: FeedbackEvent) -> None:
        """Append the event; what goes wrong is logged and counted, never raised."""
        try:
            await self._bus.create_topic(self._topic, 1)  # it may have been dropped
            await self._trim()
            await self._bus.append(self._topic, [Entry(0, encode_feedback(self._signed(event)))])
            self.sent += 1
        except Exception as error:  # nothing that happens here may hurt the writer
            self.failed += 1
            ERRORS.labels("feedback", "not_sent").inc()
            log.warning("feedback was not sent", topic=self._topic, error=redact(str(error)))

    def _signed(self, event: FeedbackEvent) -> FeedbackEvent:
        if not self._sender:
            return event
        name = f"{event.coordinator_id}@{self._sender}"[:_ID_MAX]
        return msgspec.structs.replace(event, coordinator_id=name)

    async def _trim(self) -> None:
        now = self._clock.now_ns()
        if now < self._trim_at:
            return
        self._trim_at = now + _TRIM_EVERY_NS
        end = (await self._bus.bounds(self._topic, 0)).next
        await self._bus.trim(self._topic, 0, end, now - _KEPT_NS, _KEPT_BYTES)


class FeedbackListener:
    """Hands every feedback event that comes from now on to a callback.

    Args:
        bus: where the topic is.
        on_event: called with each event, in their order.
        topic: its name.

    Attributes:
        received: events that were handed over.
        malformed: records that were no feedback events; they are skipped.
    """

    def __init__(
        self,
        bus: Bus,
        on_event: Callable[[FeedbackEvent], Awaitable[object]],
        topic: str = FEEDBACK_TOPIC,
    ) -> None:
        self._bus, self._on_event, self._topic = bus, on_event, topic
        self.received = 0
        self.malformed = 0

    async def run(self) -> None:
        """Listen until cancelled; a bus that does not answer is waited for.

        Earlier events are of no interest: whoever is not ok says so again within seconds. A topic
        that cannot be read ends it with an error in the log: no feed should stop for that.
        """
        try:
            await self._listen()
        except DamagedFileError as error:
            ERRORS.labels("feedback", "not_heard").inc()
            log.error("feedback is not followed", error=str(error))  # noqa: TRY400

    async def _listen(self) -> None:
        while True:
            await patient(lambda: self._bus.create_topic(self._topic, 1))
            try:
                position = (await patient(lambda: self._bus.bounds(self._topic, 0))).next
                await self._follow(position)
            except LogLostError as error:  # dropped or trimmed: its present end will do
                log.info("feedback is read from the end again", error=str(error))

    async def _follow(self, position: int) -> None:
        while True:
            found = await patient(
                lambda at=position: self._bus.poll(self._topic, {0: at}, _POLL_BYTES, 0)  # type: ignore[misc]
            )
            for record in found.get(0, ()):
                await self._take(record)
                position = record.offset + 1
            if not found:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _take(self, record: Record) -> None:
        try:
            event = decode_feedback(record.payload)
        except RejectedError as error:
            self.malformed += 1
            ERRORS.labels("feedback", error.reason).inc()
            log.warning("not a feedback event", topic=self._topic, offset=record.offset)
            return
        await self._on_event(event)
        self.received += 1
