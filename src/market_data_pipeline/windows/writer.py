"""The way of a group into the store and of its messages onto the bus, whatever breaks between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
import structlog

from market_data_core.bars import BarBatch
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Claim, CommitResult, Commits, OutboxItem, Positions
from market_data_core.errors import FencedError, LogLostError
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry
from market_data_pipeline.observe import Observer
from market_data_pipeline.patience import patient
from market_data_pipeline.windows.group import PartitionGroup

T = TypeVar("T")
log = structlog.get_logger("micro_batcher")


class GroupWriter:
    """Commits groups and publishes what they decided.

    Args:
        bus: where messages go.
        store: asked whether the guard still holds.
        commits: where groups go.
        observer: keeps the metrics.
        guard: a claim without which nothing may be written.
        partitions: of the topic that is read.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        commits: Commits,
        observer: Observer,
        guard: Claim | None,
        partitions: int,
    ) -> None:
        self._bus, self._store, self._commits = bus, store, commits
        self._observer, self._guard, self._partitions = observer, guard, partitions
        self._counts: dict[str, int] = {}
        self._published: list[int] = []

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait out transient errors."""
        return await patient(call, self._observer.retried)

    async def tidy(self) -> None:
        """Forget outbox rows that were published since the last commit."""
        if self._published:
            await self._commits.commit([], self._published, self._guard)
            self._published = []

    async def commit(self, groups: Sequence[PartitionGroup]) -> CommitResult:
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
            count = await self._count(topic)
            entries = [e for item in group for e in entries_of(item, self._partitions, count)]
            await self.retry(lambda t=topic, e=entries: self._append(t, e))  # type: ignore[misc]
            self._published += [item.id for item in group]

    async def _append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Append to the topic; if it was removed or replaced, to the one that is there now."""
        try:
            await self._bus.append(topic, entries)
        except LogLostError as error:
            log.warning("a topic was replaced, and is written on", topic=topic, error=str(error))
            if await self._bus.find_topic(topic) is None:
                await self._bus.create_topic(topic, self._counts.get(topic, self._partitions))
            await self._bus.append(topic, entries)

    async def _count(self, topic: str) -> int:
        """Number of partitions of a topic that is published to."""
        if topic not in self._counts:
            info = await self.retry(lambda: self._bus.find_topic(topic))
            if info is None:  # the append will say so
                return self._partitions
            self._counts[topic] = info.partitions
        return self._counts[topic]


def entries_of(item: OutboxItem, partitions: int, count: int) -> list[Entry]:
    """What carries a message to a topic of `count` partitions; `partitions` are those read from."""
    m = item.message
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
