"""One live feed into the generations of the live topic: each event into that of its time."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from market_data_core.contracts.provider import Item
from market_data_core.errors import TransientError
from market_data_core.events import EventBatch, Tick
from market_data_core.intervals import NS_PER_S
from market_data_core.records import TopicInfo
from market_data_pipeline.generations import Generations
from market_data_pipeline.producer import Producer
from market_data_pipeline.timeline import Generation
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec

log = structlog.get_logger("generations")

_LOOK_EVERY_S = 1.0
_TOLD_NS = 86_400 * NS_PER_S
"""A generation whose time was over for so long is not told any more how far a feed has come."""


class LiveProducer:
    """Writes one feed's items; not for use from several tasks at once.

    A generation whose time is over is told of the feed's progress until its last window is final.
    An event that goes to the wrong one all the same, because a change was not known yet, is
    forwarded by its reader.

    Args:
        generations: which there are; looked at again once a second while the feed yields.
        open_producer: a producer for a topic.
        spec: the windows.
        now_ns: wall-clock time, UTC ns.

    Attributes:
        produced: events written.
    """

    def __init__(
        self,
        generations: Generations,
        open_producer: Callable[[TopicInfo], Producer],
        spec: WindowSpec,
        now_ns: int,
    ) -> None:
        self._generations, self._open = generations, open_producer
        self._final_ns = spec.allow_late_ns + spec.revise_horizon_ns + spec.base_ns
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        self._producers: dict[int, Producer] = {}
        self.produced = 0
        for generation in generations.timeline.generations:
            if generation.until > now_ns - _TOLD_NS:
                self._producer(generation)

    def _producer(self, generation: Generation) -> Producer:
        found = self._producers.get(generation.number)
        if found is None:
            info = TopicInfo(generation.topic, "", generation.partitions)
            found = self._producers[generation.number] = self._open(info)
        return found

    def add(self, item: Item) -> None:
        """Take an item; it is written by the next flush."""
        timeline = self._generations.timeline
        if isinstance(item, Tick):
            self._producer(timeline.at(item.src_ts)).add(item)
        elif isinstance(item, EventBatch) and len(item):
            for generation, part in timeline.split(item):
                self._producer(generation).add(part)
        else:  # unusable input has no time
            self._producer(timeline.newest).add(item)

    @property
    def full(self) -> bool:
        """Whether enough has come together to flush at once."""
        return any(producer.full for producer in self._producers.values())

    async def flush(self) -> None:
        """Write everything taken so far, and marks where time has moved on; durable on return."""
        await self._look()
        for number in sorted(self._producers, reverse=True):
            await self._producers[number].flush()
            self._tell(self._producers[number])
        self._count()
        self._let_go()

    async def pause(self) -> None:
        """Write everything, and say that silence from now on means nothing."""
        for producer in self._producers.values():
            await producer.pause()
        self._count()

    async def resume(self) -> None:
        """Write everything, and say that silence counts again from now on."""
        for producer in self._producers.values():
            await producer.resume()
        self._count()

    def _tell(self, newer: Producer) -> None:
        """Tell generations whose time is over how far the feed has come, until all is final."""
        for generation in self._generations.timeline.generations:
            older, end = self._producers.get(generation.number), generation.until + self._final_ns
            if older is None or older is newer or generation.until == FOREVER:
                continue
            for provider, reached in newer.greatest.items():
                if reached >= generation.until:
                    older.reached(provider, min(reached, end))

    def _count(self) -> None:
        for producer in self._producers.values():
            self.produced += producer.produced
            producer.produced = 0

    def _let_go(self) -> None:
        """Forget generations that have been told of the end of their time by every provider."""
        providers = {name for p in self._producers.values() for name in p.greatest}
        for generation in self._generations.timeline.generations:
            producer, end = self._producers.get(generation.number), generation.until
            told = producer and all(
                producer.greatest.get(name, end) >= end + self._final_ns for name in providers
            )
            if told and providers:
                del self._producers[generation.number]

    async def _look(self) -> None:
        """Learn of new generations, once a second."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        try:
            await self._generations.refresh()
        except TransientError as error:  # readers forward what goes to the wrong one meanwhile
            log.debug("the registry of generations cannot be read now", error=str(error))
