"""Tells the world how full the queue is, beside the work and never in its way."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from market_data_core.feedback import FeedbackEvent, FeedbackLevel
from market_data_store.coordinator._calls import call_safely
from market_data_store.coordinator.feedback import FeedbackSink, Pressure
from market_data_store.coordinator.observe import Observer
from market_data_store.coordinator.policy import CircuitBreaker
from market_data_store.coordinator.queue import WriteQueue

Callback = Callable[[], Any]

_TURNS_MAX = 64
_PROBE_TIMEOUT_MIN_S = 1.0


class Monitor:
    """Callbacks, feedback, metrics, and the probe of an open breaker.

    Args:
        queue: whose rows are watched.
        pressure: what they mean.
        breaker: told when the store answers again.
        probe: asks the store; None if there is no way to ask.
        observer: keeps the metrics.
        sinks: get the feedback events.
        turns: called when the queue becomes high, and when it is low again.
        repeat_s: after how long feedback is repeated while it is not ok.
        timeout_s: how long a callback may take.
    """

    def __init__(
        self,
        queue: WriteQueue[Any],
        pressure: Pressure,
        breaker: CircuitBreaker,
        probe: Callable[[], Any] | None,
        observer: Observer,
        sinks: Sequence[FeedbackSink],
        turns: tuple[Callback | None, Callback | None],
        repeat_s: float,
        timeout_s: float,
    ) -> None:
        self._queue, self._pressure, self._breaker = queue, pressure, breaker
        self._probe, self._observer, self._sinks = probe, observer, sinks
        self._on_high, self._on_low = turns
        self._repeat_s, self._timeout_s = repeat_s, timeout_s
        self._turns: deque[bool] = deque()
        self._published: FeedbackLevel = "ok"
        self._turned = asyncio.Event()
        self._levelled = asyncio.Event()
        self._opened = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stop_listening: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to watch."""
        self._queue.crossed = self._crossed
        self._crossed()
        self._stop_listening = self._breaker.listen(self._circuit_changed)
        self._observer.circuit_state(self._breaker.state)
        if self._breaker.state == "open":
            self._opened.set()
        loop = asyncio.get_running_loop()
        loops = (self._call_back(), self._feed_back(), self._probe_while_open())
        self._tasks = [loop.create_task(each) for each in loops]

    async def stop(self) -> None:
        """Tell the last state, then stop watching."""
        self._crossed()
        self._stop_listening()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
            await self._deliver_turns()
            if self._pressure.level != self._published:
                await self._publish()
        self._observer.tell(self._queue)

    def hold(self, rows: int) -> None:
        """So many rows wait outside of the queue."""
        if rows != self._queue.held:
            self._queue.held = rows
            self._crossed()

    def _crossed(self) -> None:
        """The queue has reached a bound; called in the middle of submitting and taking."""
        pressure, high, level = self._pressure, self._pressure.high, self._pressure.level
        held = self._queue.held
        pressure.update(self._queue.depth)
        self._queue.upper, self._queue.lower = pressure.upper - held, pressure.lower - held
        if pressure.high != high:
            self._turns.append(pressure.high)
            if len(self._turns) > _TURNS_MAX:  # in pairs, so that high and low still alternate
                self._turns.popleft()
                self._turns.popleft()
            self._turned.set()
        if pressure.level != level:
            self._levelled.set()

    def _circuit_changed(self, state: Any) -> None:
        self._observer.circuit(state)
        if state == "open":
            self._opened.set()

    async def _call_back(self) -> None:
        while True:
            await self._turned.wait()
            self._turned.clear()
            await self._deliver_turns()

    async def _deliver_turns(self) -> None:
        while self._turns:
            high = self._turns.popleft()
            callback = self._on_high if high else self._on_low
            if callback is not None:
                name = "on_backpressure_high" if high else "on_backpressure_low"
                await self._call(name, callback)

    async def _feed_back(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._repeat_s):
                    await self._levelled.wait()
            self._levelled.clear()
            self._observer.tell(self._queue)
            if self._pressure.level != "ok" or self._published != "ok":
                await self._publish()

    async def _publish(self) -> None:
        level, rows, capacity = self._pressure.level, self._queue.depth, self._queue.capacity
        reason = f"{rows} of {capacity} rows wait"
        if self._breaker.state != "closed":
            reason += f"; the store does not answer: {self._observer.last_error}"
        event = FeedbackEvent(
            coordinator_id=self._observer.coord_id,
            level=level,
            queue_size=rows,
            capacity=capacity,
            reason=reason[:512],
        )
        self._published = level
        for sink in self._sinks:
            await self._call("feedback", sink.publish, event)

    async def _probe_while_open(self) -> None:
        breaker = self._breaker
        while True:
            await self._opened.wait()
            self._opened.clear()
            while breaker.state == "open":
                pause_s = min(breaker.probe_interval, max(breaker.recovers_in_s(), 0))
                await asyncio.sleep(pause_s)
                if breaker.state == "open" and await self._answers():
                    breaker.half_open()

    async def _answers(self) -> bool:
        """Whether the probe goes through; that it does not is no news while the breaker is open."""
        return self._probe is not None and await call_safely(
            self._probe,
            timeout_s=max(self._breaker.probe_interval, _PROBE_TIMEOUT_MIN_S),
            failed=lambda _: None,
        )

    async def _call(self, name: str, function: Callable[..., Any], *args: object) -> None:
        await call_safely(
            function,
            *args,
            timeout_s=self._timeout_s,
            failed=lambda error: self._observer.callback_failed(name, error),
        )
