"""A log in memory, faithful to the contract of a bus; its tail or head, or all, may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from market_data_core.clock import ManualClock
from market_data_core.errors import LogLostError
from market_data_core.records import Bounds, Entry, Place, Record, TopicInfo


@dataclass(frozen=True, slots=True)
class _Kept:
    record: Record
    entry: Entry
    received: int


@dataclass(slots=True)
class _Log:
    """One partition's records, and where it stands."""

    kept: list[_Kept] = field(default_factory=list)
    first: int = 0
    next: int = 0
    received: int = 0
    source: int = 0
    appended: int = 0

    def append(self, entry: Entry, now: int) -> None:
        """Offsets rise by steps that nobody can foresee, so that nobody may reckon with them."""
        offset = self.next + _LEFT_OUT[self.appended % len(_LEFT_OUT)]
        record = Record(entry.partition, offset, entry.payload, now, entry.count)
        self.kept.append(_Kept(record, entry, self.received))
        self.next, self.received = offset + 1, self.received + entry.count
        self.source, self.appended = max(self.source, entry.source), self.appended + 1


_LEFT_OUT = (2, 0, 5, 0, 0, 41, 1)


class MemoryBus:
    """Implements the contract of a bus; the tail, the head or the identity can be lost.

    Attributes:
        assigned: what the bus's own group protocol gives to members; None if it has none.
        told: what was acknowledged, call by call.
        forgetful: whether events are counted only of what is kept.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.infos: dict[str, TopicInfo] = {}
        self.logs: dict[tuple[str, int], _Log] = {}
        self.keys: dict[str, set[str]] = {}
        self.assigned: dict[str, frozenset[int]] | None = None
        self.told: list[dict[int, Place]] = []
        self.forgetful = False
        self._made = 0

    async def create_topic(self, name: str, partitions: int) -> TopicInfo:
        if name not in self.infos:
            self._made += 1
            self.infos[name] = TopicInfo(name, f"log-{self._made}", partitions)
            self.keys[name] = set()
            for p in range(partitions):
                self.logs[name, p] = _Log()
        return self.infos[name]

    async def find_topic(self, name: str) -> TopicInfo | None:
        return self.infos.get(name)

    async def topics(self) -> list[TopicInfo]:
        return [self.infos[name] for name in sorted(self.infos)]

    async def drop_topic(self, name: str) -> None:
        info = self.infos.pop(name, None)
        for p in range(info.partitions if info else 0):
            del self.logs[name, p]

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(0)
        for e in entries:
            if (topic, e.partition) not in self.logs:
                raise LogLostError(f"{topic} {e.partition}")
        for e in entries:
            if e.key and e.key in self.keys[topic]:
                continue
            self.keys[topic].add(e.key)
            self.logs[topic, e.partition].append(e, self.clock.now_ns())

    async def bounds(self, topic: str, partition: int) -> Bounds:
        log = self.logs[topic, partition]
        return Bounds(log.first, log.next)

    async def received(self, topic: str, partition: int, offset: int) -> int | None:
        log = self.logs[topic, partition]
        if self.forgetful and log.first:
            return None
        later = [k.received for k in log.kept if k.record.offset >= offset]
        return later[0] if later else log.received

    async def source(self, topic: str, partition: int) -> int:
        return self.logs[topic, partition].source

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        log = self.logs[topic, partition]
        found = [k.record.offset for k in log.kept if k.record.append_ts >= append_ns]
        return found[0] if found else log.next

    def records(self, topic: str) -> list[list[Record]]:
        """Everything in `topic`, by partition."""
        partitions = range(self.infos[topic].partitions)
        return [[k.record for k in self.logs[topic, p].kept] for p in partitions]

    def held(self, topic: str) -> int:
        """Events that came into `topic`."""
        return sum(self.logs[topic, p].received for p in range(self.infos[topic].partitions))

    def read(self, topic: str, partition: int, position: int, most: int) -> list[Record]:
        log = self.logs.get((topic, partition))
        if log is None or not log.first <= position <= log.next:
            raise LogLostError(f"{topic} {partition} {position}")
        return [k.record for k in log.kept if k.record.offset >= position][:most]

    async def poll(
        self,
        topic: str,
        positions: Mapping[int, int],
        max_bytes: int,
        timeout_s: float,  # noqa: ARG002  (there is nothing to wait for)
    ) -> dict[int, list[Record]]:
        await asyncio.sleep(0)
        most = max(1, max_bytes // max(1, len(positions)))
        found = {p: self.read(topic, p, at, most) for p, at in positions.items()}
        return {p: records for p, records in found.items() if records}

    async def checksum(self, topic: str, partition: int, offset: int) -> int | None:
        kept = self.logs[topic, partition].kept
        found = [k.record.checksum for k in kept if k.record.offset == offset]
        return found[0] if found else None

    async def scan(
        self, topic: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        return [
            k.record
            for k, e in ((k, k.entry) for k in self.logs[topic, partition].kept)
            if e.count and e.provider == provider and e.max_ts >= from_ts and e.min_ts < to_ts
        ]

    async def trim(
        self,
        topic: str,
        partition: int,
        before: int,
        older_than_ns: int,  # noqa: ARG002  (everything is old enough)
        max_bytes: int,  # noqa: ARG002
    ) -> bool:
        log = self.logs[topic, partition]
        gone = [k.record.offset for k in log.kept if k.record.offset < before]
        log.kept = log.kept[len(gone) :]
        log.first = gone[-1] + 1 if gone else log.first
        return False

    def lose_tail(self, topic: str, partition: int, keep: int, *, later: bool = False) -> None:
        """Only the first `keep` records survive, as after a failover.

        Their positions are given again to what comes then; with `later`, they are left out.
        """
        log = self.logs[topic, partition]
        lost, log.kept = log.kept[keep:], log.kept[:keep]
        if lost:
            log.received, log.source = lost[0].received, 0
        if lost and not later:
            log.next = log.kept[-1].record.offset + 1 if log.kept else log.first
            log.appended = keep

    async def assignment(
        self,
        topic: str,  # noqa: ARG002
        group: str,  # noqa: ARG002
        member: str,
    ) -> frozenset[int] | None:
        return None if self.assigned is None else self.assigned.get(member, frozenset())

    async def acknowledge(
        self,
        topic: str,  # noqa: ARG002
        group: str,  # noqa: ARG002
        member: str,  # noqa: ARG002
        places: Mapping[int, Place],
    ) -> None:
        self.told.append(dict(places))

    async def leave(self, topic: str, group: str, member: str) -> None:  # noqa: ARG002
        return

    async def close(self) -> None:
        return
