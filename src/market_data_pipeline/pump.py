"""From one live feed into the bus, for as long as either lasts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from market_data_core.contracts.provider import FeedState, Item
from market_data_pipeline.live_producer import LiveProducer
from market_data_pipeline.producer import Producer

AnyProducer = Producer | LiveProducer


class Pump:
    """Carries a feed's items to its producer and flushes them after a short while.

    While the feed is away, broken or held back, a pause mark in the log keeps windows open; what
    was taken before is written first. When it is back, marks of progress let silence count again.

    Args:
        producer: writes what the feed yields.
        linger_s: how long an item may wait for others, in seconds.
        written: called after every flush.
    """

    def __init__(
        self, producer: AnyProducer, linger_s: float, written: Callable[[AnyProducer], None]
    ) -> None:
        self._producer = producer
        self._linger_s, self._written = linger_s, written
        self._some, self._some_at = asyncio.Event(), 0.0
        self._flushing = asyncio.Lock()

    async def run(self, feed: AsyncGenerator[Item]) -> None:
        """Work until the feed ends; when cancelled, everything taken is written first.

        Raises:
            UsageError: the vendor refuses what is asked for.
            LogLostError: the log was replaced under the producer.
        """
        lingering = asyncio.create_task(self._linger())
        reading = asyncio.create_task(self._read(feed))
        try:
            done, _ = await asyncio.wait({lingering, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (lingering, reading):
                task.cancel()
            await asyncio.gather(lingering, reading, return_exceptions=True)
            await self._write(self._producer.pause)

    async def _read(self, feed: AsyncGenerator[Item]) -> None:
        """Take what the feed yields."""
        async with aclosing(feed):
            async for item in feed:
                if isinstance(item, FeedState):
                    away = item.state == "away"
                    await self._write(self._producer.pause if away else self._producer.resume)
                    continue
                self._producer.add(item)
                if self._producer.full:
                    await self._write(self._producer.flush)
                elif not self._some.is_set():
                    self._some_at = time.monotonic()
                    self._some.set()

    async def _linger(self) -> None:
        while True:
            await self._some.wait()
            # the first of them may have waited already, for those before it to be written
            await asyncio.sleep(self._some_at + self._linger_s - time.monotonic())
            self._some.clear()
            await self._write(self._producer.flush)

    async def _write(self, write: Callable[[], Awaitable[None]]) -> None:
        """Flush, pause or resume: each writes everything taken so far."""
        async with self._flushing:
            writing = asyncio.ensure_future(write())
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing  # what it has taken would be lost if it were cut off
                raise
            finally:
                self._written(self._producer)
