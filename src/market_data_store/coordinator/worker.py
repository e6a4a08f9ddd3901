"""Workers: from the queue into the sink, whatever the sink does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import structlog

from market_data_store.coordinator._calls import cancel_requested, maybe_await
from market_data_store.coordinator.lanes import Batch
from market_data_store.coordinator.observe import Observer
from market_data_store.coordinator.policy import CircuitBreaker, RetryPolicy, classify
from market_data_store.coordinator.queue import WriteQueue

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
log = structlog.get_logger("coordinator")

_SAVE_AGAIN_S = 1.0
_RESTART_AGAIN_S = 0.1


class Sink(Protocol[T_contra]):
    """Where a coordinator writes.

    A sink may also have ``async def ping(self)``, which raises while the store cannot be used;
    an open breaker asks it whether to try again.
    """

    async def write(self, batch: Sequence[T_contra], /) -> Any:
        """Store all of the batch or nothing of it; storing it twice has the effect of once.

        Raises:
            Exception: nothing was stored, or it is not known whether it was. What kind of error
                it is decides what follows: :func:`market_data_store.coordinator.classify`.
        """
        ...


class DeadLetters(Protocol[T_contra]):
    """Where rows go that cannot be written; :class:`DeadLetterQueue` keeps them in a file."""

    @property
    def path(self) -> Path:
        """Where that is, for messages."""
        ...

    async def save_all(
        self,
        failed: Sequence[tuple[Sequence[T_contra], BaseException | str]],
        metadata: Mapping[str, Any] | None = None,
        /,
    ) -> None:
        """Keep the items, with why they failed; durable when it returns."""
        ...


@dataclass(slots=True)
class _Part(Generic[T]):
    """Items to be written together.

    Attributes:
        attempts: that failed.
        judged: whether an error of unknown kind has already been taken for a permanent one.
    """

    items: list[T]
    attempts: int = 0
    judged: bool = False


@dataclass(slots=True)
class _Job(Generic[T]):
    """A batch on its way: what is still to be written, next part last, and what cannot be."""

    batch: Batch[T]
    parts: list[_Part[T]]
    bad: list[tuple[T, BaseException, str]] = field(default_factory=list)

    def unwritten(self) -> list[T]:
        return [item for item, _, _ in self.bad] + [
            item for part in reversed(self.parts) for item in part.items
        ]


def split_item(item: Any, rows: int) -> list[Any]:
    """Two halves of an item of many rows, if it has a ``take(index)``; else the item alone."""
    take = getattr(item, "take", None)
    if rows < 2 or take is None:
        return [item]
    return [take(np.arange(rows // 2)), take(np.arange(rows // 2, rows))]


class Worker(Generic[T]):
    """Takes batches and brings each to its end: stored, or its bad rows set aside.

    A batch is held by the worker until then, also through a crash: :meth:`run` can be called
    again and goes on with it.

    Args:
        number: 0, 1, …
        queue: where batches come from.
        sink: where they go.
        retry: how soon to try again.
        breaker: shared by all workers.
        dead_letters: takes rows that can never be written.
        observer: keeps the metrics.
        rows_of: rows of an item.
    """

    def __init__(
        self,
        number: int,
        queue: WriteQueue[T],
        sink: Sink[T],
        retry: RetryPolicy,
        breaker: CircuitBreaker,
        dead_letters: DeadLetters[T],
        observer: Observer,
        rows_of: Callable[[T], int],
    ) -> None:
        self.number = number
        self._queue, self._sink = queue, sink
        self._retry, self._breaker = retry, breaker
        self._dead_letters, self._observer = dead_letters, observer
        self._rows_of = rows_of
        self._job: _Job[T] | None = None

    async def run(self) -> None:
        """Work until the queue is closed and empty."""
        while True:
            if self._job is None:
                batch = await self._queue.take(self.number)
                if batch is None:
                    return
                self._observer.tell(self._queue)
                self._job = _Job(batch, [_Part(batch.items)])
            await self._finish(self._job)
            self._done()

    def abandon(self) -> list[T]:
        """What of the batch in hand is not known to be stored; it is forgotten here."""
        if self._job is None:
            return []
        left = self._job.unwritten()
        self._done()
        return left

    def _done(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            self._queue.done(job.batch)

    async def _finish(self, job: _Job[T]) -> None:
        while job.parts:
            pause_s = await self._attempt(job)
            if pause_s:
                await asyncio.sleep(pause_s)
        while job.bad:
            await self._set_aside(job)

    async def _attempt(self, job: _Job[T]) -> float:
        """Write the next part; returns how long to wait before going on, in seconds."""
        part = job.parts[-1]
        await self._breaker.admit()
        if part.attempts:
            self._observer.retried(self.number)
        began = time.perf_counter()
        try:
            await maybe_await(self._sink.write(part.items))
        except asyncio.CancelledError as error:
            if cancel_requested():
                self._breaker.release()
                raise
            return self._failed(job, part, error)
        except Exception as error:
            return self._failed(job, part, error)
        except BaseException as error:
            self._failed(job, part, error)
            raise  # the worker is started again and goes on with the job
        job.parts.pop()
        self._breaker.record_success()
        self._observer.batch_written(self.number, len(part.items), time.perf_counter() - began)
        return 0.0

    def _failed(self, job: _Job[T], part: _Part[T], error: BaseException) -> float:
        self._observer.write_failed(self.number, error)
        verdict = classify(error)
        if verdict == "permanent":
            if getattr(error, "sqlstate", None):
                self._breaker.record_success()  # the store answered
            else:
                self._breaker.release()
            self._split(job, part, error, "permanent")
            return 0.0
        part.attempts += 1
        self._breaker.record_failure()
        if part.attempts < self._retry.max_attempts and not part.judged:
            # An open breaker tells sooner than any pause when it is worth trying again.
            waiting = self._breaker.state == "open"
            return 0.0 if waiting else self._retry.backoff_s(part.attempts)
        if verdict == "transient":
            part.attempts = 1
            self._breaker.trip()
            return 0.0
        part.judged = True
        self._split(job, part, error, "exhausted")
        return 0.0

    def _split(self, job: _Job[T], part: _Part[T], error: BaseException, reason: str) -> None:
        """Halve a part that cannot be written, until the bad row stands alone."""
        job.parts.pop()
        items = part.items
        if len(items) == 1:
            items = split_item(items[0], self._rows_of(items[0]))
        if len(items) == 1:
            job.bad.append((items[0], error, reason))
            return
        middle = len(items) // 2
        for half in (items[middle:], items[:middle]):
            job.parts.append(_Part(half, judged=part.judged))

    async def _set_aside(self, job: _Job[T]) -> None:
        reason = job.bad[0][2]
        chosen = [entry for entry in job.bad if entry[2] == reason]
        try:
            await self._dead_letters.save_all(
                [([item], error) for item, error, _ in chosen],
                {"reason": reason, "coord_id": self._observer.coord_id},
            )
        except Exception as error:  # the rows must outlive whatever is wrong
            log.error(  # noqa: TRY400
                "dead_letters_kept_in_memory",
                coord_id=self._observer.coord_id,
                items=len(chosen),
                error=repr(error),
            )
            await asyncio.sleep(_SAVE_AGAIN_S)
            return
        job.bad = [entry for entry in job.bad if entry[2] != reason]
        self._observer.set_aside(len(chosen), reason)


class WorkerPool(Generic[T]):
    """Keeps its workers running.

    Args:
        workers: who works.
        observer: told of every change.
    """

    def __init__(self, workers: Sequence[Worker[T]], observer: Observer) -> None:
        self._workers = workers
        self._observer = observer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._born: dict[int, float] = {}
        self._again: dict[int, asyncio.TimerHandle] = {}
        self._ending = False

    @property
    def alive(self) -> int:
        """How many run."""
        return sum(not task.done() for task in self._tasks.values())

    def start(self) -> None:
        """Start all."""
        for worker in self._workers:
            self._start(worker)

    def _start(self, worker: Worker[T]) -> None:
        loop = asyncio.get_running_loop()
        name = f"{self._observer.coord_id}-worker-{worker.number}"
        task = loop.create_task(worker.run(), name=name)
        self._tasks[worker.number] = task
        self._born[worker.number] = loop.time()
        task.add_done_callback(lambda done: self._ended(worker, done))
        self._observer.workers_alive(self.alive)

    def _ended(self, worker: Worker[T], task: asyncio.Task[None]) -> None:
        self._observer.workers_alive(self.alive)
        if task.cancelled() or self._ending:
            return
        error = task.exception()
        if error is None:
            return  # the queue is closed
        self._observer.worker_restarted(worker.number, error)
        loop = asyncio.get_running_loop()
        # One that cannot even start must not keep the loop busy.
        pause_s = 0.0 if loop.time() - self._born[worker.number] > 1 else _RESTART_AGAIN_S
        self._again[worker.number] = loop.call_later(pause_s, self._start, worker)

    async def stop(self, within_s: float) -> None:
        """Cancel all and wait for them, but not for ever."""
        self._ending = True
        for handle in self._again.values():
            handle.cancel()
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        self._observer.workers_alive(self.alive)
