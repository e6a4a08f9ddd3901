"""The micro-batcher: owns partitions, reads them, and commits what their windows give.

Any number of workers share a topic. Each owns some partitions, proven by a token in the store;
reading, windows and commits of one worker overlap, commits of one partition never do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.store import Claim, Commits, Positions, WriteCounts
from market_data_core.errors import FencedError, LogHoleError, LogLostError, TransientError
from market_data_core.records import Entry, Place, TopicInfo
from market_data_pipeline.generations import Generations
from market_data_pipeline.observe import Observer
from market_data_pipeline.ownership import Ownership
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.consulting import Consulting
from market_data_pipeline.windows.group import PartitionGroup, Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.recovery import Recovered, recover, tell_losses
from market_data_pipeline.windows.retention import Retention
from market_data_pipeline.windows.settings import BatcherSettings, History
from market_data_pipeline.windows.writer import GroupWriter

log = structlog.get_logger("micro_batcher")

_TICK_S = 0.02
_TELL_S = 0.25


class MicroBatcher:
    """One worker on one topic.

    Args:
        bus: where events come from and messages go.
        store: where bars and positions go.
        codec: how payloads are read and written.
        spec: the windows.
        info: the topic.
        bars_topic: where changed bars are published.
        letters_topic: where dead letters are published.
        settings: how the worker behaves.
        clock: wall-clock time.
        observer: keeps the metrics.
        commits: where groups are given.
        history: for a lane, what is known already.
        guard: a claim without which the lane may not write.
        generations: of the live topic, one of which this topic is; None on a lane.

    Attributes:
        written: what the store did with the bars so far.
        span: least and greatest start of those bars, UTC ns; None if there were none.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        codec: Codec,
        spec: WindowSpec,
        info: TopicInfo,
        bars_topic: str,
        letters_topic: str,
        settings: BatcherSettings,
        clock: Clock,
        observer: Observer,
        commits: Commits,
        history: History | None = None,
        guard: Claim | None = None,
        generations: Generations | None = None,
    ) -> None:
        self._bus, self._store, self._codec = bus, store, codec
        self._spec, self._info, self._settings, self._clock = spec, info, settings, clock
        self._generations = generations
        timeline = generations.timeline if generations else None
        home = timeline.of_topic(info.name) if timeline else None
        partitions = home.partitions if home else info.partitions
        self._topics = Topics(
            info.name, partitions, bars_topic, letters_topic, timeline, not settings.live
        )
        self._observer, self._commits = observer, commits
        self._writer = GroupWriter(
            bus, store, commits, observer, guard, partitions, self._topics.timeline
        )
        retry = self._writer.retry
        self._consulting = Consulting(history, settings.live, retry) if history else None
        self._owned: dict[int, Partition] = {}
        self._committing: asyncio.Task[None] | None = None
        self._retention = Retention(bus, store, self._topics, settings, clock, lambda: self._owned)
        group, member, lease_ns = settings.group, settings.member, settings.lease_ns
        self._ownership = Ownership(bus, store, info, group, member, lease_ns, clock, retry)
        self._commit_at = self._tell_at = 0.0
        self._told: dict[int, Place] = {}
        self._before: dict[int, int] = {}
        self.written = WriteCounts()
        self.span: tuple[int, int] | None = None

    @property
    def counts(self) -> Counts:
        """The conservation equation of the owned partitions, as of their latest groups."""
        total = Counts()
        for partition in self._owned.values():
            total.add(partition.checkpoint.counts)
        return total

    @property
    def received(self) -> int:
        """Events that this worker received, of the partitions that it has still."""
        return self.counts.received - sum(self._before[number] for number in self._owned)

    @property
    def open_windows(self) -> int:
        """Base windows that wait for the watermark."""
        return sum(s.open_windows for p in self._owned.values() for s in p.ticks.values())

    @property
    def ended(self) -> bool:
        """Whether every partition was read to its end mark and committed."""
        done = [p for p in self._owned.values() if p.ended and not p.restoring and not p.dirty]
        return len(done) == self._info.partitions and self._committing is None

    async def run(self, stop: asyncio.Event, drain_s: float = 0.0) -> None:
        """Work until `stop` is set or the lane has ended; then commit and let go.

        Args:
            stop: asks to end.
            drain_s: for how long to go on after that while there is something to read.

        Raises:
            LogLostError: the log is gone.
            FencedError: the guard was lost.
        """
        try:
            async with self._commits, self._retention:
                await self._work(stop, drain_s)
        finally:
            await self._leave()

    async def _work(self, stop: asyncio.Event, drain_s: float) -> None:
        busy, deadline = True, float("inf")
        while not self.ended:
            if stop.is_set():
                deadline = min(deadline, time.monotonic() + drain_s)
                if not busy or time.monotonic() >= deadline:
                    break
            try:
                await self._rebalance()
                busy = await self._read()
            except LogHoleError as hole:
                self._miss(hole)
                continue
            except LogLostError as error:
                await self._begin_anew(error)
                continue
            await self._decide(busy)
            await self._mark_idle()
            await self._tell()
        await self._commit(list(self._owned.values()))
        await self._settle_commit()
        await self._writer.tidy()
        await self._tell(now=True)

    def _miss(self, hole: LogHoleError) -> None:
        log.error("the log has lost records", topic=self._info.name, error=str(hole))
        self._observer.error("log_lost")
        if partition := self._owned.get(hole.partition):  # it may have been lost meanwhile
            partition.miss(hole.position, hole.events)

    async def _begin_anew(self, error: LogLostError) -> None:
        """Forget what was read of a log that is not whole any more, and go on as a new owner.

        Raises:
            LogLostError: the topic is gone, or this process cannot look at what replaced it.
        """
        log.error("the log has lost records", topic=self._info.name, error=str(error))
        await self._settle_commit()
        owned, self._owned = self._owned, {}
        for partition in owned.values():
            await self._ownership.release(partition.claim)
        info = await self._writer.retry(lambda: self._bus.find_topic(self._info.name))
        if info is None or info.partitions != self._info.partitions:
            raise error
        self._info = info

    async def _tell(self, *, now: bool = False) -> None:
        """Show the bus's own tools how far this worker has come, a few times a second."""
        if not now and time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + _TELL_S
        places = {n: p.place for n, p in self._owned.items() if p.place != self._told.get(n)}
        if not places:
            return
        s = self._settings
        try:
            await self._bus.acknowledge(self._info.name, s.group, s.member, places)
        except TransientError as error:  # the next round tells it too
            log.debug("could not tell the bus where the group stands", error=str(error))
            return
        self._told |= places

    async def _leave(self) -> None:
        if self._committing:
            await asyncio.gather(self._committing, return_exceptions=True)
        await self._ownership.leave()

    # ---- ownership -------------------------------------------------------------------------

    async def _rebalance(self) -> None:
        """Give a sign of life now and then, and take the worker's share of the partitions."""
        if self._ownership.due:
            self._observer.alive(self._clock.now_ns(), self.open_windows)
        change = await self._ownership.change({n: p.claim for n, p in self._owned.items()})
        for number in change.surplus:
            await self._release(number)
        found = {claim.key.partition: await self._adopt(claim) for claim in change.claims}
        if tell_losses(self._info.name, found):
            self._observer.error("log_lost")

    async def _release(self, number: int) -> None:
        await self._commit([p for p in (self._owned.get(number),) if p])
        await self._settle_commit()
        partition = self._owned.pop(number, None)
        if partition:  # it may have been lost to another worker meanwhile
            await self._ownership.release(partition.claim)

    async def _adopt(self, claim: Claim) -> Recovered:
        number = claim.key.partition
        checkpoint = decode_checkpoint(claim.checkpoint) if claim.checkpoint else None
        found = await self._writer.retry(
            lambda: recover(self._bus, self._info, number, checkpoint, self._spec.base_ns)
        )
        left = await self._writer.retry(
            lambda: self._store.outbox(claim.key.group, claim.key.topic, number)
        )
        await self._writer.publish(left)
        future_ns = self._settings.max_future_ns
        partition = Partition(
            claim, found.checkpoint, self._spec, self._topics, self._codec, future_ns
        )
        partition.gaps = found.gaps
        partition.dirty = bool(found.gaps)
        self._owned[number] = partition
        self._told.pop(number, None)
        if self._consulting:
            self._consulting.forget(number)
        self._before[number] = found.checkpoint.counts.received
        self._observer.adopted(number, checkpoint.counts if checkpoint else Counts())
        log.debug("partition owned", topic=self._info.name, partition=number, token=claim.token)
        return found

    # ---- reading ---------------------------------------------------------------------------

    async def _read(self) -> bool:
        positions = {
            number: partition.position
            for number, partition in self._owned.items()
            if partition.restoring or not partition.ended
        }
        if not positions:
            await asyncio.sleep(_TICK_S)
            return False
        began = self._clock.now_ns()
        name, most, wait_s = self._info.name, self._settings.poll_bytes, self._wait_s()
        found = await self._writer.retry(lambda: self._bus.poll(name, positions, most, wait_s))
        if self._generations and found:
            newest = max(records[-1].append_ts for records in found.values())
            catch_up = self._generations.catch_up
            await self._writer.retry(lambda: catch_up(newest))
        for number in positions:
            if number in self._owned:  # it may have been lost while we waited
                self._owned[number].take(found.get(number, ()), began)
        self._observer.consumed(found, self._clock.now_ns())
        return bool(found)

    def _wait_s(self) -> float:
        """How long to wait for records: short while a position or a silent window is due."""
        waiting = any(p.dirty or p.ticks for p in self._owned.values())
        return _TICK_S if waiting else min(0.25, self._settings.lease_ns / 6e9)

    async def _decide(self, busy: bool) -> None:
        """Collect what is due; commit if there is output, or positions are due."""
        if self._consulting:
            self._consulting.next_round()
        for partition in list(self._owned.values()):
            streams = () if partition.restoring else partition.ticks.items()
            for provider, stream in list(streams):
                limit = FOREVER
                if self._consulting:
                    limit = await self._consulting.limit(partition, provider)
                if stream.due(limit):
                    partition.collect(provider, limit)
        now = time.monotonic()
        ready = [p for p in self._owned.values() if p.dirty]
        due = now >= self._commit_at or any(p.has_output or p.ended for p in ready)
        if ready and due and self._committing and not busy:  # nothing better to do than to wait
            await asyncio.wait({self._committing}, timeout=_TICK_S)
        free = self._committing is None or self._committing.done()
        # a store that is slow or down must not let bars pile up here: then reading waits
        pending = 0 if free else sum(p.pending_rows for p in ready)
        self._commits.hold(pending)
        full = pending >= self._settings.pending_rows_max
        if ready and due and (free or full):
            self._commit_at = now + self._settings.commit_interval_ns / 1e9
            await self._commit(ready)
        elif self._committing and self._committing.done():
            await self._settle_commit()

    async def _mark_idle(self) -> None:
        if not self._settings.live:
            return
        silence = self._settings.flush_timeout_ns
        entries = [
            Entry(number, self._codec.encode_mark(mark), provider=mark.provider)
            for number, partition in self._owned.items()
            for mark in partition.idle_marks(silence)
        ]
        if entries:
            try:
                await self._writer.retry(lambda: self._bus.append(self._info.name, entries))
            except LogLostError as error:
                await self._begin_anew(error)

    # ---- writing ---------------------------------------------------------------------------

    async def _commit(self, partitions: Sequence[Partition]) -> None:
        """Begin to commit the partitions' groups, after the commit under way has finished."""
        await self._settle_commit()
        mine = [p for p in partitions if self._owned.get(p.claim.key.partition) is p and p.dirty]
        work = [(p, p.group()) for p in mine]
        if work:
            self._committing = asyncio.create_task(self._write(work))

    async def _settle_commit(self) -> None:
        if self._committing:
            task, self._committing = self._committing, None
            await task

    async def _write(self, work: list[tuple[Partition, PartitionGroup]]) -> None:
        while work:
            try:
                result = await self._writer.commit([group for _, group in work])
                break
            except FencedError as error:
                kept = [w for w in work if w[1].claim.key.partition != error.partition]
                if len(kept) == len(work):
                    raise  # the guard: this lane is somebody else's now
                work = kept
                self._owned.pop(error.partition, None)
                log.warning("partition was taken over", partition=error.partition)
                self._observer.error("fenced")
        else:
            return
        now = self._clock.now_ns()
        for partition, group in work:
            partition.committed(group, result.bad.get(group.claim.key.partition, []))
            self._observer.committed(group, now)
            self.span = group.widened(self.span)
        self.written.add(result.counts)
        self._observer.written(result.counts, self.counts.open)
        await self._writer.publish(result.outbox)
