"""Forgetting what is old enough, on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import msgspec
import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import PartitionStatus, Positions
from market_data_core.errors import MdpError
from market_data_core.records import TopicInfo
from market_data_pipeline.metrics import ERRORS
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.settings import BatcherSettings

log = structlog.get_logger("retention")

_FIRST_S, _EVERY_S = 1.0, 60.0


class _Reached(msgspec.Struct):
    """What every group's checkpoint tells: the position from which its next owner reads."""

    log_id: str = ""
    resume: int | None = None
    position: int | None = None


_decoder = msgspec.msgpack.Decoder(_Reached)


class Retention:
    """Trims the live topic and what is published from it, once a minute; nothing on a lane.

    It works beside everything else while it is entered: a bus that is full, so that nothing can
    be published, is given room again.

    Args:
        bus: where the topics are.
        store: where all groups' positions are.
        topics: the topic that is read, and where results are published.
        settings: age and size from which records are forgotten.
        clock: wall-clock time.
        owned: the partitions that this worker owns now.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        topics: Topics,
        settings: BatcherSettings,
        clock: Clock,
        owned: Callable[[], Mapping[int, Partition]],
    ) -> None:
        self._bus, self._store, self._topics = bus, store, topics
        self._settings, self._clock, self._owned = settings, clock, owned
        self._working: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._settings.live:
            self._working = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._working:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def _work(self) -> None:
        await asyncio.sleep(_FIRST_S)
        while True:
            await self.trim()
            await asyncio.sleep(_EVERY_S)

    async def trim(self) -> None:
        """Forget records that are old enough and that every group has passed."""
        owned = self._owned()
        try:
            read = {number: partition.place.resume for number, partition in owned.items()}
            await self._trim(self._topics.events, read, self._settings.group)
            if 0 in owned:  # one worker is enough for what nobody has to have read
                for name in (self._topics.bars, self._topics.letters):
                    found = await self._bus.find_topic(name)
                    numbers = range(found.partitions if found else 0)
                    ends = {n: (await self._bus.bounds(name, n)).next for n in numbers}
                    await self._trim(name, ends)
        except MdpError as error:  # the next round tries again; those who read will say more
            log.warning("the log could not be trimmed", error=str(error))

    async def _trim(self, name: str, read: Mapping[int, int], own: str = "") -> None:
        """Trim the partitions of one topic below the given positions, and those of all groups.

        Args:
            name: of the topic.
            read: partition -> position that is passed as far as this worker knows.
            own: group whose positions are `read`.
        """
        info = await self._bus.find_topic(name)
        if info is None or not read:
            return
        rows = [r for r in await self._store.status(None, name) if r.key.group != own]
        limits, s = _limits(rows, info), self._settings
        old = self._clock.now_ns() - s.retention_ns
        full = []
        for number, position in read.items():
            before = min([position, *limits.get(number, {}).values()])
            full.append(await self._bus.trim(name, number, before, old, s.retention_bytes))
        if not all(full):
            return
        behind = {
            group
            for number, groups in limits.items()
            for group, place in groups.items()
            if place < read.get(number, 0)
        }
        ERRORS.labels("retention", "bound_exceeded").inc()
        log.error(
            "the topic is larger than bus.retention.max_bytes, but all that may go is gone",
            topic=name,
            max_bytes=s.retention_bytes,
            groups_behind=sorted(behind),
        )


def _limits(rows: Sequence[PartitionStatus], info: TopicInfo) -> dict[int, dict[str, int]]:
    """Partition -> group -> position from which the group still needs everything.

    A group that has not begun, or whose positions belong to another log, needs all there is.
    """
    found: dict[int, dict[str, int]] = {}
    for row in rows:
        at = None
        if row.checkpoint:
            try:
                reached = _decoder.decode(row.checkpoint)
            except msgspec.MsgspecError:
                reached = _Reached()
            if reached.log_id == info.log_id:
                at = reached.resume if reached.resume is not None else reached.position
        found.setdefault(row.key.partition, {})[row.key.group] = at or 0
    return found
