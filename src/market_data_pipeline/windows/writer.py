"""The way of a group into the store and of its messages onto the bus, whatever breaks between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Claim, CommitResult, Commits, OutboxItem, Positions
from market_data_core.errors import FencedError
from market_data_core.records import Entry
from market_data_pipeline.observe import Observer
from market_data_pipeline.patience import patient
from market_data_pipeline.windows.group import PartitionGroup

T = TypeVar("T")


class GroupWriter:
    """Commits groups and publishes what they decided.

    Args:
        bus: where messages go.
        store: asked whether the guard still holds.
        commits: where groups go.
        observer: keeps the metrics.
        guard: a claim without which nothing may be written.
    """

    def __init__(
        self, bus: Bus, store: Positions, commits: Commits, observer: Observer, guard: Claim | None
    ) -> None:
        self._bus, self._store, self._commits = bus, store, commits
        self._observer, self._guard = observer, guard
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
