"""The way of a group into the store and of its messages onto the bus, whatever breaks between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import structlog

from market_data_core.bars import BarBatch
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import (
    Claim,
    CommitResult,
    Commits,
    Group,
    OutboxItem,
    Positions,
)
from market_data_core.errors import FencedError, LogLostError, MdpError, UsageError
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, TopicInfo
from market_data_core.signals import unbundled
from market_data_pipeline.patience import patient
from market_data_pipeline.timeline import Timeline

T = TypeVar("T")
log = structlog.get_logger("micro_batcher")

_TRIES = 3


class Retries(Protocol):
    """Who is told that a call is made again."""

    def retried(self) -> None:
        """A call is made again."""
        ...


class GroupWriter:
    """Commits groups and publishes what they decided.

    Args:
        bus: where messages go.
        store: asked whether the guard still holds.
        commits: where groups go.
        observer: told of every further try.
        guard: a claim without which nothing may be written.
        partitions: of the topic that is read.
        timeline: of the events that are read; None if they are something else.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        commits: Commits,
        observer: Retries,
        guard: Claim | None,
        partitions: int,
        timeline: Timeline | None = None,
    ) -> None:
        self._bus, self._store, self._commits = bus, store, commits
        self._observer, self._guard, self._partitions = observer, guard, partitions
        self._timeline = timeline
        self._infos: dict[str, TopicInfo] = {}
        self._published: list[int] = []

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait out transient errors."""
        return await patient(call, self._observer.retried)

    async def tidy(self) -> None:
        """Forget outbox rows that were published since the last commit."""
        if self._published:
            await self._commits.commit([], self._published, self._guard)
            self._published = []

    async def commit(self, groups: Sequence[Group]) -> CommitResult:
        """Commit the groups in one transaction.

        Raises:
            FencedError: a claim no longer holds; nothing was written.
        """
        published = list(self._published)
        try:
            result = await self._commits.commit(groups, published, self._guard)
        except FencedError as error:
            if await self._guard_lost():
                raise FencedError(str(error)) from error  # whichever partition it names
            raise
        self._published = self._published[len(published) :]
        return result

    async def _guard_lost(self) -> bool:
        guard = self._guard
        if guard is None:
            return False
        rows = await self.retry(lambda: self._store.status(guard.key.group, guard.key.topic))
        return all(row.key != guard.key or row.token != guard.token for row in rows)

    async def publish(self, items: Sequence[OutboxItem]) -> None:
        """Append committed messages to their topics; each key has effect once."""
        by_topic: dict[str, list[OutboxItem]] = {}
        for item in items:
            by_topic.setdefault(item.message.destination, []).append(item)
        for topic, group in by_topic.items():
            await self._publish(topic, group)
            self._published += [item.id for item in group]

    async def _publish(self, topic: str, items: Sequence[OutboxItem]) -> None:
        """Append to the topic; if it was removed or replaced, to the one that is there now.

        Raises:
            LogLostError: it is removed again and again.
            MdpError: it was removed, and events are read from it.
            UsageError: it does not take the messages.
        """
        for left in reversed(range(_TRIES)):
            info = await self._find(topic, items)
            count, own = info.partitions, self._partitions
            entries = [entry for item in items for entry in entries_of(item, own, count)]
            try:
                await self.retry(lambda entries=entries: self._bus.append(topic, entries))  # type: ignore[misc]
            except (LogLostError, UsageError) as error:
                del self._infos[topic]
                now = await self.retry(lambda: self._bus.find_topic(topic))
                if not left or (isinstance(error, UsageError) and now == info):
                    raise
                log.warning("a topic was replaced, and is written on", topic=topic, was=str(error))
            else:
                return

    async def _find(self, topic: str, items: Sequence[OutboxItem]) -> TopicInfo:
        """A topic that is published to, made if it is not there."""
        if topic not in self._infos:
            info = await self.retry(lambda: self._bus.find_topic(topic))
            if info is None:
                size = self._size(topic, items)
                info = await self.retry(lambda: self._bus.create_topic(topic, size))
            self._infos[topic] = info
        return self._infos[topic]

    def _size(self, topic: str, items: Sequence[OutboxItem]) -> int:
        """Number of partitions that a topic of results is made with.

        Raises:
            MdpError: events are read from it; whoever does that has to know.
        """
        if self._timeline and self._timeline.of_topic(topic):
            msg = f"topic {topic!r} is gone while in use; start again to go on with a new one"
            raise MdpError(msg)
        if any(item.message.partition >= 0 for item in items):  # letters have one alone
            return 1
        return self._timeline.generations[0].partitions if self._timeline else self._partitions


def entries_of(item: OutboxItem, partitions: int, count: int) -> list[Entry]:
    """What carries a message to a topic of `count` partitions; `partitions` are those read from."""
    m = item.message
    if (signals := unbundled(m.payload)) is not None:
        return [
            Entry(item.partition, event, 1, provider, ts, ts, key=f"{m.key}/{i}")
            for i, (provider, ts, event) in enumerate(signals)
        ]
    if m.partition >= 0 or count == partitions:
        to = m.partition if m.partition >= 0 else item.partition
        entry = Entry(to, m.payload, m.count, m.provider, m.min_ts, m.max_ts, key=m.key)
        return [entry]
    # bars of a symbol stay in one partition, whatever generation of events they were made of
    bars, version = BarBatch.decode(m.payload)
    owners = np.array([partition_of(symbol, count) for symbol in bars.symbols])[bars.codes]
    entries = []
    for to in np.unique(owners).tolist():
        part = bars.take(owners == to)
        span = int(part.ts.min()), int(part.ts.max())
        payload = part.encode(version)
        key = f"{m.key}/to/{to}"
        entries.append(Entry(to, payload, len(part), m.provider, *span, key=key))
    return entries
