"""The write coordinator: one bounded, batching, patient way into a store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from market_data_core.errors import MdpError, UsageError
from market_data_store.coordinator.dead_letter import DeadLetterQueue
from market_data_store.coordinator.feedback import FeedbackSink, Pressure
from market_data_store.coordinator.intake import CoordinatorClosedError, Intake
from market_data_store.coordinator.monitor import Callback, Monitor
from market_data_store.coordinator.observe import CoordinatorHealth
from market_data_store.coordinator.policy import CircuitBreaker, RetryPolicy
from market_data_store.coordinator.settings import Overflow
from market_data_store.coordinator.worker import DeadLetters, Sink, Worker, WorkerPool

T = TypeVar("T")
log = structlog.get_logger("coordinator")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CANCEL_WITHIN_S = 1.0


class UnwrittenError(MdpError):
    """On closing, items could be neither written nor kept as dead letters.

    Attributes:
        items: those.
    """

    def __init__(self, message: str, items: list[Any]) -> None:
        super().__init__(message)
        self.items = items


class WriteCoordinator(Intake[T]):
    """Takes items, writes them in batches, and lets none be lost while it runs.

    Every item that :meth:`submit` took ends in one place: stored, in the dead-letter file, or,
    with overflow ``drop_oldest``, in `drop_callback`. A store that is down is waited for: the
    breaker opens, batches are held, the queue fills, feedback says so, and submitting blocks.

    Belongs to one event loop. Use it as an async context manager: leaving it drains the queue and
    the batches in flight for up to `drain_timeout`; what is unwritten then goes to the dead
    letters.

    Args:
        sink: where batches go; see :class:`Sink`. It gets a list of items.
        capacity: rows that may wait. An item with a length, such as a batch of columns, counts
            as that many rows; texts, dictionaries and tuples are one row. Batches in flight come
            on top.
        workers: concurrent calls of the sink.
        batch_size: rows of a full batch.
        flush_interval: longest wait for a batch to fill, in seconds.
        high_watermark: part of the capacity from which the queue is high.
        low_watermark: part of it to which it has to fall to be low again.
        overflow: when the queue is full, ``block`` the submitter, ``drop_oldest`` (or ``drop``),
            or raise an ``error``.
        retry_policy: for errors that may pass.
        circuit_breaker: opens when the store fails again and again.
        drop_callback: gets each item that overflow drops, before `submit` returns.
        on_backpressure_high: called without arguments when the queue becomes high.
        on_backpressure_low: called when it is low again.
        dlq: where rows go that can never be written: a queue or a path (by default
            ``.dlq/<coord_id>.ndjson``), or something else that keeps them.
        coord_id: name in metrics, logs and feedback.
        drain_timeout: seconds.
        feedback: one or several sinks of feedback events.
        key: of an item, None for an item without. Items of one key are written in the order of
            submitting, never two batches of them at once, and are never dropped: for them a full
            queue always blocks.
        feedback_repeat: seconds after which feedback is repeated while it is not ok.
        callback_timeout: seconds that a callback may take. What it raises is logged and counted.

    Raises:
        UsageError: a value that makes no sense.
    """

    def __init__(
        self,
        *,
        sink: Sink[T],
        capacity: int = 10_000,
        workers: int = 4,
        batch_size: int = 500,
        flush_interval: float = 0.25,
        high_watermark: float = 0.8,
        low_watermark: float = 0.5,
        overflow: Overflow = "block",
        retry_policy: RetryPolicy | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        drop_callback: Callable[[T], Any] | None = None,
        on_backpressure_high: Callback | None = None,
        on_backpressure_low: Callback | None = None,
        dlq: DeadLetters[T] | str | Path | None = None,
        coord_id: str = "default",
        drain_timeout: float = 10.0,
        feedback: FeedbackSink | Sequence[FeedbackSink] = (),
        key: Callable[[T], Hashable | None] | None = None,
        feedback_repeat: float = 1.0,
        callback_timeout: float = 5.0,
    ) -> None:
        _check(
            overflow,
            (high_watermark, low_watermark),
            coord_id,
            drain_timeout,
            capacity=capacity,
            workers=workers,
            batch_size=batch_size,
            flush_interval=flush_interval,
            feedback_repeat=feedback_repeat,
            callback_timeout=callback_timeout,
        )
        super().__init__(
            coord_id,
            capacity,
            workers,
            batch_size,
            flush_interval,
            overflow,
            drop_callback,
            key,
            callback_timeout,
        )
        if dlq is None or isinstance(dlq, str | Path):
            dlq = DeadLetterQueue[T](dlq or f".dlq/{coord_id}.ndjson")
        self._letters: DeadLetters[T] = dlq
        self._drain_timeout = drain_timeout
        self._breaker = circuit_breaker or CircuitBreaker()
        self._workers = self._make_workers(sink, retry_policy or RetryPolicy())
        self._pool = WorkerPool(self._workers, self._observer)
        self._pressure = Pressure(capacity, high_watermark, low_watermark)
        self._monitor = Monitor(
            self._queue,
            self._pressure,
            self._breaker,
            self._breaker.probe or getattr(sink, "ping", None),
            self._observer,
            list(feedback) if isinstance(feedback, Sequence) else [feedback],
            (on_backpressure_high, on_backpressure_low),
            feedback_repeat,
            callback_timeout,
        )
        self._started = False

    def _make_workers(self, sink: Sink[T], retry: RetryPolicy) -> list[Worker[T]]:
        shared = (
            self._queue, sink, retry, self._breaker, self._letters, self._observer, self._rows_of
        )  # fmt: skip
        return [Worker(number, *shared) for number in range(self._worker_count)]

    @property
    def dlq(self) -> DeadLetterQueue[T]:
        """The queue of dead letters.

        Raises:
            UsageError: they go to something else.
        """
        if not isinstance(self._letters, DeadLetterQueue):
            msg = f"coordinator {self.coord_id!r} keeps no file of dead letters"
            raise UsageError(msg)
        return self._letters

    async def flush(self) -> None:
        """Return when everything submitted before is stored, set aside, or dropped by overflow."""
        self._check_running()
        await self._queue.flush()
        self._observer.tell(self._queue)

    def hold(self, rows: int) -> None:
        """Tell that the submitter holds so many rows back until earlier ones are written.

        They count as waiting, in watermarks, feedback and health, but take no room.
        """
        self._monitor.hold(rows)

    def health(self) -> CoordinatorHealth:
        """What it is doing now."""
        seen = self._observer
        return CoordinatorHealth(
            coord_id=self.coord_id,
            running=self._queue.accepting,
            workers=self._worker_count,
            workers_alive=self._pool.alive,
            queue_size=self._queue.depth,
            capacity=self._queue.capacity,
            in_flight=self._queue.in_flight,
            circuit_state=self._breaker.state,
            level=self._pressure.level,
            submitted=self._queue.arrived,
            written=seen.written,
            dead_lettered=seen.dead_lettered,
            dropped=seen.dropped,
            refused=seen.refused,
            retries=seen.retries,
            restarts=seen.restarts,
            callback_errors=seen.callback_errors,
            last_error=seen.last_error,
        )

    # beginning and end

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the workers.

        Raises:
            UsageError: it was started before.
        """
        if self._started:
            msg = f"coordinator {self.coord_id!r} was started before; make a new one"
            raise UsageError(msg)
        self._started = True
        self._queue.accepting = True
        self._monitor.start()
        self._pool.start()

    async def close(self) -> None:
        """Drain, then stop; safe to call again.

        Raises:
            UnwrittenError: items could be neither written nor kept; the error holds them.
        """
        if not self._queue.accepting:
            return
        self._queue.accepting = False
        try:
            async with asyncio.timeout(self._drain_timeout):
                await self._drain()
        except TimeoutError:
            log.error("drain_timed_out", coord_id=self.coord_id, rows=self._queue.rows)  # noqa: TRY400
        finally:
            # Whoever is cancelled here for a second time must not take the items with him.
            await asyncio.shield(asyncio.ensure_future(self._end()))

    async def _drain(self) -> None:
        while True:
            await self._queue.flush()
            if not self._queue.rows and not self._queue.waiting:
                break
        if self._confirming:
            await asyncio.wait(self._confirming)

    async def _end(self) -> None:
        """Stop everything, and set aside what was not written."""
        self._queue.close()
        await self._pool.stop(_CANCEL_WITHIN_S)
        self._queue.drop_barriers()
        left = [item for worker in self._workers for item in worker.abandon()]
        msg = f"coordinator {self.coord_id!r} has closed; the item was not taken"
        left += self._queue.clear(CoordinatorClosedError(msg))
        try:
            if left:
                error = TimeoutError(f"not written within {self._drain_timeout} s of closing")
                about = {"reason": "shutdown", "coord_id": self.coord_id}
                await self._letters.save_all([(left, error)], about)
                self._observer.set_aside(len(left), "shutdown")
        except Exception as error:
            msg = (
                f"coordinator {self.coord_id!r}: {len(left)} items could be neither written nor "
                f"kept in {self._letters.path}: {error}"
            )
            raise UnwrittenError(msg, left) from error
        finally:
            if self._confirming:
                await asyncio.wait(self._confirming, timeout=self._callback_timeout)
            await self._monitor.stop()


def _check(
    overflow: str,
    watermarks: tuple[float, float],
    coord_id: str,
    drain_timeout: float,
    **positive: float,
) -> None:
    for name, value in positive.items():
        if not value > 0:
            msg = f"WriteCoordinator: {name} is {value}; give more than 0"
            raise UsageError(msg)
    high, low = watermarks
    if overflow not in {"block", "drop_oldest", "drop", "error"}:
        msg = f"overflow {overflow!r} is not valid; give 'block', 'drop_oldest' or 'error'"
        raise UsageError(msg)
    if not 0 <= low < high <= 1:
        msg = (
            f"high_watermark {high} and low_watermark {low} are not valid; give "
            "0 <= low_watermark < high_watermark <= 1"
        )
        raise UsageError(msg)
    if not _ID.fullmatch(coord_id):
        msg = (
            f"coord_id {coord_id!r} is not valid: 1 to 64 letters, digits, '_', '.' or '-', "
            "beginning with a letter or digit"
        )
        raise UsageError(msg)
    if drain_timeout < 0:
        msg = f"drain_timeout is {drain_timeout}; give 0 or more seconds"
        raise UsageError(msg)
