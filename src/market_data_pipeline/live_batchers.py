"""The micro-batchers of one process on the live topic: one for each generation in use.

The first generation is always in use: its name is the one that is configured, by which others
write to it who know nothing of generations.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from market_data_core.errors import TransientError
from market_data_core.intervals import NS_PER_S
from market_data_core.records import TopicInfo
from market_data_pipeline.assembly import Assembly, Summary
from market_data_pipeline.generations import sealed_at, unpublished
from market_data_pipeline.patience import patient
from market_data_pipeline.timeline import Generation
from market_data_pipeline.windows.micro_batcher import MicroBatcher

log = structlog.get_logger("generations")

_LOOK_EVERY_S = 1.0
_SEALED_EVERY_S = 5.0
_TRIM_EVERY_S = 60.0
_QUIET_S = 60.0
"""For so long a generation whose time is over has had nothing to do when its worker is let go."""


@dataclass(slots=True)
class _Work:
    """A micro-batcher at work; it has stood at `ends` since `since` (monotonic time)."""

    batcher: MicroBatcher
    stop: asyncio.Event
    task: asyncio.Task[None]
    ends: dict[int, int] | None = None
    since: float = 0.0


@dataclass(slots=True)
class LiveBatchers:
    """Works on every generation that is not sealed, and on a sealed one that somebody writes to.

    Args:
        parts: what to work with; its generations are known.
        drain_s: for how long to go on after the end was asked for while there is something to
            read.
    """

    parts: Assembly
    drain_s: float = 0.0
    _works: dict[int, _Work] = field(default_factory=dict)
    _look_at: dict[int, float] = field(default_factory=dict)
    _trim_at: dict[int, float] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event) -> Summary:
        """Cut the live topic into windows until `stop` is set.

        Raises:
            LogLostError: a log is gone.
            UsageError: a topic does not have the partitions that it should have.
        """
        began, progress = time.perf_counter(), self.parts.progress
        stopping = asyncio.create_task(stop.wait())
        try:
            await patient(self._look, stop=stop)
            while True:
                waiting = {stopping, *(work.task for work in self._works.values())}
                done, _ = await asyncio.wait(
                    waiting, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                await self._look_again()
            for number in sorted(self._works):  # what is forwarded goes to newer ones
                await self._end(number)
        finally:
            tasks = [stopping, *(work.task for work in self._works.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        spent = time.perf_counter() - began
        topic = self.parts.settings.bus.events_topic
        return Summary(topic, progress.counts, progress.written, progress.received, spent)

    async def _look_again(self) -> None:
        try:
            await self._look()
        except TransientError as error:  # the next round looks again
            log.debug("generations cannot be looked at now", error=str(error))

    async def _look(self) -> None:
        """Begin with generations that are new, or have something to do; let go of sealed ones."""
        generations = self.parts.generations
        await generations.refresh()
        for generation in generations.timeline.generations:
            if generation.number == 1 or generation.until > self.parts.clock.now_ns():
                if generation.number not in self._works:
                    await self._begin(generation)
            elif time.monotonic() >= self._look_at.get(generation.number, 0.0):
                await self._look_at_old(generation)

    async def _look_at_old(self, generation: Generation) -> None:
        """Whether a generation whose time is over has something to do."""
        parts, work = self.parts, self._works.get(generation.number)
        info = await parts.generations.topic(generation)
        group = parts.settings.bus.group
        ends = await sealed_at(parts.bus, parts.store, group, info)
        now = time.monotonic()
        wait_s = _LOOK_EVERY_S if ends is None else _SEALED_EVERY_S
        self._look_at[generation.number] = now + wait_s
        if work is None:
            if ends is None or await unpublished(parts.store, group, info):
                await self._begin(generation)
            elif now >= self._trim_at.get(generation.number, 0.0):
                self._trim_at[generation.number] = now + _TRIM_EVERY_S
                await self._trim(info, ends)
        elif ends is None or ends != work.ends:
            work.ends, work.since = ends, now
        elif now - work.since >= _QUIET_S:
            await self._end(generation.number)
            log.info("a generation is sealed", topic=info.name)

    async def _begin(self, generation: Generation) -> None:
        parts = self.parts
        info = await parts.generations.topic(generation)
        batcher = parts.batcher(info, parts.settings.bus.bars_topic, live=True)
        parts.progress.batchers.append((info.name, batcher))
        stop = asyncio.Event()
        task = asyncio.create_task(batcher.run(stop, self.drain_s))
        self._works[generation.number] = _Work(batcher, stop, task)

    async def _end(self, number: int) -> None:
        work = self._works[number]
        work.stop.set()
        await work.task
        del self._works[number]

    async def _trim(self, info: TopicInfo, ends: dict[int, int]) -> None:
        """Forget what is old enough of a sealed generation, which no worker looks after."""
        kept = self.parts.settings.bus.retention
        before = self.parts.clock.now_ns() - int(kept.hours * 3600 * NS_PER_S)
        for number, end in ends.items():
            await self.parts.bus.trim(info.name, number, end, before, kept.max_bytes)
