"""What live runs and lanes are put together from: producers, micro-batchers, and their progress."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from dataclasses import dataclass

import structlog

from market_data_core.config import Settings
from market_data_core.contracts.store import Claim, WriteCounts
from market_data_core.errors import FencedError
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.records import TopicInfo
from market_data_pipeline.backends import Backends
from market_data_pipeline.bus import codec
from market_data_pipeline.generations import Generations
from market_data_pipeline.live_producer import LiveProducer
from market_data_pipeline.observe import Observer, Waiting
from market_data_pipeline.patience import together
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.routing.feedback import FeedbackTopic
from market_data_pipeline.signals.settings import Signalled
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Counts
from market_data_pipeline.windows.history import LaneHistory, RawEvents
from market_data_pipeline.windows.micro_batcher import MicroBatcher
from market_data_pipeline.windows.settings import BatcherSettings
from market_data_store.sinks.groups import CoordinatedCommits

log = structlog.get_logger("flow")

LETTERS_TOPIC = "mdp.dlq"
_POLL_BYTES = 4 << 20
_COORDINATOR = "micro_batcher"


class Progress:
    """How a run is doing, for whoever looks.

    Attributes:
        produced: events appended by this run.
        note: what the run is waiting for, "" if it works.
        batchers: the micro-batchers of this run, by topic the latest last; some may have ended.
        signalled: what was made of bars.
    """

    def __init__(self) -> None:
        self.produced = 0
        self.note = ""
        self.batchers: list[tuple[str, MicroBatcher]] = []
        self.signalled = Signalled()

    @property
    def counts(self) -> Counts:
        """The conservation equation as of the latest commit, over all topics that are read."""
        total = Counts()
        for batcher in dict(self.batchers).values():  # of a topic, the latest tells all
            total.add(batcher.counts)
        return total

    @property
    def written(self) -> WriteCounts:
        """What the store did with the bars so far."""
        total = WriteCounts()
        for _, batcher in self.batchers:
            total.add(batcher.written)
        return total

    @property
    def received(self) -> int:
        """Events received during this run."""
        return sum(batcher.received for _, batcher in self.batchers)

    @property
    def span(self) -> tuple[int, int] | None:
        """Least and greatest start of the bars written, UTC ns; None if there are none."""
        spans = [batcher.span for _, batcher in self.batchers if batcher.span]
        if not spans:
            return None
        return min(first for first, _ in spans), max(last for _, last in spans)

    @property
    def open_windows(self) -> int:
        """Base windows that wait; costs a pass over what they hold."""
        return sum(batcher.open_windows for batcher in dict(self.batchers).values())


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    Attributes:
        topic: the topic it read; of a live run, that of the first generation.
        counts: the conservation equation of the topic, over all generations.
        written: what the store did with the bars.
        received: events received during this run.
        seconds: how long it took, to the last commit.
        repeated: the lane was complete before; nothing had to be done.
        signalled: what was made of the bars; None if nothing was to be.
    """

    topic: str
    counts: Counts
    written: WriteCounts
    received: int
    seconds: float
    repeated: bool = False
    signalled: Signalled | None = None


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


class Assembly:
    """One process's parts on the configured backends.

    Args:
        settings: the configuration.
        backends: opened bus and store.
    """

    def __init__(self, settings: Settings, backends: Backends) -> None:
        self.settings = settings
        self.bus, self.store, self.clock = backends.bus, backends.store, backends.clock
        self.spec = window_spec(settings)
        self.generations = Generations(self.bus, settings.bus.events_topic, self.clock)
        self.member = member_name()
        self.progress = Progress()
        self._waiting = Waiting()

    async def result_topics(self, bars_topic: str) -> None:
        """Create the topics that results are published to, if they do not exist."""

        async def bars() -> None:
            if await self.bus.find_topic(bars_topic) is None:
                await self.bus.create_topic(bars_topic, self.settings.bus.partitions)

        await together(self.bus.create_topic(LETTERS_TOPIC, 1), bars())

    def produced(self, producer: Producer | LiveProducer) -> None:
        """Take a producer's count over into the run's progress."""
        self.progress.produced += producer.produced
        producer.produced = 0

    async def work(
        self, batcher: MicroBatcher, info: TopicInfo, stop: asyncio.Event, drain_s: float
    ) -> Summary:
        """Let a micro-batcher work to its end; says what it did.

        Raises:
            FencedError: another process has taken over.
        """
        began = time.perf_counter()
        self.progress.batchers = [(info.name, batcher)]
        try:
            await batcher.run(stop, drain_s)
        except FencedError as error:
            msg = "another process has taken over this recording; nothing was lost, run it again"
            raise FencedError(msg) from error
        spent = time.perf_counter() - began
        return Summary(info.name, batcher.counts, batcher.written, batcher.received, spent)

    def producer(
        self, info: TopicInfo, provider: str, sources: list[int] | None = None
    ) -> Producer:
        """A producer for a topic; `sources` only for a lane."""
        bus, batch = self.settings.bus, self.settings.micro_batch
        settings = ProducerSettings(
            codec=bus.codec,
            batch_events=batch.max_batch_size * (info.partitions if sources is not None else 1),
            max_future_ns=batch.max_future_ms * NS_PER_MS,
            base_ns=self.spec.base_ns,
            allow_late_ns=self.spec.allow_late_ns,
            bus_name=bus.type,
        )
        return Producer(self.bus, codec, info, provider, settings, self.clock, sources)

    def live_producer(self, provider: str) -> LiveProducer:
        """A producer for the generations of the live topic."""
        return LiveProducer(
            self.generations,
            lambda info: self.producer(info, provider),
            self.spec,
            self.clock.now_ns(),
        )

    def batcher(
        self, info: TopicInfo, bars_topic: str, live: bool, guard: Claim | None = None
    ) -> MicroBatcher:
        """A micro-batcher for a generation of the live topic, or for a lane under its guard."""
        bus, batch = self.settings.bus, self.settings.micro_batch
        future_ns = batch.max_future_ms * NS_PER_MS
        settings = BatcherSettings(
            group=bus.group,
            member=self.member,
            lease_ns=batch.lease_ms * NS_PER_MS,
            flush_timeout_ns=batch.flush_timeout_ms * NS_PER_MS,
            commit_interval_ns=batch.commit_interval_ms * NS_PER_MS,
            poll_bytes=_POLL_BYTES,
            max_future_ns=future_ns if live else None,
            retention_ns=int(bus.retention.hours * 3600 * NS_PER_S),
            retention_bytes=bus.retention.max_bytes,
            pending_rows_max=batch.pending_rows_max,
        )
        raw = RawEvents(self.bus, codec, LETTERS_TOPIC, future_ns, self.generations)
        history = LaneHistory(
            self.bus,
            self.store,
            raw,
            bus.group,
            info.name,
            self.generations,
            info.partitions,
            self.spec,
        )
        observer = Observer(
            info.name,
            bus.group,
            self.member,
            live,
            batch.max_symbols_in_metrics,
            codec.oldest_ingest,
            self._waiting,
        )
        commits = CoordinatedCommits(
            self.store,
            _COORDINATOR + info.name.removeprefix(bus.events_topic) if live else _COORDINATOR,
            capacity=settings.pending_rows_max,
            feedback=[FeedbackTopic(self.bus, sender=self.member)] if live else (),
            timed=observer.store_write,
        )
        return MicroBatcher(
            self.bus,
            self.store,
            codec,
            self.spec,
            info,
            bars_topic,
            LETTERS_TOPIC,
            settings,
            self.clock,
            observer,
            commits,
            history,
            guard,
            self.generations if live else None,
        )
