"""Runs over a log and a store in memory, and what the oracle says that they must lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tests.property._memory import MemoryStore, StoredBars, bits
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import (
    Message,
    OutboxItem,
    PartitionKey,
    Positions,
)
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import FencedError, RejectedError, TransientError
from market_data_core.events import REASONS, EventBatch, Rejected, StreamEvent
from market_data_core.intervals import NS_PER_S, format_interval
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Mark, Record
from market_data_core.testing.oracle import (
    BarKey,
    LogItem,
    OracleBar,
    OracleEvent,
    batch_bars,
    combined,
    deduplicate,
    oracle_bars,
    oracle_events,
    reference_run,
)
from market_data_core.testing.strategies import START_NS
from market_data_core.wire import BatchBuilder
from market_data_pipeline.bus import codec
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint
from market_data_pipeline.windows.collected import Closed
from market_data_pipeline.windows.group import Topics, rounded
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.recovery import recover
from market_data_pipeline.windows.settings import BatcherSettings
from market_data_pipeline.windows.stream import WindowStream
from market_data_store.coordinator import RetryPolicy
from market_data_store.sinks.groups import CoordinatedCommits


def coordinated(store: Positions, name: str = "m") -> CoordinatedCommits:
    """A worker's way into the store, which tries again without a pause."""
    retry = RetryPolicy(max_attempts=100, initial_backoff_ms=0)
    return CoordinatedCommits(store, name, retry=retry)


GROUP, EVENTS, BARS, LETTERS = "group", "mdp.events", "mdp.bars", "mdp.dlq"

PARTITIONS = 2
MAX_FUTURE_NS = 5 * NS_PER_S
LEASE_NS = NS_PER_S


def assert_same(found: Mapping[Any, OracleBar], expected: Mapping[Any, OracleBar]) -> None:
    """Both hold the same bars, bit for bit."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, missing
    assert not extra, extra
    for key, bar in found.items():
        assert bits(bar) == bits(expected[key]), (key, bar, expected[key])


def plain_bars(provider: str, stream: WindowStream, closed: Closed) -> dict[BarKey, OracleBar]:
    """The window engine's exact bars as the oracle writes them."""
    found: dict[BarKey, OracleBar] = {}
    for decided in rounded(provider, stream, closed):
        found |= oracle_bars(decided.bars)
    return found


def decoded_letters(records: Iterable[Record]) -> list[DeadLetter]:
    """The letters in records of their topic."""
    return [letter for record in records for letter in decode_letters(record.payload)]


def letters_of(bus: MemoryBus) -> list[DeadLetter]:
    """Every dead letter published."""
    return decoded_letters(bus.records(LETTERS)[0])


@dataclass(slots=True)
class Expected:
    """What a whole log has to lead to, by the oracle.

    Attributes:
        bars: of every interval.
        counts: of all partitions together.
        reasons: how many dead letters of each reason.
    """

    bars: StoredBars
    counts: Counts
    reasons: Counter[str]


def _items(payload: bytes, record: Record, max_future_ns: int | None) -> Iterable[LogItem]:
    try:
        item = codec.decode(payload)
    except RejectedError as error:
        yield Rejected(error.reason, str(error), payload)
        return
    if isinstance(item, StreamEvent):
        builder = BatchBuilder()
        builder.add(item, record.append_ts)
        (item,) = builder.build()[0]
    latest = record.append_ts + (1 << 70 if max_future_ns is None else max_future_ns)
    if isinstance(item, EventBatch):
        for event in oracle_events(item):
            ahead = event.src_ts > latest
            yield Rejected("future", REASONS["future"], b"") if ahead else event
    elif not isinstance(item, Mark) or item.ts <= latest:  # a wrong clock closes no windows
        yield item


def expect(
    logs: Sequence[Sequence[Record]], spec: WindowSpec, max_future_ns: int | None
) -> Expected:
    """Read each partition's whole log anew and let the oracle decide."""
    partitions, bars, reasons = len(logs), StoredBars(), Counter[str]()
    runs = []
    for p, records in enumerate(logs):
        log = [
            item
            for record in records
            for item in _items(record.payload, record, max_future_ns)
            if not isinstance(item, OracleEvent) or partition_of(item.symbol, partitions) == p
        ]
        run = reference_run(log, spec.base_ns, spec.allow_late_ns, spec.revise_horizon_ns)
        late = Counter(id(event) for event in run.late)
        taken = [e for e in log if isinstance(e, OracleEvent) and not late[id(e)]]
        for length in spec.intervals_ns:
            closed = [e for e in taken if _end(e, spec.base_ns) <= run.watermarks[e.provider]]
            for key, bar in batch_bars(closed, length).items():
                if key[2] + length <= run.watermarks[key[0]]:
                    bars[format_interval(length), key] = bar
        runs.append(run)
        reasons.update(item.reason for item in log if isinstance(item, Rejected))
    run = combined(runs)
    reasons += Counter(late=len(run.late), id_conflict=len(run.conflicts))
    c = run.counts
    counts = Counts(c.received, c.stored, c.open, c.deduplicated, c.late, c.dead_lettered)
    return Expected(bars, counts, reasons)


def _end(event: OracleEvent, length_ns: int) -> int:
    return event.src_ts // length_ns * length_ns + length_ns


def total_counts(store: MemoryStore, topic: str) -> Counts:
    """The equation's terms of a topic as committed."""
    total = Counts()
    for key, row in store.rows.items():
        if key.topic == topic and row.checkpoint:
            total.add(decode_checkpoint(row.checkpoint).counts)
    return total


