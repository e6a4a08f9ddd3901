"""One topic on its way into the archive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.store import Claim, Commits, Positions
from market_data_core.errors import FencedError, LogLostError, UsageError
from market_data_core.records import Record, TopicInfo
from market_data_pipeline.archive.beginning import beginning
from market_data_pipeline.archive.checkpoint import (
    ArchiveCheckpoint,
    ArchiveGroup,
    decode_archive_checkpoint,
    reached,
)
from market_data_pipeline.archive.layout import Segment
from market_data_pipeline.archive.observe import ArchiveObserver
from market_data_pipeline.archive.settings import Archived, ArchiverSettings
from market_data_pipeline.archive.shelf import Shelf, Staged
from market_data_pipeline.archive.waiting import Waiting
from market_data_pipeline.ownership import Ownership
from market_data_pipeline.patience import patient

log = structlog.get_logger("archive")

_TICK_S = 0.02
_WAIT_S = 0.25


@dataclass(slots=True)
class _Part:
    """An owned partition."""

    claim: Claim
    checkpoint: ArchiveCheckpoint
    waiting: Waiting
    writing: Waiting | None = None

    @property
    def position(self) -> int:
        """From where to read on."""
        for held in (self.waiting, self.writing):
            if held is not None and held.position is not None:
                return held.position
        return self.checkpoint.position

    @property
    def memory(self) -> int:
        """Bytes that it is taken to need in memory."""
        return self.waiting.memory + (self.writing.memory if self.writing else 0)


@dataclass(slots=True)
class _Write:
    """One partition's part of a write under way."""

    part: _Part
    waiting: Waiting
    segment: Segment
    group: ArchiveGroup
    staged: Staged = field(default_factory=Staged)


