"""How full the queue is, and who is told: callbacks, and feedback in process or over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import math
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from market_data_core.errors import UsageError
from market_data_core.feedback import FeedbackEvent, FeedbackLevel, encode_feedback
from market_data_core.redaction import redact
from market_data_store.coordinator._calls import call_safely

log = structlog.get_logger("feedback")

SOFT_FROM, HARD_FROM, OK_BELOW = 0.5, 0.9, 0.2
"""Parts of the capacity at which feedback changes; between them it stays what it was."""

_MAILBOX_MAX = 64


class FeedbackSink(Protocol):
    """Takes feedback events to those who fill the queue."""

    def publish(self, event: FeedbackEvent) -> Any:
        """Take the event; may be async. A later event of a coordinator replaces earlier ones."""
        ...


class Pressure:
    """What a number of waiting rows means, with hysteresis.

    A level rises at once. It falls from ``hard`` to ``soft`` below half of the capacity, and to
    ``ok`` below a fifth.

    Args:
        capacity: rows.
        high: part of the capacity from which the queue is high.
        low: part of it to which it has to fall to be low again.

    Attributes:
        high: whether the queue is high.
        level: the feedback level.
        upper: rows from which something changes.
        lower: rows down to which something changes; -1 if nothing can.
    """

    def __init__(self, capacity: int, high: float, low: float) -> None:
        self._high_from = max(1, math.ceil(capacity * high))
        self._low_to = math.floor(capacity * low)
        self._soft_from = max(1, math.ceil(capacity * SOFT_FROM))
        self._hard_from = max(1, math.ceil(capacity * HARD_FROM))
        self._ok_to = math.ceil(capacity * OK_BELOW) - 1
        self.high = False
        self.level: FeedbackLevel = "ok"
        self._set_bounds()

    def update(self, rows: int) -> None:
        """Take in that `rows` wait."""
        if rows >= self._high_from:
            self.high = True
        elif rows <= self._low_to:
            self.high = False
        if rows >= self._hard_from:
            self.level = "hard"
        elif rows <= self._ok_to:
            self.level = "ok"
        elif rows >= self._soft_from:
            self.level = "soft" if self.level == "ok" else self.level
        elif self.level == "hard":
            self.level = "soft"
        self._set_bounds()

    def _set_bounds(self) -> None:
        upper = [] if self.high else [self._high_from]
        upper += {"ok": [self._soft_from], "soft": [self._hard_from], "hard": []}[self.level]
        lower = [self._low_to] if self.high else []
        lower += {"ok": [], "soft": [self._ok_to], "hard": [self._soft_from - 1]}[self.level]
        self.upper = min(upper, default=2**63)
        self.lower = max(lower, default=-1)


class FeedbackBus:
    """Feedback within one event loop.

    Each subscriber has a mailbox of its own, which keeps the latest event of each coordinator
    (64 coordinators at most) while the subscriber is busy. A subscriber that raises or hangs is
    logged and does not keep others waiting.

    Args:
        timeout_s: how long a subscriber may take for one event.
    """

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._subscribers: list[_Mailbox] = []

    def subscribe(self, callback: Callable[[FeedbackEvent], Any]) -> Callable[[], None]:
        """Call `callback` (plain or async) with every event, until what is returned is called."""
        mailbox = _Mailbox(callback, self._timeout_s)
        self._subscribers.append(mailbox)

        def unsubscribe() -> None:
            if mailbox in self._subscribers:
                self._subscribers.remove(mailbox)
                mailbox.stop()

        return unsubscribe

    def publish(self, event: FeedbackEvent) -> None:
        """Give the event to all subscribers; returns at once."""
        for mailbox in self._subscribers:
            mailbox.put(event)

    async def close(self) -> None:
        """Deliver what lies in mailboxes, then drop all subscribers."""
        mailboxes, self._subscribers = self._subscribers, []
        for mailbox in mailboxes:
            await mailbox.drain()


class HttpFeedbackBroadcaster:
    """Posts feedback as JSON, for a pipeline in another process.

    Only the latest event of each coordinator waits. A post that fails is tried again a few
    times, unless a newer event has come; what is lost heals with the next event, which a
    coordinator repeats while its level is not ok. Redirects are refused, because they would
    carry the token elsewhere.

    Args:
        url: such as ``http://127.0.0.1:8000/feedback``.
        token: sent as ``Authorization: Bearer …``; never logged.
        timeout_s: for one attempt.
        attempts: at most, for one event.
        backoff_s: pause after the first failed attempt; doubles.

    Raises:
        UsageError: not an http or https URL.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 2.0,
        attempts: int = 3,
        backoff_s: float = 0.1,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"feedback URL {redact(url)!r} is not valid; give http://host:port/feedback"
            raise UsageError(msg)
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s, self._attempts, self._backoff_s = timeout_s, attempts, backoff_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        span_s = attempts * (timeout_s + backoff_s * 2**attempts)
        self._mailbox = _Mailbox(self._send, span_s)
        self.sent = 0
        self.failed = 0

    def publish(self, event: FeedbackEvent) -> None:
        """Send the event in the background; returns at once."""
        self._mailbox.put(event)

    async def close(self) -> None:
        """Send what waits, then stop."""
        await self._mailbox.drain()

    async def _send(self, event: FeedbackEvent) -> None:
        for attempt in range(self._attempts):
            try:
                await asyncio.to_thread(self._post, encode_feedback(event))
            except (OSError, http.client.HTTPException) as error:
                reason = redact(str(error))
                log.warning("not_delivered", url=redact(self._url), error=reason, attempt=attempt)
            else:
                self.sent += 1
                return
            if self._mailbox.holds(event.coordinator_id) or attempt + 1 == self._attempts:
                break
            await asyncio.sleep(self._backoff_s * 2**attempt)
        self.failed += 1

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(  # noqa: S310  (the scheme was checked)
            self._url, data=body, headers=self._headers, method="POST"
        )
        with self._opener.open(request, timeout=self._timeout_s) as response:
            response.read(1024)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class _Mailbox:
    """The latest event of each coordinator, delivered one after the other by a task."""

    def __init__(self, callback: Callable[[FeedbackEvent], Any], timeout_s: float) -> None:
        self._callback, self._timeout_s = callback, timeout_s
        self._events: OrderedDict[str, FeedbackEvent] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def holds(self, coordinator_id: str) -> bool:
        return coordinator_id in self._events

    def put(self, event: FeedbackEvent) -> None:
        self._events.pop(event.coordinator_id, None)
        self._events[event.coordinator_id] = event
        if len(self._events) > _MAILBOX_MAX:
            self._events.popitem(last=False)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._deliver())

    def stop(self) -> None:
        self._events.clear()
        if self._task is not None:
            self._task.cancel()

    async def drain(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _deliver(self) -> None:
        while self._events:
            _, event = self._events.popitem(last=False)
            await call_safely(
                self._callback, event, timeout_s=self._timeout_s, failed=self._complain
            )

    def _complain(self, error: BaseException) -> None:
        log.warning("subscriber_failed", error=redact(str(error)), type=type(error).__name__)
