"""The stages wired, top to bottom: provider → bus → window → store.

A *live* run reads feeds into the live topic and cuts it into windows for as long as it is left
running. A *lane* carries one recording, from its first event to its end mark, beside the live
topic and with positions of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import structlog

from market_data_core import registry
from market_data_core.config import Settings
from market_data_core.contracts.provider import FeedState, LiveProvider, Recording, Subscription
from market_data_core.contracts.store import Claim, PartitionKey, WriteCounts
from market_data_core.errors import FencedError, TransientError
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.records import TopicInfo
from market_data_pipeline.backends import Backends
from market_data_pipeline.bus import codec
from market_data_pipeline.observe import Observer
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.history import LaneHistory, RawEvents
from market_data_pipeline.windows.micro_batcher import BatcherSettings, MicroBatcher

if TYPE_CHECKING:
    from market_data_pipeline.providers.recording import FileRecording

log = structlog.get_logger("flow")

LETTERS_TOPIC = "mdp.dlq"
_LANES = "@lanes"
_POLL_BYTES = 4 << 20
_RETRY_S = 0.2
_DRAIN_S = 10.0


@dataclass(slots=True)
class Progress:
    """How a run is doing, for whoever looks.

    Attributes:
        produced: events appended by this run.
        counts: the conservation equation so far.
        written: what the store did with the bars.
        open_windows: base windows that wait.
        note: what the run is doing, if not working.
    """

    produced: int = 0
    counts: Counts = field(default_factory=Counts)
    written: WriteCounts = field(default_factory=WriteCounts)
    open_windows: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    Attributes:
        topic: the topic it read.
        counts: the conservation equation of the topic.
        written: what the store did with the bars.
        seconds: from the first event to the last commit.
        repeated: the lane was complete before; nothing had to be done.
    """

    topic: str
    counts: Counts
    written: WriteCounts
    seconds: float
    repeated: bool = False


def window_spec(settings: Settings) -> WindowSpec:
    """The configured windows."""
    batch = settings.micro_batch
    return WindowSpec(
        batch.windows_ns,
        batch.allow_late_ms * NS_PER_MS,
        batch.revise_horizon_ms * NS_PER_MS,
    )


