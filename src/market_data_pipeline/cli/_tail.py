"""How ``mdp stream tail`` reads: the last lines, from a place on, and what comes.

The live topic is all its generations: those that there are, and those that begin meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.errors import LogLostError, TransientError
from market_data_core.feedback import FEEDBACK_TOPIC
from market_data_core.records import Record
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _log, _output
from market_data_pipeline.cli._tail_lines import Lines
from market_data_pipeline.cli._tail_topic import LOOK_S, TopicTail, Wanted
from market_data_pipeline.generations import Generations
from market_data_pipeline.patience import patient

T = TypeVar("T")

_LINES_AT_ONCE = 1_000


async def tail(settings: Settings, wanted: Wanted, lines: Lines, follow: bool) -> None:
    """Write the lines that are wanted to standard output.

    Raises:
        UsageError: there is no such topic, partition or place.
        TransientError: the bus is away, and nothing is followed.
    """
    reader = _Reader(settings, wanted, lines, follow)
    try:
        await reader.run()
    finally:
        await reader.close()


class _Reader:
    """One run of the command."""

    def __init__(self, settings: Settings, wanted: Wanted, lines: Lines, follow: bool) -> None:
        self._settings, self._wanted, self._lines = settings, wanted, lines
        self._follow = follow
        self._left = wanted.limit if wanted.begin is not None else None
        self._topics: dict[str, TopicTail] = {}
        self._passed_over: set[str] = set()
        self._bus = open_bus(settings)
        live = settings.bus.events_topic
        self._generations = (
            Generations(self._bus, live, SystemClock())
            if wanted.topic == live and not wanted.by_offset
            else None
        )

    async def run(self) -> None:
        """The lines that are there, then those that come."""
        if self._follow:
            await self._wait_for_topic()
        await self._retry(self._open)
        if self._wanted.begin is None:
            await self._retry(self._last)
        else:
            await self._from()
        if self._follow and self._left != 0:
            await self._go_on()

    async def close(self) -> None:
        """Let go of the bus."""
        for topic in self._topics.values():
            await topic.close()
        await self._bus.close()

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """A bus that is away is waited for only by those who follow."""
        return await (patient(call) if self._follow else call())

    def _topic(self, name: str) -> TopicTail:
        return TopicTail(self._settings, name, self._wanted, self._lines)

    async def _wait_for_topic(self) -> None:
        """A topic that a stage will create is waited for, so that tail can be started first."""
        bus, name = self._settings.bus, self._wanted.topic
        made = (bus.events_topic, bus.bars_topic, bus.signals_topic, LETTERS_TOPIC, FEEDBACK_TOPIC)
        if name in made:
            topic = self._topic(name)
            try:
                await topic.appears()
            finally:
                await topic.close()

    async def _names(self) -> list[str]:
        """The topic that is wanted, of the live one its generations."""
        if self._generations is None:
            return [self._wanted.topic]
        timeline = await self._generations.look(self._settings.bus.partitions)
        return [generation.topic for generation in timeline.generations]

    async def _open(self) -> None:
        """Find the topics, and what of them is wanted."""
        names = await self._names()
        found = {name: await self._bus.find_topic(name) for name in names}
        infos = [info for info in found.values() if info]
        if not infos:
            infos = [await _log.topic_of(self._bus, self._wanted.topic)]
        number = self._wanted.partition
        having = [info for info in infos if number is None or 0 <= number < info.partitions]
        self._passed_over = {info.name for info in infos if info not in having}
        # a partition that none of them has is refused by the one with the most
        for info in having or [max(infos, key=lambda info: info.partitions)]:
            if info.name not in self._topics:
                self._topics[info.name] = self._topic(info.name)
            await self._topics[info.name].open()

    # ---- what is there ---------------------------------------------------------------------

    async def _last(self) -> None:
        limit = self._wanted.limit
        assert limit is not None  # noqa: S101
        found = [line for topic in self._topics.values() for line in await topic.last(limit)]
        found.sort(key=lambda line: line[0])
        _output.write_lines(line for _, line in found[-limit:])

    async def _from(self) -> None:
        """What is there, in order of appending over all topics.

        Raises:
            TransientError: the bus is away, and nothing is followed.
        """
        waiting: list[bytes] = []
        records = _log.in_order([topic.records() for topic in self._topics.values()])
        topics = list(self._topics.values())
        try:
            async for number, record in records:
                topics[number].positions[record.partition] = record.offset + 1
                waiting += self._of(topics[number].name, record)
                if len(waiting) >= _LINES_AT_ONCE or self._left == 0:
                    _output.write_lines(waiting)
                    waiting = []
                if self._left == 0:
                    return
        except (TransientError, LogLostError):
            if not self._follow:
                raise
        finally:
            _output.write_lines(waiting)

    def _of(self, topic: str, record: Record) -> list[bytes]:
        """The lines of a record, as far as any are still wanted."""
        lines = list(self._lines.of(record, topic))
        if self._left is not None:
            lines = lines[: self._left]
            self._left -= len(lines)
        return lines

    # ---- what comes ------------------------------------------------------------------------

    def _show(self, topic: str, records: Sequence[Record]) -> bool:
        _output.write_lines([line for record in records for line in self._of(topic, record)])
        return self._left != 0

    async def _go_on(self) -> None:
        """Follow every topic, and those that are added, until no more lines are wanted."""
        tasks = {t.name: asyncio.create_task(t.follow(self._show)) for t in self._topics.values()}
        try:
            while True:
                done, _ = await asyncio.wait(
                    tasks.values(), timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if done:  # one has shown the last line, or failed
                    for task in done:
                        task.result()
                    return
                for topic in await self._begun():
                    tasks[topic.name] = asyncio.create_task(topic.follow(self._show))
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _begun(self) -> list[TopicTail]:
        """Generations that were entered since, ready to be read from their first record on."""
        if self._generations is None:
            return []
        begun = []
        for name in await patient(self._names):
            info = await patient(lambda n=name: self._bus.find_topic(n))  # type: ignore[misc]
            if info is None or name in self._topics or name in self._passed_over:
                continue  # its topic is about to be made
            number = self._wanted.partition
            if number is not None and number >= info.partitions:
                self._passed_over.add(name)
                continue
            self._topics[name] = self._topic(name)
            await self._topics[name].open_new()
            begun.append(self._topics[name])
        return begun
