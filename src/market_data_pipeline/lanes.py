"""Lanes: each carries one recording, beside the live topic and with positions of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from hashlib import sha256
from itertools import islice

import structlog

from market_data_core.contracts.provider import Item, Recording
from market_data_core.contracts.store import Claim, PartitionKey, WriteCounts
from market_data_core.errors import DamagedFileError, LogLostError, OutOfOrder
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.records import TopicInfo
from market_data_pipeline.assembly import Assembly, Summary
from market_data_pipeline.holding import held
from market_data_pipeline.lane_news import fed_live, tell_live
from market_data_pipeline.pace import Pace
from market_data_pipeline.patience import StoppedWaiting, patient, together
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.recovery import loss

log = structlog.get_logger("lanes")

_LANES = "@lanes"
_DRAIN_S = 10.0
_AHEAD = 4
_LANE_CHARS = 16
_LANE = re.compile(f"[0-9a-f]{{{_LANE_CHARS}}}")


def _take(items: Iterator[Item]) -> tuple[list[Item], Exception | None]:
    """The next few, so that reading and carrying seldom wait for each other; what ended them."""
    taken: list[Item] = []
    try:
        taken.extend(islice(items, _AHEAD))  # keeps what came before an error
    except Exception as error:  # raised again once those are carried
        return taken, error
    return taken, None


class Lanes:
    """Carries recordings through the windows, one at a time on a store.

    Args:
        parts: what to carry them with.
        speed: how many times faster than their own time events are carried; None: at once.
    """

    def __init__(self, parts: Assembly, speed: float | None = None) -> None:
        self._parts, self._speed = parts, speed

    async def record(
        self,
        recording: Recording,
        stop: asyncio.Event,
        then: Callable[[Summary, Collection[str]], Awaitable[Summary]] | None = None,
    ) -> Summary:
        """Carry one recording from its first event to its last bar; resumes where it stood.

        One recording at a time works on a store: a second one waits.

        Args:
            recording: what to carry.
            stop: ends the work.
            then: what is done with its bars before another recording may work, given the providers
                of whose bars the live topic was told; safe to do again.
        """
        key = PartitionKey(self._parts.settings.bus.group, _LANES, 0)
        lease_ns = self._parts.settings.micro_batch.lease_ms * NS_PER_MS
        parts = self._parts
        async with held(parts.store, key, parts.member, lease_ns, stop, self._waits) as guard:
            if guard is None:
                return Summary("", Counts(), WriteCounts(), 0, 0.0)
            summary = await self._guarded(recording, guard, stop)
            told = await patient(lambda: self._tell_live(summary.topic), stop=stop)
            if then and not stop.is_set():
                summary = await then(summary, told)
            return summary

    async def _tell_live(self, topic: str) -> frozenset[str]:
        """Let those who follow live feeds know of bars that the recording has restated.

        Returns:
            The providers that have such a feed.
        """
        parts, settings = self._parts, self._parts.settings.bus
        live = await parts.bus.find_topic(settings.bars_topic)
        lane = topic.removeprefix(f"{settings.events_topic}.")
        bars = await parts.bus.find_topic(f"{settings.bars_topic}.{lane}")
        if live is None or bars is None:
            return frozenset()
        fed = await fed_live(parts.store, parts.generations, settings.group, settings.partitions)
        if fed:
            await tell_live(parts.bus, bars, live, fed)
        return fed

    def _waits(self, waiting: bool) -> None:
        note = "waiting for another recording to finish" if waiting else ""
        self._parts.progress.note = note

    async def _guarded(self, recording: Recording, guard: Claim, stop: asyncio.Event) -> Summary:
        topic = self._lane_topic(recording.presorted())
        mine = {topic, self._lane_topic(recording)}
        await patient(lambda: self._retire(mine), stop=stop)
        done = await patient(lambda: self._finished(topic), stop=stop)
        if done:
            return done
        try:
            return await self._lane(recording, guard, stop)
        except OutOfOrder as error:
            self._parts.progress.note = f"{error}; sorting"
            await patient(lambda: self._abandon(self._lane_topic(recording)), stop=stop)
            return await self._lane(recording.presorted(), guard, stop)

    async def _lane(self, recording: Recording, guard: Claim, stop: asyncio.Event) -> Summary:
        topic, bus = self._lane_topic(recording), self._parts.settings.bus
        lane = topic.removeprefix(f"{bus.events_topic}.")
        done = await patient(lambda: self._finished(topic), stop=stop)
        if done:
            return done
        bars_topic = f"{bus.bars_topic}.{lane}"
        info, _ = await together(
            patient(lambda: self._parts.bus.create_topic(topic, bus.partitions), stop=stop),
            patient(lambda: self._parts.result_topics(bars_topic), stop=stop),
        )
        batcher = self._parts.batcher(info, bars_topic, live=False, guard=guard)
        feeding = asyncio.create_task(self._feed(recording, info, stop))
        working = asyncio.create_task(self._parts.work(batcher, info, stop, _DRAIN_S))
        try:
            await asyncio.wait({feeding, working}, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and (error := feeding.exception()):
                if not isinstance(error, (OutOfOrder, StoppedWaiting)):
                    stop.set()  # what could be read is carried as far as it goes
                    await working
                raise error
            summary = await working
            await feeding
        finally:
            for task in (feeding, working):
                task.cancel()
            await asyncio.gather(feeding, working, return_exceptions=True)
        return summary

    def _lane_topic(self, recording: Recording) -> str:
        """The lane's topic: the same inputs cut into the same windows are the same lane."""
        bus = self._parts.settings.bus
        words = repr((recording.lane, self._parts.spec, bus.partitions))
        return f"{bus.events_topic}.{sha256(words.encode()).hexdigest()[:_LANE_CHARS]}"

    async def _finished(self, topic: str) -> Summary | None:
        """The summary of a lane that is complete; a lane whose log has lost any begins anew."""
        group = self._parts.settings.bus.group
        rows = await self._parts.store.status(group, topic)
        info = await self._parts.bus.find_topic(topic)
        known = {r.key.partition: decode_checkpoint(r.checkpoint) for r in rows if r.checkpoint}
        if not known:
            return None
        if info is None or any([await loss(self._parts.bus, info, *row) for row in known.items()]):
            log.warning("the lane's log has lost events; it is read again", topic=topic)
            await self._abandon(topic)
            return None
        checkpoints = known.values()
        whole = all(c.ended and not c.counts.open for c in checkpoints)
        if len(checkpoints) < info.partitions or not whole:
            return None
        for number in range(info.partitions):
            if await self._parts.store.outbox(group, topic, number):
                return None  # its owner died between the last commit and publishing
        counts, written = Counts(), WriteCounts()
        for checkpoint in checkpoints:
            counts.add(checkpoint.counts)
            written.unchanged += checkpoint.bars
        return Summary(topic, counts, written, 0, 0.0, repeated=True)

    async def _abandon(self, topic: str) -> None:
        await self._parts.store.forget(self._parts.settings.bus.group, topic)
        await self._parts.bus.drop_topic(topic)

    async def _retire(self, mine: set[str]) -> None:
        """Drop the logs of recordings that were carried longer ago than the bus keeps events.

        Their positions stay, so that what is stored of them is known not to be whole any more in
        the logs, and is not replaced by what a part of the events would give.
        """
        parts, bus = self._parts, self._parts.bus
        settings = parts.settings.bus
        oldest = parts.clock.now_ns() - int(settings.retention.hours * 3600 * NS_PER_S)
        for info in await bus.topics():
            prefix, _, lane = info.name.rpartition(".")
            if prefix != settings.events_topic or not _LANE.fullmatch(lane) or info.name in mine:
                continue
            try:
                newest = await self._newest(info)
            except (DamagedFileError, LogLostError) as error:
                log.warning("an old recording's log is left alone", reason=str(error))
                continue
            if 0 < newest < oldest:
                log.info("the log of an old recording is dropped", topic=info.name)
                await bus.drop_topic(f"{settings.signals_topic}.{lane}")
                await bus.drop_topic(f"{settings.bars_topic}.{lane}")
                await bus.drop_topic(info.name)

    async def _newest(self, info: TopicInfo) -> int:
        """When the topic's last record was appended; 0 if it has none."""
        newest = 0
        for number in range(info.partitions):
            bounds = await self._parts.bus.bounds(info.name, number)
            if bounds.next > bounds.first:
                last = await self._parts.bus.poll(info.name, {number: bounds.next - 1}, 1, 0)
                now = self._parts.clock.now_ns()  # a last record that is gone was not the oldest
                newest = max(newest, last[number][0].append_ts if last else now)
        return newest

    async def _feed(self, recording: Recording, info: TopicInfo, stop: asyncio.Event) -> None:
        bus, numbers = self._parts.bus, range(info.partitions)
        sources = await patient(
            lambda: together(*(bus.source(info.name, p) for p in numbers)), stop=stop
        )
        producer = self._parts.producer(info, "", sources=sources)
        pace = Pace(self._speed, max(sources))
        items = recording.read()
        coming = asyncio.ensure_future(asyncio.to_thread(_take, items))
        while not stop.is_set():
            some, error = await coming
            coming = asyncio.ensure_future(asyncio.to_thread(_take, items))  # read ahead
            for item in some:
                async for part in pace.parts(item, stop):
                    producer.add(part)
                    if producer.full or pace.holds:
                        await producer.flush()
                        self._parts.produced(producer)
            if error:
                await producer.flush()
                self._parts.produced(producer)
                raise error
            if not some:
                await producer.end()
                return