def member_name() -> str:
    """A name for this worker that no other has."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Flow:
    """One process's share of the work on the configured backends.

    Args:
        settings: the configuration.
        backends: opened bus and store.
    """

    def __init__(self, settings: Settings, backends: Backends) -> None:
        self._settings = settings
        self._bus, self._store, self._clock = backends.bus, backends.store, backends.clock
        self._spec = window_spec(settings)
        self._member = member_name()
        self.progress = Progress()

    # ---- live ------------------------------------------------------------------------------

    async def produce(
        self, providers: Mapping[str, LiveProvider], symbols: tuple[str, ...], stop: asyncio.Event
    ) -> int:
        """Write feeds to the live topic until they end or `stop` is set; returns the events.

        Raises:
            UsageError: a vendor refuses what is asked for.
        """
        info = await self._live_topic()
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._pump(provider, info, Subscription(symbols)))
            for provider in providers.values()
        ]
        waiting: asyncio.Task[Any] = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set() and not all(task.done() for task in tasks):
                busy = {task for task in tasks if not task.done()}
                done, _ = await asyncio.wait({*busy, waiting}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {waiting}:
                    task.result()  # a feed that can never work ends the run
        finally:
            for task in (*tasks, waiting):
                task.cancel()
            await asyncio.gather(*tasks, waiting, return_exceptions=True)
        return self.progress.produced

    async def micro_batch(self, stop: asyncio.Event, drain: bool = False) -> Summary:
        """Cut the live topic into windows until `stop` is set.

        Args:
            stop: ends the work; what was read is committed.
            drain: after `stop`, first read what is there (for at most ten seconds).
        """
        info = await self._live_topic()
        batcher = self._batcher(info, self._settings.bus.bars_topic, live=True)
        return await self._run(batcher, info, stop, _DRAIN_S if drain else 0.0)

    async def live(
        self, providers: Mapping[str, LiveProvider], symbols: tuple[str, ...], stop: asyncio.Event
    ) -> Summary:
        """Produce and micro-batch in one process."""
        produced = asyncio.Event()

        async def produce() -> None:
            try:
                await self.produce(providers, symbols, stop)
            finally:
                produced.set()

        feeding = asyncio.create_task(produce())
        try:
            summary = await self.micro_batch(produced, drain=True)
        finally:
            stop.set()
            await asyncio.gather(feeding, return_exceptions=True)
        await feeding
        return summary

    async def _live_topic(self) -> TopicInfo:
        bus = self._settings.bus
        await self._result_topics(bus.bars_topic)
        return await self._bus.create_topic(bus.events_topic, bus.partitions)

    async def _result_topics(self, bars_topic: str) -> None:
        await self._bus.create_topic(bars_topic, self._settings.bus.partitions)
        await self._bus.create_topic(LETTERS_TOPIC, 1)

    async def _pump(
        self, provider: LiveProvider, info: TopicInfo, subscription: Subscription
    ) -> None:
        """Carry one feed into the bus; a feed that breaks is begun again."""
        producer = self._producer(info, provider.name)
        some = asyncio.Event()
        flushing = asyncio.Lock()
        linger_s = self._settings.bus.linger_ms / 1e3

        async def flush() -> None:
            async with flushing:
                await producer.flush()
                self._produced(producer)

        async def linger() -> None:
            while True:
                await some.wait()
                await asyncio.sleep(linger_s)
                some.clear()
                await flush()

        lingering = asyncio.create_task(linger())
        try:
            while True:
                try:
                    async for item in provider.stream(subscription):
                        if isinstance(item, FeedState):
                            if item.state == "away":
                                async with flushing:
                                    await producer.pause()
                            continue
                        producer.add(item)
                        if producer.full:
                            await flush()
                        elif not some.is_set():
                            some.set()
                    break
                except TransientError as error:
                    log.warning("feed lost", provider=provider.name, error=str(error))
                    async with flushing:
                        await producer.pause()
                    await asyncio.sleep(_RETRY_S)
        finally:
            lingering.cancel()
            await asyncio.gather(lingering, return_exceptions=True)
            async with flushing:
                await producer.pause()
                self._produced(producer)

    def _produced(self, producer: Producer) -> None:
        self.progress.produced += producer.produced
        producer.produced = 0

    # ---- lanes -----------------------------------------------------------------------------

    async def record(self, recording: FileRecording, stop: asyncio.Event) -> Summary:
        """Carry one recording from its first event to its last bar; resumes where it stood.

        One recording at a time works on a store: a second one waits.
        """
        from market_data_pipeline.providers.recording import OutOfOrder

        guard = await self._claim_lanes(stop)
        if guard is None:
            return Summary("", Counts(), WriteCounts(), 0.0)
        keeping = asyncio.create_task(self._keep(guard))
        try:
            try:
                return await self._lane(recording, guard, stop)
            except OutOfOrder as error:
                self.progress.note = f"{error}; sorting"
                await self._abandon(self._lane_topic(recording))
                return await self._lane(recording.presorted(), guard, stop)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._store.leave(guard.key.group, guard.key.topic, self._member)

    async def _lane(self, recording: Recording, guard: Claim, stop: asyncio.Event) -> Summary:
        topic, bus = self._lane_topic(recording), self._settings.bus
        lane = topic.removeprefix(f"{bus.events_topic}.")
        done = await self._finished(topic)
        if done:
            return done
        bars_topic = f"{bus.bars_topic}.{lane}"
        await self._result_topics(bars_topic)
        info = await self._bus.create_topic(topic, bus.partitions)
        batcher = self._batcher(info, bars_topic, live=False, guard=guard)
        feeding = asyncio.create_task(self._feed(recording, info, stop))
        working = asyncio.create_task(self._run(batcher, info, stop, 0.0))
        try:
            await asyncio.wait({feeding, working}, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()  # a recording that cannot be read ends the run
            summary = await working
            await feeding
        finally:
            for task in (feeding, working):
                task.cancel()
            await asyncio.gather(feeding, working, return_exceptions=True)
        return summary

    def _lane_topic(self, recording: Recording) -> str:
        """The lane's topic: the same inputs cut into the same windows are the same lane."""
        words = (recording.lane, self._spec, self._settings.bus.partitions)
        return f"{self._settings.bus.events_topic}.{sha256(repr(words).encode()).hexdigest()[:16]}"

    async def _finished(self, topic: str) -> Summary | None:
        """The summary of a lane that is complete; a lane whose log is gone begins anew."""
        group = self._settings.bus.group
        rows = await self._store.status(group, topic)
        info = await self._bus.find_topic(topic)
        checkpoints = [decode_checkpoint(r.checkpoint) for r in rows if r.checkpoint]
        if not checkpoints:
            return None
        if info is None or any(c.log_id != info.log_id for c in checkpoints):
            log.warning("the lane's log is gone; it is read again from the start", topic=topic)
            await self._abandon(topic)
            return None
        if len(checkpoints) < info.partitions or not all(c.ended for c in checkpoints):
            return None
        counts, written = Counts(), WriteCounts()
        for checkpoint in checkpoints:
            counts.add(checkpoint.counts)
            written.unchanged += checkpoint.bars
        self.progress.counts, self.progress.written = counts, written
        return Summary(topic, counts, written, 0.0, repeated=True)

    async def _abandon(self, topic: str) -> None:
        await self._store.forget(self._settings.bus.group, topic)
        await self._bus.drop_topic(topic)

    async def _feed(self, recording: Recording, info: TopicInfo, stop: asyncio.Event) -> None:
        bounds = [await self._bus.bounds(info.name, p) for p in range(info.partitions)]
        producer = self._producer(info, "", sources=[b.source for b in bounds])
        items = recording.read()
        while not stop.is_set():
            item = await asyncio.to_thread(next, items, None)
            if item is None:
                await producer.end()
                return
            producer.add(item)
            if producer.full:
                await producer.flush()
                self._produced(producer)

    async def _claim_lanes(self, stop: asyncio.Event) -> Claim | None:
        lease_ns = self._settings.micro_batch.lease_ms * NS_PER_MS
        key = PartitionKey(self._settings.bus.group, _LANES, 0)
        while not stop.is_set():
            claim = await self._store.claim(key, self._member, lease_ns)
            if claim:
                self.progress.note = ""
                return claim
            self.progress.note = "waiting for another recording to finish"
            await asyncio.sleep(_RETRY_S)
        return None

    async def _keep(self, guard: Claim) -> None:
        lease_ns = self._settings.micro_batch.lease_ms * NS_PER_MS
        owned = {guard.key.partition: guard.token}
        while True:
            try:
                await self._store.heartbeat(
                    guard.key.group, guard.key.topic, self._member, lease_ns, owned
                )
            except TransientError as error:
                log.warning("heartbeat missed", error=str(error))
            await asyncio.sleep(lease_ns / NS_PER_S / 6)

    # ---- parts -----------------------------------------------------------------------------

    async def _run(
        self, batcher: MicroBatcher, info: TopicInfo, stop: asyncio.Event, drain_s: float
    ) -> Summary:
        began = time.perf_counter()
        watching = asyncio.create_task(self._watch(batcher))
        try:
            await batcher.run(stop, drain_s)
        except FencedError as error:
            msg = "another process has taken over this recording; nothing was lost, run it again"
            raise FencedError(msg) from error
        finally:
            watching.cancel()
            self._look(batcher)
        return Summary(info.name, batcher.counts, batcher.written, time.perf_counter() - began)

    async def _watch(self, batcher: MicroBatcher) -> None:
        while True:
            self._look(batcher)
            await asyncio.sleep(0.1)

    def _look(self, batcher: MicroBatcher) -> None:
        self.progress.counts = batcher.counts
        self.progress.written = batcher.written
        self.progress.open_windows = batcher.open_windows

    def _producer(
        self, info: TopicInfo, provider: str, sources: list[int] | None = None
    ) -> Producer:
        bus, batch = self._settings.bus, self._settings.micro_batch
        settings = ProducerSettings(
            codec=bus.codec,
            batch_events=batch.max_batch_size * (info.partitions if sources is not None else 1),
            base_ns=self._spec.base_ns,
            allow_late_ns=self._spec.allow_late_ns,
            bus_name=bus.type,
        )
        return Producer(self._bus, codec, info, provider, settings, self._clock, _patient, sources)

    def _batcher(
        self, info: TopicInfo, bars_topic: str, live: bool, guard: Claim | None = None
    ) -> MicroBatcher:
        bus, batch = self._settings.bus, self._settings.micro_batch
        future_ns = batch.max_future_ms * NS_PER_MS
        settings = BatcherSettings(
            group=bus.group,
            member=self._member,
            lease_ns=batch.lease_ms * NS_PER_MS,
            flush_timeout_ns=batch.flush_timeout_ms * NS_PER_MS,
            commit_interval_ns=batch.commit_interval_ms * NS_PER_MS,
            poll_bytes=_POLL_BYTES,
            max_future_ns=future_ns if live else None,
            retention_ns=int(bus.retention.hours * 3600 * NS_PER_S),
            retention_bytes=bus.retention.max_bytes,
        )
        history = None
        if not live:
            raw = RawEvents(self._bus, codec, LETTERS_TOPIC, future_ns, bus.events_topic)
            history = LaneHistory(
                self._bus,
                self._store,
                raw,
                bus.group,
                info.name,
                bus.events_topic,
                info.partitions,
                self._spec,
            )
        return MicroBatcher(
            self._bus,
            self._store,
            codec,
            self._spec,
            info,
            bars_topic,
            LETTERS_TOPIC,
            settings,
            self._clock,
            Observer(info.name, bus.group, self._member, live, batch.max_symbols_in_metrics),
            history,
            guard,
        )


def open_providers(
    settings: Settings, kinds: tuple[str, ...], limit_s: float | None
) -> dict[str, LiveProvider]:
    """The live providers to run: those named, else those that the configuration enables.

    Raises:
        UsageError: a provider is not known, or its driver is not installed.
    """
    chosen = kinds or tuple(settings.enabled_producers())
    return {
        kind: registry.backend("provider", kind).create(settings.producer(kind), limit_s=limit_s)
        for kind in chosen
    }


async def _patient(call: Callable[[], Awaitable[None]]) -> None:
    """Repeat a call to the bus until it is there again; meanwhile the feed waits."""
    pause_s = 0.05
    while True:
        try:
            return await call()
        except TransientError as error:
            log.warning("the bus is not ready", error=str(error))
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 2.0)