class TopicArchiver:
    """One worker on one topic.

    Args:
        bus: where events come from.
        store: where positions are.
        codec: how payloads are read.
        shelf: where files go.
        commits: where positions are given.
        info: the topic.
        settings: how the worker behaves.
        clock: wall-clock time.
        observer: keeps the metrics.
        done: what the whole run has written, added to.
        held: bytes that wait, of all topics.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        codec: Codec,
        shelf: Shelf,
        commits: Commits,
        info: TopicInfo,
        settings: ArchiverSettings,
        clock: Clock,
        observer: ArchiveObserver,
        done: Archived,
        held: dict[str, int],
    ) -> None:
        self._bus, self._store, self._codec, self._shelf = bus, store, codec, shelf
        self._commits, self._info, self._settings, self._clock = commits, info, settings, clock
        self._observer, self._done, self._held = observer, done, held
        self._owned: dict[int, _Part] = {}
        self._writing: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._ownership = Ownership(
            bus, store, info, settings.group, settings.member, settings.lease_ns, clock, patient
        )

    async def run(self, stop: asyncio.Event, once: bool) -> None:
        """Work until `stop` is set; with `once`, until what is there now is archived.

        Returns too if the topic is a lane that is complete, or is gone.

        Raises:
            UsageError: the positions in the store belong to another archive.
        """
        until = await self._ends() if once else None
        try:
            while not stop.is_set():
                try:
                    await self._rebalance()
                    await self._read()
                except LogLostError as error:
                    if not await self._begin_anew(error):
                        return
                    continue
                await self._write_due(until)
                if await self._finished(until):
                    break
            await self._settle()
            await self._begin_write(list(self._owned.values()))
            await self._settle()
        finally:
            if self._writing:  # something failed: what is staged is for the next owner to judge
                self._writing.cancel()
                await asyncio.gather(self._writing, return_exceptions=True)
            self._held.pop(self._info.name, None)
            await self._ownership.leave()

    async def _ends(self) -> dict[int, int]:
        """Where each partition that holds something ends now."""
        found = {}
        for number in range(self._info.partitions):
            bounds = await patient(lambda n=number: self._bus.bounds(self._info.name, n))  # type: ignore[misc]
            if bounds.next > bounds.first:
                found[number] = bounds.next
        return found

    # ---- ownership -------------------------------------------------------------------------

    async def _rebalance(self) -> None:
        if self._ownership.due:
            self._observer.alive(self._clock.now_ns(), sum(self._held.values()))
        change = await self._ownership.change({n: p.claim for n, p in self._owned.items()})
        if change.surplus:
            await self._settle()
            await self._begin_write([p for n, p in self._owned.items() if n in change.surplus])
            await self._settle()
        for number in change.surplus:
            part = self._owned.pop(number, None)
            if part:  # it may have been lost to another worker meanwhile
                await self._ownership.release(part.claim)
        for claim in change.claims:
            await self._adopt(claim)

    async def _adopt(self, claim: Claim) -> None:
        """Finish what the last owner has committed, and go on from there."""
        topic, number = claim.key.topic, claim.key.partition
        known = decode_archive_checkpoint(claim.checkpoint) if claim.checkpoint else None
        if known and known.archive != self._shelf.identity.id:
            await self._ownership.release(claim)
            msg = (
                f"group {self._settings.group!r} has archived {topic} to another folder than "
                f"{self._shelf.root}; name that folder with --path or archive.path. For a second "
                "archive, use another consumer group (bus.redis.consumer_group)"
            )
            raise UsageError(msg)
        if known:
            left = Segment(topic, known.log_id, number, known.first, known.token)
            await patient(lambda: asyncio.to_thread(self._shelf.publish, left))
        await asyncio.to_thread(self._shelf.sweep, topic, number, claim.token)
        archive = self._shelf.identity.id
        found = await patient(lambda: beginning(self._bus, self._info, number, known, archive))
        if found.cause:
            self._observer.error("log_lost")
        self._owned[number] = _Part(claim, found.checkpoint, self._empty(number))
        log.debug("partition owned", topic=topic, partition=number, token=claim.token)

    def _empty(self, number: int) -> Waiting:
        return Waiting(self._info, number, self._codec)

    async def _begin_anew(self, error: LogLostError) -> bool:
        """After the log was replaced or trimmed: write what was read of it, claim it again.

        Returns:
            False if the topic is gone.
        """
        log.warning("the log has changed", topic=self._info.name, error=str(error))
        await self._settle()
        await self._begin_write(list(self._owned.values()))
        await self._settle()
        owned, self._owned = self._owned, {}
        for part in owned.values():
            await self._ownership.release(part.claim)
        info = await patient(lambda: self._bus.find_topic(self._info.name))
        if info is None or info.partitions != self._info.partitions:
            return False
        self._info = info
        return True

    # ---- reading ---------------------------------------------------------------------------

    async def _read(self) -> None:
        positions = {n: part.position for n, part in self._owned.items() if not self._over(part)}
        if not positions or sum(self._held.values()) >= self._settings.memory_bytes_max:
            await asyncio.sleep(_TICK_S)
            return
        wait_s = _TICK_S if self._writing else min(_WAIT_S, self._settings.lease_ns / 6e9)
        found = await patient(
            lambda: self._bus.poll(self._info.name, positions, self._settings.poll_bytes, wait_s)
        )
        await self._take(found)
        self._tell_held()
        self._observer.consumed(self._info.name, found, self._clock.now_ns())

    async def _take(self, found: Mapping[int, Sequence[Record]]) -> None:
        owned = [(self._owned[n].waiting, r) for n, r in found.items() if n in self._owned]

        def take() -> None:
            for waiting, records in owned:
                waiting.take(records)

        await asyncio.to_thread(take)

    def _tell_held(self) -> None:
        self._held[self._info.name] = sum(part.memory for part in self._owned.values())

    @staticmethod
    def _over(part: _Part) -> bool:
        """Whether the lane's end was read: nothing comes after it."""
        writing = part.writing is not None and part.writing.ended
        return part.checkpoint.ended or part.waiting.ended or writing

    async def _finished(self, until: Mapping[int, int] | None) -> bool:
        """Whether what was asked for is archived, by whichever member."""
        complete = bool(self._owned) and all(p.checkpoint.ended for p in self._owned.values())
        if until is None and not complete:
            return False
        if until is not None:
            mine = [n for n in until if n in self._owned]
            if any(self._owned[n].checkpoint.position < until[n] for n in mine):
                return False
        now = time.monotonic()
        if now < self._looked_at:
            return False
        self._looked_at = now + _WAIT_S
        rows = await patient(lambda: self._store.status(self._settings.group, self._info.name))
        return reached(rows, until, self._info.partitions)

    # ---- writing ---------------------------------------------------------------------------

    async def _write_due(self, until: Mapping[int, int] | None) -> None:
        """Begin to write what is due, once the write under way has ended."""
        if self._writing and not self._writing.done():
            return
        await self._settle()
        now, s = time.monotonic(), self._settings
        due = []
        for number, part in self._owned.items():
            waiting = part.waiting
            if waiting.since is None:
                continue
            old = now - waiting.since >= s.file_seconds_max
            last = until is not None and part.position >= until.get(number, 0)
            if old or last or waiting.ended or waiting.size >= s.file_bytes_max:
                due.append(part)
        if not due and sum(self._held.values()) >= s.memory_bytes_max:
            due = sorted(self._owned.values(), key=lambda p: -p.waiting.memory)[:1]
        await self._begin_write(due)

    async def _settle(self) -> None:
        """Wait for the write under way."""
        if self._writing:
            task, self._writing = self._writing, None
            await task

    async def _begin_write(self, parts: Sequence[_Part]) -> None:
        """Begin to write what waits of the partitions; no other write may be under way."""
        work = []
        for part in parts:
            waiting = part.waiting
            if waiting.position is None:
                continue
            part.writing, part.waiting = waiting, self._empty(part.claim.key.partition)
            work.append(self._write_of(part, waiting))
        if work:
            self._writing = asyncio.create_task(self._write(work))

    def _write_of(self, part: _Part, waiting: Waiting) -> _Write:
        key, before = part.claim.key, part.checkpoint
        segment = Segment(
            key.topic, before.log_id, key.partition, before.position, part.claim.token
        )
        checkpoint = msgspec.structs.replace(
            before,
            position=waiting.position,
            checksum=waiting.checksum,
            first=segment.first,
            token=segment.token,
            events=before.events + waiting.events,
            set_aside=before.set_aside + waiting.odd,
            ended=before.ended or waiting.ended,
        )
        return _Write(part, waiting, segment, ArchiveGroup(part.claim, checkpoint))

    async def _write(self, work: list[_Write]) -> None:
        """Stage, commit, publish."""
        for write in work:
            write.staged = await patient(
                lambda w=write: asyncio.to_thread(self._stage, w),  # type: ignore[misc]
                self._observer.retried,
            )
        while work:
            try:
                await self._commits.commit([write.group for write in work], [])
                break
            except FencedError as error:
                lost = [w for w in work if w.group.claim.key.partition == error.partition]
                if not lost:
                    raise
                for write in lost:
                    await self._let_go(write)
                work = [write for write in work if write not in lost]
        for write in work:
            await patient(
                lambda w=write: asyncio.to_thread(self._shelf.publish, w.segment),  # type: ignore[misc]
                self._observer.retried,
            )
            self._written(write)
        self._tell_held()

    def _stage(self, write: _Write) -> Staged:
        tables = write.waiting.tables(self._settings.file_bytes_max)
        return self._shelf.stage(write.segment, tables)

    async def _let_go(self, write: _Write) -> None:
        """Another worker has taken the partition over: it reads again what was staged here."""
        number = write.segment.partition
        log.warning("partition was taken over", topic=self._info.name, partition=number)
        self._observer.error("fenced")
        await asyncio.to_thread(self._shelf.discard, write.segment)
        if self._owned.get(number) is write.part:
            del self._owned[number]

    def _written(self, write: _Write) -> None:
        part, staged, waiting = write.part, write.staged, write.waiting
        claim, checkpoint = part.claim, write.group.checkpoint
        part.claim = replace(claim, sequence=claim.sequence + 1, checkpoint=checkpoint.encode())
        part.checkpoint, part.writing = checkpoint, None
        self._done.events += waiting.events
        self._done.set_aside += waiting.odd
        self._done.files += staged.files
        self._done.size += staged.size
        self._observer.written(waiting.events, waiting.odd, staged.files, staged.size)
