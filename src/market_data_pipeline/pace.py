"""A recording handed out at the pace of its own events, or so many times faster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import numpy as np

from market_data_core.contracts.provider import Item
from market_data_core.events import EventBatch

_STEP_S = 0.01
"""Events that are due so soon after another are handed out with it."""


class Pace:
    """Holds events back until they are due.

    Args:
        speed: how many times faster than the events' own time; None for no holding back.
        skip: so many events are handed out at once, because they were carried before.
    """

    def __init__(self, speed: float | None, skip: int = 0) -> None:
        self._speed, self._skip = speed, skip
        self._began: tuple[float, int] | None = None

    @property
    def holds(self) -> bool:
        """Whether events are held back, so that each has to be written as it comes."""
        return self._speed is not None and not self._skip

    async def parts(self, item: Item, stop: asyncio.Event) -> AsyncIterator[Item]:
        """The item, or one part of it after the other as they are due; fewer once `stop` is set."""
        if self._speed is None or not isinstance(item, EventBatch) or not len(item):
            yield item
            return
        if self._skip:
            yield item.take(slice(self._skip))
            item, self._skip = item.take(slice(self._skip, None)), max(0, self._skip - len(item))
        times = np.maximum.accumulate(item.src_ts)
        start = 0
        while start < len(times):
            await self._wait_for(int(times[start]), stop)
            if stop.is_set():
                return
            due = self._now() + int(_STEP_S * self._speed * 1e9)
            end = max(start + 1, int(np.searchsorted(times, due, side="right")))
            yield item.take(slice(start, end))
            start = end

    def _now(self) -> int:
        """Event time that it is now, UTC ns."""
        assert self._began is not None  # noqa: S101
        assert self._speed is not None  # noqa: S101
        began, first = self._began
        return first + int((time.monotonic() - began) * self._speed * 1e9)

    async def _wait_for(self, ts: int, stop: asyncio.Event) -> None:
        if self._began is None:
            self._began = time.monotonic(), ts
        assert self._speed is not None  # noqa: S101
        left_s = (ts - self._now()) / self._speed / 1e9
        if left_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), left_s)
