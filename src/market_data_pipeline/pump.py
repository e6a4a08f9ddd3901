"""From one live feed into the bus, for as long as either lasts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic

import structlog

from market_data_core.contracts.provider import FeedState, LiveProvider, Subscription
from market_data_core.errors import TransientError
from market_data_pipeline.producer import Producer

log = structlog.get_logger("pump")

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.2, 30.0
_GOOD_S = 60.0


class Backoff:
    """How long to wait before a broken feed is begun again.

    Each pause is drawn between half and the whole of a limit that begins at 0.2 s and doubles up
    to 30 s, so that the clients of a vendor that was down do not come back all at once. A feed
    that served for a minute begins anew.
    """

    def __init__(self) -> None:
        self._limit_s = _PAUSE_MIN_S

    def pause_s(self, served_s: float) -> float:
        """The next pause, in seconds; `served_s` is for how long the feed had yielded items."""
        if served_s >= _GOOD_S:
            self._limit_s = _PAUSE_MIN_S
        limit, self._limit_s = self._limit_s, min(2 * self._limit_s, _PAUSE_MAX_S)
        return random.uniform(limit / 2, limit)  # noqa: S311  (nobody gains by guessing it)


class Pump:
    """Carries a feed's items to its producer and flushes them after a short while.

    Args:
        provider: the feed.
        producer: writes what it yields.
        linger_s: how long an item may wait for others, in seconds.
        written: called after every flush.
    """

    def __init__(
        self,
        provider: LiveProvider,
        producer: Producer,
        linger_s: float,
        written: Callable[[Producer], None],
    ) -> None:
        self._provider, self._producer = provider, producer
        self._linger_s, self._written = linger_s, written
        self._some = asyncio.Event()
        self._flushing = asyncio.Lock()

    async def run(self, subscription: Subscription) -> None:
        """Work until the feed ends; when cancelled, everything taken is written first.

        Raises:
            UsageError: the vendor refuses what is asked for.
            LogLostError: the log was replaced under the producer.
        """
        lingering = asyncio.create_task(self._linger())
        reading = asyncio.create_task(self._read(subscription))
        try:
            done, _ = await asyncio.wait({lingering, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (lingering, reading):
                task.cancel()
            await asyncio.gather(lingering, reading, return_exceptions=True)
            await self._pause()

    async def _read(self, subscription: Subscription) -> None:
        """Take what the feed yields; a feed that breaks is begun again."""
        backoff = Backoff()
        while True:
            first: float | None = None
            try:
                async for item in self._provider.stream(subscription):
                    if isinstance(item, FeedState):
                        if item.state == "away":
                            await self._pause()
                        continue
                    if first is None:
                        first = monotonic()
                    self._producer.add(item)
                    if self._producer.full:
                        await self._flush()
                    elif not self._some.is_set():
                        self._some.set()
            except TransientError as error:
                served_s = 0.0 if first is None else monotonic() - first
                pause_s = backoff.pause_s(served_s)
                log.warning(
                    "feed lost",
                    provider=self._provider.name,
                    error=str(error),
                    again_in_seconds=round(pause_s, 1),
                )
                await self._pause()
                await asyncio.sleep(pause_s)
            else:
                return

    async def _linger(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(self._linger_s)
            self._some.clear()
            await self._flush()

    async def _flush(self) -> None:
        async with self._flushing:
            writing = asyncio.ensure_future(self._producer.flush())
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing  # what a flush has taken would be lost if it were cut off
                raise
            finally:
                self._written(self._producer)

    async def _pause(self) -> None:
        """Write everything, and say that silence means nothing until the feed is back."""
        async with self._flushing:
            await self._producer.pause()
            self._written(self._producer)
