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
from market_data_core.contracts.store import (
    Claim,
    Commits,
    PartitionKey,
    Positions,
    WriteCounts,
)
from market_data_core.errors import FencedError, TransientError
from market_data_core.records import Entry, TopicInfo
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows.assigner import FOREVER, NEVER, WindowSpec
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.group import PartitionGroup, Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.recovery import Recovered, recover, tell_losses
from market_data_pipeline.windows.retention import Retention
from market_data_pipeline.windows.settings import BatcherSettings, History
from market_data_pipeline.windows.writer import GroupWriter

log = structlog.get_logger("micro_batcher")

_TICK_S = 0.02


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
    ) -> None:
        self._bus, self._store, self._codec = bus, store, codec
        self._spec, self._info, self._settings, self._clock = spec, info, settings, clock
        self._topics = Topics(info.name, info.partitions, bars_topic, letters_topic)
        self._observer, self._history, self._commits = observer, history, commits
        self._writer = GroupWriter(bus, store, commits, observer, guard)
        self._owned: dict[int, Partition] = {}
        self._known_to: dict[tuple[int, str], int] = {}
        self._committing: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[list[str]] | None = None
        self._retention = Retention(bus, info, self._topics, settings, clock)
        self._beat_at = self._commit_at = 0.0
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
            LogLostError: the log was replaced while it was being read.
            FencedError: the guard was lost.
        """
        try:
            async with self._commits:
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
            await self._rebalance()
            busy = await self._read()
            await self._decide(busy)
            await self._mark_idle()
            await self._retention.trim(self._owned)
        await self._commit(list(self._owned.values()))
        await self._settle_commit()
        await self._writer.tidy()

    async def _leave(self) -> None:
        if self._beating:
            self._beating.cancel()
        left = [task for task in (self._committing, self._beating) if task]
        await asyncio.gather(*left, return_exceptions=True)
        try:
            await self._store.leave(self._settings.group, self._info.name, self._settings.member)
        except TransientError as error:  # the lease will run out instead
            log.warning("could not leave the group", error=str(error))

    # ---- ownership -------------------------------------------------------------------------

    async def _rebalance(self) -> None:
        """Give a sign of life now and then, and take the worker's share of the partitions.

        Nothing waits for the answer: while the store is away, reading goes on until what waits
        for it has reached its bound. Commits are fenced, whatever became of the lease meanwhile.
        """
        now, s = time.monotonic(), self._settings
        if self._beating is None:
            if now < self._beat_at:
                return
            self._beat_at = now + s.lease_ns / 6e9
            self._observer.alive(self._clock.now_ns(), self.open_windows)
            self._beating = asyncio.create_task(self._beat())
        if self._owned and not self._beating.done():
            return
        beating, self._beating = self._beating, None
        members = await beating
        share, rest = divmod(self._info.partitions, len(members))
        quota = share + (members.index(s.member) < rest)
        if len(self._owned) > quota:
            for number in sorted(self._owned)[quota:]:
                await self._release(number)
        elif len(self._owned) < quota:
            await self._claim_free(quota - len(self._owned))

    async def _beat(self) -> list[str]:
        s = self._settings
        tokens = {p: part.claim.token for p, part in self._owned.items()}
        return await self._writer.retry(
            lambda: self._store.heartbeat(s.group, self._info.name, s.member, s.lease_ns, tokens)
        )

    async def _release(self, number: int) -> None:
        await self._commit([p for p in (self._owned.get(number),) if p])
        await self._settle_commit()
        partition = self._owned.pop(number, None)
        if partition:  # it may have been lost to another worker meanwhile
            await self._writer.retry(lambda: self._store.release(partition.claim))
            log.debug("partition handed over", topic=self._info.name, partition=number)

    async def _claim_free(self, wanted: int) -> None:
        s = self._settings
        rows = await self._writer.retry(lambda: self._store.status(s.group, self._info.name))
        stale = self._clock.now_ns() - s.lease_ns
        held = {r.key.partition for r in rows if r.owner and r.heartbeat >= stale}
        free = [p for p in range(self._info.partitions) if p not in self._owned and p not in held]
        found: dict[int, Recovered] = {}
        for number in free[:wanted]:
            key = PartitionKey(s.group, self._info.name, number)
            claim = await self._writer.retry(
                lambda key=key: self._store.claim(key, s.member, s.lease_ns)  # type: ignore[misc]
            )
            if claim:
                found[number] = await self._adopt(claim)
        if tell_losses(self._info.name, found):
            self._observer.error("log_lost")

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
        partition = Partition(
            claim,
            found.checkpoint,
            self._spec,
            self._topics,
            self._codec,
            self._settings.max_future_ns,
        )
        partition.gaps = found.gaps
        partition.dirty = bool(found.gaps)
        self._owned[number] = partition
        self._known_to = {key: to for key, to in self._known_to.items() if key[0] != number}
        self._before[number] = found.checkpoint.counts.received
        self._observer.adopted(number, found.checkpoint.counts)
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
        found = await self._writer.retry(
            lambda: self._bus.poll(
                self._info.name, positions, self._settings.poll_bytes, self._wait_s()
            )
        )
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
        for number, partition in list(self._owned.items()):
            streams = () if partition.restoring else partition.ticks.items()
            for provider, stream in list(streams):
                limit = FOREVER
                resumed = stream.closed > NEVER and (number, provider) not in self._known_to
                if self._history and (resumed or stream.due()):
                    limit = await self._consult(self._history, partition, provider)
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

    async def _consult(self, history: History, partition: Partition, provider: str) -> int:
        """Bring in what others know of the windows about to close; returns how far they may."""
        number, stream = partition.claim.key.partition, partition.ticks[provider]
        begin = self._known_to.get((number, provider))
        if begin is None:
            begin = stream.history_from()
            history.refresh()
            stream.protected = await self._writer.retry(lambda: history.protected(provider))
            if not self._settings.live:
                await self._resettle(history, partition, provider, begin)
        limit = await self._writer.retry(lambda: history.limit(provider, number, begin))
        target = min(stream.watermark, stream.known_until(), limit)
        if target > begin:
            batches = await self._writer.retry(
                lambda: history.known(provider, number, begin, target)
            )
            for batch in batches:
                stream.inject(batch)
        if target > begin or stream.closed > NEVER:
            self._known_to[number, provider] = max(begin, target)
        return limit

    async def _resettle(
        self, history: History, partition: Partition, provider: str, until: int
    ) -> None:
        """Others may have added to what a resumed lane had settled: add it up again."""
        number, stream = partition.claim.key.partition, partition.ticks[provider]
        begin = stream.unsettled_from()
        if begin < until:
            own = await self._writer.retry(
                lambda: history.own(provider, number, begin, until, partition.first_new)
            )
            known = await self._writer.retry(lambda: history.known(provider, number, begin, until))
            stream.resettle(own, known)

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
            await self._writer.retry(lambda: self._bus.append(self._info.name, entries))

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
            self._widen(group)
        self.written.add(result.counts)
        self._observer.written(result.counts, self.counts.open)
        await self._writer.publish(result.outbox)

    def _widen(self, group: PartitionGroup) -> None:
        """Take the starts of the group's bars into the span of what was written."""
        for batch in group.bars:
            first, last = int(batch.ts.min()), int(batch.ts.max())
            low, high = self.span or (first, last)
            self.span = min(low, first), max(high, last)
