"""Producers: events from a provider into the bus, in batches, with marks of progress.

A producer holds events for a few milliseconds at most (`linger`), so that a quiet feed has low
latency and a busy one high throughput. What `flush` has returned for is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.provider import Item
from market_data_core.events import (
    EVENT_VERSION,
    REASONS,
    EventBatch,
    Rejected,
    StreamEvent,
    Tick,
    concat_batches,
    format_ts,
    invalid_rows,
    make_batch,
)
from market_data_core.partitioning import partition_of
from market_data_core.records import CodecName, Entry, Mark, TopicInfo
from market_data_pipeline.metrics import STREAM_EVENTS_INGESTED

_ENTRY_EVENTS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class ProducerSettings:
    """How a producer writes.

    Attributes:
        codec: ``columnar``, ``json`` or ``msgpack``.
        batch_events: events after which the producer flushes without waiting for linger.
        base_ns: length of the base window, the grid on which progress matters.
        allow_late_ns: how far the watermark stays behind.
        bus_name: for the metrics.
    """

    codec: CodecName
    batch_events: int
    base_ns: int
    allow_late_ns: int
    bus_name: str


@dataclass(slots=True)
class _Waiting:
    """Rows of one batch that go to one partition."""

    batch: EventBatch
    source: int


class Producer:
    """Writes one feed's items to a topic; not for use from several tasks at once.

    Args:
        bus: the log.
        codec: how payloads are written.
        info: the topic.
        provider: name under which single ticks are written.
        settings: how it writes.
        clock: stamps single ticks with their ingest time.
        retry: waits out transient errors of the bus.
        sources: for a lane, how many source events each partition holds already.
    """

    def __init__(
        self,
        bus: Bus,
        codec: Codec,
        info: TopicInfo,
        provider: str,
        settings: ProducerSettings,
        clock: Clock,
        retry: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
        sources: Sequence[int] | None = None,
    ) -> None:
        self._bus, self._codec, self._info = bus, codec, info
        self._provider, self._settings, self._clock = provider, settings, clock
        self._retry = retry
        self._sources = list(sources) if sources else None
        self._source = 0
        self._ticks: list[Tick] = []
        self._waiting: list[dict[tuple[str, str, str], list[_Waiting]]] = [
            {} for _ in range(info.partitions)
        ]
        self._rejected: list[Entry] = []
        self._owners: dict[tuple[str, ...], np.ndarray[tuple[int], np.dtype[np.intp]]] = {}
        self._greatest: dict[str, int] = {}
        self._told: dict[tuple[str, int], int] = {}
        self.pending = 0
        self.produced = 0

    def add(self, item: Item) -> None:
        """Take an item; it is written by the next flush."""
        if isinstance(item, Tick):
            self._ticks.append(item)
            self.pending += 1
        elif isinstance(item, EventBatch):
            self._add_ticks()
            self._split(item)
            self.pending += len(item)
        elif isinstance(item, Rejected):
            self._add_rejected(item)
            self.pending += 1

    @property
    def full(self) -> bool:
        """Whether enough has come together to flush at once."""
        return self.pending >= self._settings.batch_events

    def _add_ticks(self) -> None:
        ticks, self._ticks = self._ticks, []
        if not ticks:
            return
        src_ts = np.array([t.src_ts for t in ticks], np.int64)
        price = np.array([t.price for t in ticks], np.float64)
        size = np.array([t.size for t in ticks], np.float64)
        bad = invalid_rows(price, price, price, price, size, src_ts)
        if bad:
            for reason, mask in bad.items():
                for i in np.flatnonzero(mask).tolist():
                    self._add_rejected(self._refused(ticks[i], reason))
            keep = np.flatnonzero(~np.logical_or.reduce(list(bad.values())))
            ticks = [ticks[i] for i in keep.tolist()]
            src_ts, price, size = src_ts[keep], price[keep], size[keep]
            if not ticks:
                return
        seq = np.array([t.seq for t in ticks], np.int64)
        now = np.full(len(ticks), self._clock.now_ns(), np.int64)
        symbols = [t.symbol for t in ticks]
        batch = make_batch(self._provider, symbols, src_ts, seq, price, size, ingest_ts=now)
        self._split(batch)

    def _refused(self, tick: Tick, reason: str) -> Rejected:
        sane = reason != "bad_timestamp"
        event = StreamEvent(
            ver=EVENT_VERSION,
            provider=self._provider,
            symbol=tick.symbol,
            src_ts=format_ts(tick.src_ts) if sane else str(tick.src_ts),
            o=tick.price,
            h=tick.price,
            l=tick.price,
            c=tick.price,
            v=tick.size,
            seq=tick.seq,
        )
        return Rejected(reason, REASONS[reason], msgspec.json.encode(event))

    def _split(self, batch: EventBatch) -> None:
        """Sort a batch's rows into their partitions."""
        if not len(batch):
            return
        owners = self._owners.get(batch.symbols)
        if owners is None:
            count = self._info.partitions
            owners = np.array([partition_of(s, count) for s in batch.symbols], np.uint16)
            if len(self._owners) > 256:
                self._owners.clear()
            self._owners[batch.symbols] = owners
        self._greatest[batch.provider] = max(
            self._greatest.get(batch.provider, int(batch.src_ts[0])), int(batch.src_ts.max())
        )
        row_owner = owners[batch.codes]
        order = np.argsort(row_owner, kind="stable")
        ends = np.searchsorted(row_owner[order], np.arange(self._info.partitions), side="right")
        begin = 0
        for partition, end in enumerate(ends.tolist()):
            if end > begin:
                self._place(partition, batch, order[begin:end])
            begin = end
        self._source += len(batch)

    def _place(
        self, partition: int, batch: EventBatch, rows: np.ndarray[tuple[int], np.dtype[np.intp]]
    ) -> None:
        source = 0
        if self._sources is not None:
            rows = rows[rows + self._source >= self._sources[partition]]  # the rest is there
            if not len(rows):
                return
            source = self._source + int(rows[-1]) + 1
        part = batch.take(rows) if len(rows) < len(batch) else batch
        waiting = self._waiting[partition].setdefault(batch.stream, [])
        waiting.append(_Waiting(part, source))

    def _add_rejected(self, item: Rejected) -> None:
        """Unusable input goes to partition 0, and is counted and dead-lettered by its owner."""
        self._source += 1
        if self._sources is not None and self._source <= self._sources[0]:
            return
        source = self._source if self._sources is not None else 0
        self._rejected.append(Entry(0, self._codec.encode_rejected(item), 1, source=source))

    async def flush(self) -> None:
        """Write everything taken so far, and marks where time has moved on; durable on return."""
        self._add_ticks()
        entries, self._rejected = self._rejected, []
        counts: dict[str, int] = {}
        for partition, streams in enumerate(self._waiting):
            for waiting in streams.values():
                entries += self._entries(partition, waiting, counts)
            streams.clear()
        if self._sources is not None:
            entries.sort(key=lambda e: e.source)  # a resumed lane skips by the greatest source
        entries += self._progress(entries)
        self.pending = 0
        if not entries:
            return
        await self._retry(lambda: self._bus.append(self._info.name, entries))
        self.produced += sum(e.count for e in entries)
        for provider, count in counts.items():
            STREAM_EVENTS_INGESTED.labels(self._settings.bus_name, self._info.name, provider).inc(
                count
            )

    def _entries(
        self, partition: int, waiting: list[_Waiting], counts: dict[str, int]
    ) -> Iterable[Entry]:
        joined = concat_batches([w.batch for w in waiting])
        source = waiting[-1].source
        counts[joined.provider] = counts.get(joined.provider, 0) + len(joined)
        if self._settings.codec == "columnar":
            span = int(joined.src_ts.min()), int(joined.src_ts.max())
            for payload in self._codec.encode_events(joined, "columnar"):
                yield Entry(partition, payload, len(joined), joined.provider, *span, source)
            return
        times = joined.src_ts.tolist()
        for ts, payload in zip(
            times, self._codec.encode_events(joined, self._settings.codec), strict=True
        ):
            yield Entry(partition, payload, 1, joined.provider, ts, ts, source)

    def _progress(self, entries: Sequence[Entry]) -> list[Entry]:
        """Marks for partitions in which a window could close but whose symbols are quiet.

        A mark is worth writing only when the watermark passes the end of a base window.
        """
        s = self._settings
        for entry in entries:
            if entry.provider:
                key = (entry.provider, entry.partition)
                self._told[key] = max(self._told.get(key, entry.max_ts), entry.max_ts)
        marks = []
        for provider, greatest in self._greatest.items():
            step = (greatest - s.allow_late_ns) // s.base_ns
            for partition in range(self._info.partitions):
                told = self._told.get((provider, partition))
                if told is None or (told - s.allow_late_ns) // s.base_ns < step:
                    mark = Mark(kind="progress", provider=provider, ts=greatest)
                    marks.append(Entry(partition, self._codec.encode_mark(mark), provider=provider))
                    self._told[provider, partition] = greatest
        return marks

    async def pause(self) -> None:
        """Write everything, and say that silence from now on means nothing."""
        await self.flush()
        entries = [
            Entry(p, self._codec.encode_mark(Mark(kind="pause", provider=name)), provider=name)
            for name in self._greatest
            for p in range(self._info.partitions)
        ]
        if entries:
            await self._retry(lambda: self._bus.append(self._info.name, entries))

    async def end(self) -> None:
        """Write everything, and close each partition with the number of events it holds."""
        await self.flush()
        entries = []
        for p in range(self._info.partitions):
            bounds = await self._bus.bounds(self._info.name, p)
            mark = self._codec.encode_mark(Mark(kind="end", count=bounds.received))
            entries.append(Entry(p, mark, key=f"end/{p}"))
        await self._retry(lambda: self._bus.append(self._info.name, entries))
