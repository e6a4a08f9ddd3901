"""How fast providers may read: all, half or nothing of their rate, as the store's feedback says.

Feedback is about the present. The latest event of a coordinator counts, the worst of all
coordinators decides, and a level that is neither ``ok`` nor repeated expires, because its sender
may be dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, perf_counter

import structlog

from market_data_core.feedback import FeedbackEvent, FeedbackLevel
from market_data_pipeline.metrics import (
    PIPELINE_BACKPRESSURE_STATE,
    PIPELINE_FEEDBACK_PROCESSING_LATENCY_MS,
    PIPELINE_FEEDBACK_QUEUE_DEPTH,
    PIPELINE_RATE_SCALE_FACTOR,
    PROVIDER,
    SOURCE,
)

log = structlog.get_logger("rate")

STALE_S = 10.0
"""Seconds after which a level that is not repeated expires; coordinators repeat every second."""

_SCALES: dict[FeedbackLevel, float] = {"ok": 1.0, "soft": 0.5, "hard": 0.0}
_STATES: dict[FeedbackLevel, int] = {"ok": 0, "soft": 1, "hard": 2}
_COORDINATORS_MAX = 1_000

_MEASURE_S = 1.0
_WEIGHT = 0.3
_TURN_S = 1.0
_EVENTS_PER_S_MIN = 1.0
FOREVER = float("inf")


class Pace:
    """One provider's reading, limited to a share of the rate that it had without a limit.

    The usual rate is an exponential moving average over intervals of a second (weight 0.3), taken
    only while nothing is limited. A token bucket gives out the allowed share of it: at least one
    event a second, so that a slow feed is left alone. What was taken is always counted, also
    beyond the tokens, which puts the bucket in debt. A provider that has used its tokens up waits
    until there is a second's worth, so that a busy feed pauses once a second instead of after
    every event. Half of a rate that is not known yet cannot be told: then a feed is first
    measured for a second.

    No clock is read: every call is told the time, in seconds.
    """

    def __init__(self) -> None:
        self._rate: float | None = None
        self._counted = 0
        self._since: float | None = None
        self._tokens = 0.0
        self._at: float | None = None
        self._spent = False

    def take(self, events: int, now: float, scale: float) -> bool:
        """Count `events` as taken; returns whether more may be taken at once."""
        if scale >= 1.0 or (scale > 0.0 and self._rate is None):
            self._at = None
            self._measure(events, now)
            return True
        self._since = None
        if scale <= 0.0:
            return False
        self._refill(now, scale)
        self._tokens -= events
        self._spent = self._tokens < 0
        return not self._spent

    def pause_s(self, now: float, scale: float) -> float:
        """For how long nothing may be taken: 0.0 if something may, infinite at scale 0."""
        if scale <= 0.0:
            self._at = self._since = None  # neither tokens nor a rate come from standing still
            return FOREVER
        if scale >= 1.0 or self._rate is None:
            self._spent = False
        if not self._spent:
            return 0.0
        allowed = self._refill(now, scale)
        missing = allowed * _TURN_S - self._tokens
        self._spent = missing > 1e-9 * allowed
        return missing / allowed if self._spent else 0.0

    def _measure(self, events: int, now: float) -> None:
        if self._since is None:  # the first item came from before the interval
            self._since, self._counted = now, 0
            return
        self._counted += events
        spent_s = now - self._since
        if spent_s >= _MEASURE_S:
            rate = self._counted / spent_s
            self._rate = rate if self._rate is None else self._rate + _WEIGHT * (rate - self._rate)
            self._since, self._counted = now, 0

    def _refill(self, now: float, scale: float) -> float:
        """Add the tokens of the time that has passed; returns the allowed rate in events/s."""
        allowed = max((self._rate or 0.0) * scale, _EVENTS_PER_S_MIN)
        if self._at is None:  # the limit begins now
            self._tokens = 0.0
        else:
            self._tokens += (now - self._at) * allowed
        self._tokens = min(self._tokens, allowed * _TURN_S)
        self._at = now
        return allowed


@dataclass(frozen=True, slots=True)
class _Heard:
    event: FeedbackEvent
    at: float


class RateCoordinator:
    """Follows feedback and holds providers back; its methods belong to one event loop.

    :meth:`take` costs a fraction of a microsecond, and nothing is awaited while the level is
    ``ok``. A budget that a vendor sets would be one more bound inside of :class:`Pace`.

    Args:
        stale_s: seconds after which a level that is not repeated expires.
        clock: seconds that only rise.
    """

    def __init__(self, *, stale_s: float = STALE_S, clock: Callable[[], float] = monotonic) -> None:
        self._stale_s, self._clock = stale_s, clock
        self._heard: dict[str, _Heard] = {}
        self._paces: dict[str, Pace] = {}
        self._sources: set[str] = set()
        self._level: FeedbackLevel = "ok"
        self._scale = 1.0
        self._changed = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def level(self) -> FeedbackLevel:
        """The worst of the levels that hold."""
        self._expire()
        return self._level

    def scale(self, provider: str) -> float:
        """The share of its usual rate at which `provider` may read: 1.0, 0.5 or 0.0.

        From the first mention of a provider on its metrics are kept.
        """
        self._pace(provider)
        self._expire()
        return self._scale

    async def on_feedback(self, event: FeedbackEvent) -> None:
        """Follow an event; one that is older than the coordinator's last is left out."""
        began = perf_counter()
        self._expire()
        known = self._heard.get(event.coordinator_id)
        if known is not None and event.ts < known.event.ts:
            return
        self._heard.pop(event.coordinator_id, None)  # so that it stands last
        self._heard[event.coordinator_id] = _Heard(event, self._clock())
        if len(self._heard) > _COORDINATORS_MAX:
            del self._heard[next(iter(self._heard))]  # the one that was silent for longest
        self._decide(event.reason)
        self._watch()
        PIPELINE_FEEDBACK_PROCESSING_LATENCY_MS.observe((perf_counter() - began) * 1e3)

    def take(self, provider: str, events: int = 1) -> bool:
        """Count `events` that were taken from the provider.

        Returns:
            Whether more may be taken at once; if not, :meth:`wait` first.
        """
        pace = self._paces.get(provider) or self._pace(provider)
        return pace.take(events, self._clock(), self._scale)

    async def wait(self, provider: str) -> None:
        """Return when the provider may be read again; at once if nothing holds it back."""
        pace = self._pace(provider)
        while True:
            self._expire()
            pause_s = pace.pause_s(self._clock(), self._scale)
            if not pause_s:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause_s == FOREVER else pause_s):
                    await self._changed.wait()

    async def acquire(self, provider: str, events: int = 1) -> None:
        """Count `events` that were taken, and return when more may be."""
        if not self.take(provider, events):
            await self.wait(provider)

    def _pace(self, provider: str) -> Pace:
        pace = self._paces.get(provider)
        if pace is None:
            pace = self._paces[provider] = Pace()
            self._show()
        return pace

    def _watch(self) -> None:
        """See to it that the next level expires in time, though nobody looks."""
        if self._expiry is None:
            first = min(heard.at for heard in self._heard.values())
            left_s = max(0.0, first + self._stale_s - self._clock())
            self._expiry = asyncio.get_running_loop().call_later(left_s, self._woken)

    def _woken(self) -> None:
        self._expiry = None
        self._expire()
        if self._heard:
            self._watch()

    def _expire(self) -> None:
        """Forget coordinators that have not been heard of for too long."""
        if not self._heard:
            return
        before = self._clock() - self._stale_s
        silent = [name for name, heard in self._heard.items() if heard.at <= before]
        for name in silent:
            event = self._heard.pop(name).event
            if event.level != "ok":
                log.warning(
                    "feedback expired", coordinator=name, level=event.level, seconds=self._stale_s
                )
        if silent:
            self._decide("not repeated")

    def _decide(self, reason: str) -> None:
        level: FeedbackLevel = "ok"
        for heard in self._heard.values():
            level = max(level, heard.event.level, key=_STATES.__getitem__)
        if level != self._level:
            say = log.info if level == "ok" else log.warning
            say("backpressure", level=level, before=self._level, reason=reason)
            self._level, self._scale = level, _SCALES[level]
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
        self._show()

    def _show(self) -> None:
        for provider in self._paces:
            label = PROVIDER(provider)
            PIPELINE_RATE_SCALE_FACTOR.labels(label).set(self._scale)
            PIPELINE_BACKPRESSURE_STATE.labels(label).set(_STATES[self._level])
        depths = dict.fromkeys(self._sources, 0)
        for heard in self._heard.values():
            source = SOURCE(heard.event.source)
            depths[source] = max(depths.get(source, 0), heard.event.queue_size)
        self._sources = set(depths)
        for source, rows in depths.items():
            PIPELINE_FEEDBACK_QUEUE_DEPTH.labels(source).set(rows)
