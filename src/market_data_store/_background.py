"""An asynchronous client for those who do not work with asyncio."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from market_data_core.contracts.store import Store
from market_data_core.errors import UsageError
from market_data_store import opening
from market_data_store.client import AsyncStoreClient
from market_data_store.frames import closing

T = TypeVar("T")

_END_S = 30.0
"""For calls of other threads, which the store's own time limits end sooner."""


class _Worker:
    """A client on an event loop in a thread of its own."""

    def __init__(self, store: Store | str) -> None:
        self.client = AsyncStoreClient(store)
        self._calls, self._under_way, self._ending = threading.Condition(), 0, False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="store-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, from any thread.

        Raises:
            UsageError: another thread has closed the client.
        """
        with self._calls:
            if self._ending:
                work.close()
                msg = "the client was closed by another thread while it was called; call it again"
                raise UsageError(msg)
            self._under_way += 1
        try:
            return self._run(work)
        finally:
            with self._calls:
                self._under_way -= 1
                self._calls.notify_all()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C comes to the waiting thread alone
            future.cancel()
            raise

    def end(self) -> None:
        """Close the client, after the calls that are under way, and end the thread; only once."""
        if threading.current_thread() is self._thread:  # the garbage collector runs anywhere
            threading.Thread(target=self.end).start()
            return
        with self._calls:
            self._ending = True
            self._calls.wait_for(lambda: not self._under_way, _END_S)
        try:
            self._run(self._loop.shutdown_asyncgens())
            self._run(self.client.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class SyncAccess:
    """What the synchronous client is made of: opening, closing, and waiting for the other one.

    Calls may come from any thread, also from one in which an event loop runs (which waits then).

    Args:
        store: an open store, which stays its owner's to close, or the URI of one.
    """

    def __init__(self, store: Store | str) -> None:
        self._store = store
        self._starting = threading.Lock()
        self._worker: _Worker | None = None
        self._end: weakref.finalize[..., Any] | None = None

    @classmethod
    def open(cls, uri: str | None = None) -> Self:
        """A client of the store at `uri`; the store itself is opened at the first use.

        Args:
            uri: ``sqlite:///path`` or ``postgresql://…``; None for that of the environment:
                ``MDS_DSN``, else ``MDP_STORE_URI``, else the embedded store in ``MDP_HOME``.
        """
        return cls(uri or opening.default_uri())

    def __enter__(self) -> Self:
        """Open the store; contexts may be nested, the outermost one closes it.

        Raises:
            UsageError: there is no such store, or its schema is not of this release.
            TransientError: the store cannot be used now.
        """
        self._run(self._client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store, unless it was open before."""
        self._run(self._client.__aexit__(kind, error, trace))
        if not self._client.in_use:
            self.close()

    def close(self) -> None:
        """Close the store; safe to call again. A store that was given stays open."""
        with self._starting:
            end, self._end, self._worker = self._end, None, None
        if end is not None:
            end()

    def ping(self) -> None:
        """Return if the store can be written.

        Raises:
            TransientError: it cannot now.
        """
        self._run(self._client.ping())

    @property
    def _client(self) -> AsyncStoreClient:
        return self._started().client

    def _started(self) -> _Worker:
        with self._starting:
            if self._worker is None:
                self._worker = _Worker(self._store)
                self._end = weakref.finalize(self, self._worker.end)
            return self._worker

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._started().run(work)

    def _iterate(self, frames: AsyncIterator[T]) -> Iterator[T]:
        worker = self._started()
        try:
            while (frame := worker.run(_next(frames))) is not None:
                yield frame
        finally:
            if worker is self._worker:  # else it has closed them
                worker.run(_close(frames))


async def _next(frames: AsyncIterator[T]) -> T | None:
    return await anext(frames, None)


async def _close(frames: AsyncIterator[Any]) -> None:
    async with closing(frames):
        pass
