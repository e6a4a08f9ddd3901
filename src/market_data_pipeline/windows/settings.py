"""How a micro-batcher behaves, and what a lane asks of history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from market_data_core.events import EventBatch


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """How a worker behaves.

    Attributes:
        group: consumer group.
        member: this worker's name, unique in the group.
        lease_ns: how long an owner may be silent before its partitions are taken over.
        flush_timeout_ns: silence after which a provider's clock is taken to go on.
        commit_interval_ns: how often positions are committed when no bar is due.
        poll_bytes: how much is read at a time over all partitions.
        max_future_ns: how far ahead of its append a live event may be; None on a lane.
        retention_ns: age at which read records are forgotten.
        retention_bytes: size of the topic beyond which they are forgotten earlier.
        pending_rows_max: bars that may wait for a commit under way before reading waits too.
    """

    group: str
    member: str
    lease_ns: int
    flush_timeout_ns: int
    commit_interval_ns: int
    poll_bytes: int
    max_future_ns: int | None
    retention_ns: int
    retention_bytes: int
    pending_rows_max: int

    @property
    def live(self) -> bool:
        """Whether events come from feeds whose clocks go on by themselves."""
        return self.max_future_ns is not None


class History(Protocol):
    """What a lane has to know of everything that came before it."""

    async def limit(self, provider: str, partition: int, from_ts: int) -> int:
        """Windows that end above this belong to a live feed that may still write them.

        `from_ts` is the earliest time for which it matters, UTC ns.
        """
        ...

    async def protected(self, provider: str) -> int:
        """Stored bars of `provider` that begin before this must not give way to new ones."""
        ...

    def next_round(self) -> None:
        """What is known of live feeds may have changed since."""
        ...

    def refresh(self) -> None:
        """Look again at what others have done."""
        ...

    async def known(
        self, provider: str, partition: int, from_ts: int, to_ts: int
    ) -> list[EventBatch]:
        """Ticks that other lanes and feeds have stored in [from_ts, to_ts)."""
        ...

    async def own(
        self, provider: str, partition: int, from_ts: int, to_ts: int, before: int
    ) -> list[EventBatch]:
        """Ticks of this lane itself in [from_ts, to_ts), from records below offset `before`."""
        ...
