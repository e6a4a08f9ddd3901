"""Threads for calls that may never return."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from market_data_core.errors import ModelError

TIMEOUT, BUSY = "timeout", "busy"
"""Reasons of errors: not in time, and no thread for it."""

T = TypeVar("T")


class DaemonPool(Generic[T]):
    """Runs calls on at most `workers` threads, which never keep the process from ending.

    A call that hangs keeps its thread; there is no other for it, so that their number stays what it
    is. Belongs to one event loop.

    Args:
        name: what the threads are called.
        workers: how many there are at most; each is started when it is first needed.
    """

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self._jobs: queue.SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._hung: set[Future[T]] = set()

    @property
    def hung(self) -> int:
        """Calls that nobody waits for any more and that have not returned."""
        return len(self._hung)

    async def run(self, call: Callable[[], T], deadline_s: float | None) -> T:
        """What `call` returns.

        Args:
            call: what is run, in another thread.
            deadline_s: how long is waited for it; None for ever.

        Raises:
            ModelError: it did not return in time (``timeout``), or no thread was free for it
                (``busy``).
        """
        if self.hung >= self._workers:
            msg = f"all {self._workers} threads still hang in earlier calls"
            raise ModelError(BUSY, msg)
        future: Future[T] = Future()
        self._submit(future, call)
        waiting = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait({waiting}, timeout=deadline_s)
        except asyncio.CancelledError:
            self._abandon(future)
            waiting.cancel()
            raise
        if done:
            return waiting.result()
        self._abandon(future)
        waiting.cancel()
        if future.cancelled():
            msg = f"no thread of {self._workers} was free within {deadline_s:g} s"
            raise ModelError(BUSY, msg)
        msg = f"did not answer within {deadline_s:g} s"
        raise ModelError(TIMEOUT, msg)

    def close(self) -> None:
        """End all threads that do not hang; those that do end when their calls return."""
        for _ in self._threads:
            self._jobs.put(None)

    def _abandon(self, future: Future[T]) -> None:
        """Wait no longer for a call; one that was not begun is dropped."""
        if not future.cancel():
            self._hung.add(future)
            future.add_done_callback(self._hung.discard)

    def _submit(self, future: Future[T], call: Callable[[], T]) -> None:
        if len(self._threads) < self._workers:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((future, call))

    def _work(self) -> None:
        while job := self._jobs.get():
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call  # or an idle thread keeps the last rows alive
