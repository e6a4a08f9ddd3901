"""Forgetting what is old enough, on the bus."""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus
from market_data_core.errors import TransientError
from market_data_core.records import TopicInfo
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.settings import BatcherSettings

log = structlog.get_logger("micro_batcher")

_EVERY_S = 60.0


class Retention:
    """Trims the live topic and what is published from it, once a minute; nothing on a lane.

    Args:
        bus: where the topics are.
        info: the topic that is read.
        topics: where results are published.
        settings: age and size from which records are forgotten.
        clock: wall-clock time.
    """

    def __init__(
        self, bus: Bus, info: TopicInfo, topics: Topics, settings: BatcherSettings, clock: Clock
    ) -> None:
        self._bus, self._info, self._topics = bus, info, topics
        self._settings, self._clock = settings, clock
        self._due_at = 0.0

    async def trim(self, owned: Mapping[int, Partition]) -> None:
        """Forget records that are old enough: of events, those that every window has passed."""
        now, s = time.monotonic(), self._settings
        if now < self._due_at or not s.live:
            return
        self._due_at = now + _EVERY_S
        before = self._clock.now_ns() - s.retention_ns
        read = {(self._info.name, n): p.committed_resume for n, p in owned.items()}
        try:
            if 0 in owned:  # one worker is enough for what nobody has to have read
                for name in (self._topics.bars, self._topics.letters):
                    info = await self._bus.find_topic(name)
                    for number in range(info.partitions if info else 0):
                        read[name, number] = (await self._bus.bounds(name, number)).next
            for (name, number), resume in read.items():
                await self._bus.trim(name, number, resume, before, s.retention_bytes)
        except TransientError as error:  # the next round tries again
            log.warning("the log could not be trimmed", error=str(error))
