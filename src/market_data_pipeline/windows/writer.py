"""The way of a group into the store and of its messages onto the bus, whatever breaks between."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import BadRow, Claim, CommitResult, OutboxItem, Store
from market_data_core.errors import FencedError
from market_data_core.records import Entry
from market_data_pipeline.observe import Observer
from market_data_pipeline.patience import patient
from market_data_pipeline.windows.checkpoint import decode_checkpoint
from market_data_pipeline.windows.group import PartitionGroup

T = TypeVar("T")
log = structlog.get_logger("micro_batcher")


class GroupWriter:
    """Commits groups and publishes what they decided.

    Args:
        bus: where messages go.
        store: where groups go.
        observer: keeps the metrics.
        guard: a claim without which nothing may be written.
    """

    def __init__(self, bus: Bus, store: Store, observer: Observer, guard: Claim | None) -> None:
        self._bus, self._store = bus, store
        self._observer, self._guard = observer, guard
        self._published: list[int] = []

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait out transient errors."""
        return await patient(call, self._observer.retried)

    async def tidy(self) -> None:
        """Forget outbox rows that were published since the last commit."""
        if self._published:
            await self.retry(lambda: self._store.commit([], self._published, self._guard))
            self._published = []

    async def commit(self, groups: Sequence[PartitionGroup]) -> CommitResult:
        """Commit; if the outcome is unknown, find it out before trying again.

        Raises:
            FencedError: a claim no longer holds; nothing was written.
        """
        published = list(self._published)
        unknown = False

        async def attempt() -> CommitResult:
            nonlocal unknown
            if unknown and (done := await self._already_committed(groups)):
                return done
            unknown = True
            began = time.perf_counter()
            try:
                return await self._store.commit(groups, published, self._guard)
            finally:
                self._observer.store_write(time.perf_counter() - began)

        try:
            result = await self.retry(attempt)
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

    async def _already_committed(self, groups: Sequence[PartitionGroup]) -> CommitResult | None:
        """What can be known of a commit whose answer was lost; None if it did not happen.

        The groups are one transaction, so any of them that nobody took over since tells of all.
        What was done to the bars is not known, except which of them were refused.
        """
        if not groups:
            return None
        key = groups[0].claim.key
        rows = {row.key: row for row in await self._store.status(key.group, key.topic)}
        ours = [g for g in groups if (row := rows.get(g.claim.key)) and row.token == g.claim.token]
        if not ours or rows[ours[0].claim.key].sequence == ours[0].claim.sequence:
            return None
        result = CommitResult()
        for group in ours:
            key = group.claim.key
            bad = decode_checkpoint(rows[key].checkpoint or b"").bad
            if bad:
                result.bad[key.partition] = [BadRow(*row, "") for row in bad]
                result.counts.bad += len(bad)
            result.outbox += await self._store.outbox(key.group, key.topic, key.partition)
        return result

    async def publish(self, items: Sequence[OutboxItem]) -> None:
        """Append committed messages to their topics; each key has effect once."""
        by_topic: dict[str, list[OutboxItem]] = {}
        for item in items:
            by_topic.setdefault(item.message.destination, []).append(item)
        for topic, group in by_topic.items():
            entries = [
                Entry(
                    m.partition if m.partition >= 0 else item.partition,
                    m.payload,
                    m.count,
                    m.provider,
                    m.min_ts,
                    m.max_ts,
                    key=m.key,
                )
                for item in group
                for m in (item.message,)
            ]
            await self.retry(lambda t=topic, e=entries: self._bus.append(t, e))  # type: ignore[misc]
            self._published += [item.id for item in group]
