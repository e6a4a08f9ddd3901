"""When a worker asks history, and how far windows may close by what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from market_data_pipeline.windows.assigner import FOREVER, NEVER
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.settings import History


class Consulting:
    """Brings into a worker's partitions what others know of the windows about to close.

    Args:
        history: what others know.
        live: the worker's events come from feeds.
        retry: makes a call again until it is answered.
    """

    def __init__(
        self,
        history: History,
        live: bool,
        retry: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        self._history, self._live, self._retry = history, live, retry
        self._known_to: dict[tuple[int, str], int] = {}

    def next_round(self) -> None:
        """What is known of live feeds may have changed since."""
        self._history.next_round()

    def forget(self, number: int) -> None:
        """A partition is begun anew."""
        self._known_to = {key: to for key, to in self._known_to.items() if key[0] != number}

    async def limit(self, partition: Partition, provider: str) -> int:
        """How far windows of a provider may close; they are whole up to there."""
        stream = partition.ticks[provider]
        known = (partition.claim.key.partition, provider) in self._known_to
        if not (stream.due() or (stream.closed > NEVER and not known)):
            return FOREVER
        return await self._consult(partition, provider)

    async def _consult(self, partition: Partition, provider: str) -> int:
        history, retry = self._history, self._retry
        number, stream = partition.claim.key.partition, partition.ticks[provider]
        begin = self._known_to.get((number, provider))
        if begin is None:
            begin = stream.history_from()
            history.refresh()
            stream.protected = await retry(lambda: history.protected(provider))
            if not self._live and stream.closed > NEVER:
                await self._resettle(partition, provider, begin)
        limit: int = await retry(lambda: history.limit(provider, number, begin))
        target = min(stream.watermark, stream.known_until(), limit)
        if target > begin:
            for batch in await retry(lambda: history.known(provider, number, begin, target)):
                stream.inject(batch)
        if target > begin or stream.closed > NEVER:
            self._known_to[number, provider] = max(begin, target)
        return limit

    async def _resettle(self, partition: Partition, provider: str, until: int) -> None:
        """Others may have added to what a resumed lane had settled: add it up again."""
        history, retry = self._history, self._retry
        number, stream = partition.claim.key.partition, partition.ticks[provider]
        begin = stream.unsettled_from()
        if begin < until:
            own = await retry(
                lambda: history.own(provider, number, begin, until, partition.first_new)
            )
            known = await retry(lambda: history.known(provider, number, begin, until))
            stream.resettle(own, known)