def entry_of(batch: EventBatch, partition: int) -> Entry:
    """A columnar batch as an entry."""
    (payload,) = codec.encode_events(batch, "columnar")
    span = int(batch.src_ts.min()), int(batch.src_ts.max())
    return Entry(partition, payload, len(batch), batch.provider, *span)


def entries_of(batch: EventBatch, partition: int) -> list[Entry]:
    """The batch's events as single JSON messages."""
    times = batch.src_ts.tolist()
    payloads = codec.encode_events(batch, "json")
    return [
        Entry(partition, payload, 1, batch.provider, ts, ts)
        for ts, payload in zip(times, payloads, strict=True)
    ]


def mark_entry(mark: Mark, partition: int) -> Entry:
    """A mark as an entry."""
    return Entry(partition, codec.encode_mark(mark), provider=mark.provider)


def distinct(events: Iterable[OracleEvent]) -> list[OracleEvent]:
    """The first event of each identity."""
    return deduplicate(events)[0]


def renamed(entry: Entry, **changes: Any) -> Entry:
    """The entry with some fields changed."""
    return replace(entry, **changes)


@dataclass
class World:
    """One log, one store, and per partition the owner of the moment and one that lost it."""

    spec: WindowSpec
    clock: ManualClock = field(default_factory=lambda: ManualClock(START_NS))

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.clock)
        self.store = MemoryStore(self.clock, base=base_of(self.spec))
        self.owners: dict[int, Partition] = {}
        self.members = 0
        self.topics = Topics(EVENTS, PARTITIONS, "", LETTERS)

    async def begin(self) -> None:
        await self.bus.create_topic(EVENTS, PARTITIONS)
        await self.bus.create_topic(BARS, PARTITIONS)
        await self.bus.create_topic(LETTERS, 1)

    async def own(self, number: int) -> Partition:
        """The partition, taken over if nobody has it."""
        if number not in self.owners:
            self.members += 1
            self.clock.advance(LEASE_NS + 1)
            key = PartitionKey(GROUP, EVENTS, number)
            claim = await self.store.claim(key, f"m{self.members}", LEASE_NS)
            assert claim
            found = await recover(
                self.bus,
                self.bus.infos[EVENTS],
                number,
                decode_checkpoint(claim.checkpoint) if claim.checkpoint else None,
                self.spec.base_ns,
            )
            assert not found.cause
            await self.publish(await self.store.outbox(GROUP, EVENTS, number))
            self.owners[number] = Partition(
                claim, found.checkpoint, self.spec, self.topics, codec, MAX_FUTURE_NS
            )
        return self.owners[number]

    async def publish(self, items: list[OutboxItem]) -> None:
        for item in items:
            m: Message = item.message
            to = m.partition if m.partition >= 0 else item.partition
            entry = Entry(to, m.payload, m.count, m.provider, m.min_ts, m.max_ts, key=m.key)
            await self.bus.append(m.destination, [entry])

    async def poll(self, number: int, most: int) -> bool:
        partition = await self.own(number)
        records = self.bus.read(EVENTS, number, partition.position, most)
        partition.take(records, self.clock.now_ns())
        return bool(records)

    async def commit(self, number: int, outcome: str) -> None:
        """Collect what is due and write the group; crash at the chosen place."""
        partition = await self.own(number)
        for provider, stream in list(partition.ticks.items()):
            if stream.due():
                partition.collect(provider)
        if not partition.dirty:
            return
        group = partition.group()
        self.store.fails = [outcome]
        try:
            result = await self.store.commit([group], [])
        except (TransientError, FencedError):
            self.crash(number)
            return
        if outcome == "unpublished":
            self.crash(number)
            return
        partition.committed(group, [])
        await self.publish(result.outbox)

    def crash(self, number: int) -> None:
        self.owners.pop(number, None)

    async def takeover(self, number: int) -> None:
        """Another owner writes while the old one still thinks that it owns the partition."""
        old = await self.own(number)
        del self.owners[number]
        await self.own(number)
        if old.dirty:
            try:
                await self.store.commit([old.group()], [])
            except FencedError:
                return
            raise AssertionError("a fenced owner wrote")

    async def drain(self) -> None:
        """Until every record is read and everything decided is published."""
        left = True
        while left:
            for p in range(PARTITIONS):
                await self.poll(p, 1_000)
                await self.commit(p, "done")
            # what was misplaced has come back as something to read
            owned = [(await self.own(p)).position for p in range(PARTITIONS)]
            left = owned != [self.bus.logs[EVENTS, p].next for p in range(PARTITIONS)]


def split(batch: EventBatch) -> list[Entry]:
    """A batch's rows for the partitions of their symbols."""
    owners = np.array([partition_of(s, PARTITIONS) for s in batch.symbols])[batch.codes]
    return [entry_of(batch.take(owners == p), p) for p in range(PARTITIONS) if (owners == p).any()]


LANE_MAX_FUTURE_NS = 10**15


def base_of(spec: WindowSpec) -> str:
    """The interval whose bars count every event; "" if the base window gives no bars."""
    return format_interval(spec.base_ns) if spec.base_ns in spec.intervals_ns else ""


def batcher_settings(member: str, poll_bytes: int, max_future_ns: int | None) -> BatcherSettings:
    """A worker that commits as often as it can and never takes silence for an end."""
    return BatcherSettings(
        group=GROUP,
        member=member,
        lease_ns=LEASE_NS,
        flush_timeout_ns=10**6 * NS_PER_S,
        commit_interval_ns=0,
        poll_bytes=poll_bytes,
        max_future_ns=max_future_ns,
        retention_ns=10**6 * NS_PER_S,
        retention_bytes=1 << 40,
        pending_rows_max=20_000,
    )
