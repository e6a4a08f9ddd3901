"""Producers: events from a provider into the bus, in batches, with marks of progress.

A producer holds events for a few milliseconds at most (`linger`), so that a quiet feed has low
latency and a busy one high throughput. What `flush` has returned for is durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.provider import Item
from market_data_core.events import (
    EVENT_VERSION,
    PROVIDER_RULE,
    REASONS,
    SYMBOL_RULE,
    EventBatch,
    Rejected,
    StreamEvent,
    Tick,
    code_dtype,
    concat_batches,
    format_ts,
    invalid_rows,
    is_provider,
    is_symbol,
    make_batch,
)
from market_data_core.partitioning import partition_of
from market_data_core.records import CodecName, Entry, Mark, TopicInfo
from market_data_pipeline.metrics import PROVIDER, STREAM_EVENTS_INGESTED
from market_data_pipeline.patience import patient

_CACHED_MAX = 256


@dataclass(frozen=True, slots=True)
class ProducerSettings:
    """How a producer writes.

    Attributes:
        codec: ``columnar``, ``json`` or ``msgpack``.
        batch_events: events after which the producer flushes without waiting for linger.
        max_future_ns: times further ahead of the clock are not believed and mark no progress.
        base_ns: length of the base window, the grid on which progress matters.
        allow_late_ns: how far the watermark stays behind.
        bus_name: for the metrics.
    """

    codec: CodecName
    batch_events: int
    max_future_ns: int
    base_ns: int
    allow_late_ns: int
    bus_name: str


class Producer:
    """Writes one feed's items to a topic; not for use from several tasks at once.

    Args:
        bus: the log.
        codec: how payloads are written.
        info: the topic.
        provider: name under which single ticks are written.
        settings: how it writes.
        clock: stamps single ticks with their ingest time.
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
        sources: Sequence[int] | None = None,
    ) -> None:
        self._bus, self._codec, self._info = bus, codec, info
        self._provider, self._settings, self._clock = provider, settings, clock
        self._sources = list(sources) if sources else None
        self._source = 0
        self._belong = [0] * info.partitions
        self._ticks: list[Tick] = []
        self._waiting: dict[tuple[str, str, str], list[tuple[EventBatch, int]]] = {}
        self._rejected: list[Entry] = []
        self._owners: dict[tuple[str, ...], NDArray[np.uint16]] = {}
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
            self._add_batch(item)
            self.pending += len(item)
        elif isinstance(item, Rejected):
            self._add_rejected(item)
            self.pending += 1

    def _add_batch(self, batch: EventBatch) -> None:
        """Take events in their order, so that each has the same place whenever it is read."""
        refused = self._refused_symbols(batch.symbols)
        rule = SYMBOL_RULE
        if not is_provider(batch.provider):
            refused, rule = np.ones(len(batch.symbols), bool), PROVIDER_RULE
        if refused is None or not len(batch):
            self._keep(batch)
            return
        wrong = refused[batch.codes]
        turns = np.flatnonzero(wrong[1:] != wrong[:-1]) + 1
        for begin, end in pairwise((0, *turns.tolist(), len(batch))):
            part = batch.take(slice(begin, end))
            if not wrong[begin]:
                self._keep(_less_unused(part))
                continue
            for event in part.events():
                self._add_rejected(Rejected("bad_type", rule, msgspec.json.encode(event)))

    def _refused_symbols(self, symbols: tuple[str, ...]) -> NDArray[np.bool_] | None:
        """Which symbols no event may bear; None if all are fine."""
        if symbols in self._owners:  # they were looked at when they were sent
            return None
        refused = np.array([not is_symbol(symbol) for symbol in symbols])
        return refused if refused.any() else None

    @property
    def greatest(self) -> Mapping[str, int]:
        """Provider -> greatest src_ts that is believed, UTC ns, of what was written."""
        return self._greatest

    def reached(self, provider: str, ts: int) -> None:
        """The provider has reached `ts`, UTC ns, in events that are written elsewhere."""
        self._greatest[provider] = max(self._greatest.get(provider, ts), ts)

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
        names = {s for s in {t.symbol for t in ticks} if not is_symbol(s)}
        if names:
            before = np.logical_or.reduce([np.zeros(len(ticks), bool), *bad.values()])
            bad["bad_type"] = np.array([t.symbol in names for t in ticks]) & ~before
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
        self._keep(make_batch(self._provider, symbols, src_ts, seq, price, size, ingest_ts=now))

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
        detail = SYMBOL_RULE if reason == "bad_type" else REASONS[reason]
        return Rejected(reason, detail, msgspec.json.encode(event))

    def _keep(self, batch: EventBatch) -> None:
        """Let a batch wait for the next flush, with its place in the source."""
        if len(batch):
            self._waiting.setdefault(batch.stream, []).append((batch, self._source))
            self._source += len(batch)

    def _add_rejected(self, item: Rejected) -> None:
        """Unusable input goes to partition 0, and is counted and dead-lettered by its owner."""
        self._source += 1
        self._belong[0] += 1
        if self._sources is not None and self._source <= self._sources[0]:
            return
        begin, source = (self._source - 1, self._source) if self._sources is not None else (0, 0)
        payload = self._codec.encode_rejected(item)
        self._rejected.append(Entry(0, payload, 1, source=source, begin=begin))

    async def flush(self) -> None:
        """Write everything taken so far, and marks where time has moved on; durable on return."""
        self._add_ticks()
        entries, self._rejected = self._rejected, []
        waiting, self._waiting = self._waiting, {}
        for batches in waiting.values():
            entries += self._split(batches)
        if self._sources is not None:
            entries.sort(key=lambda e: e.begin)  # as much as can be is settled with each of them
        entries += self._progress(entries)
        self.pending = 0
        if not entries:
            return
        await patient(lambda: self._bus.append(self._info.name, entries))
        self.produced += sum(e.count for e in entries)
        for entry in entries:
            if entry.count:
                STREAM_EVENTS_INGESTED.labels(
                    self._settings.bus_name, self._info.name, PROVIDER(entry.provider)
                ).inc(entry.count)

    def _split(self, waiting: Sequence[tuple[EventBatch, int]]) -> list[Entry]:
        """One stream's rows, sorted into their partitions."""
        batch = concat_batches([b for b, _ in waiting])
        sane = batch.src_ts <= self._clock.now_ns() + self._settings.max_future_ns
        if sane.any():
            greatest = int(batch.src_ts[sane].max())
            known = self._greatest.get(batch.provider, greatest)
            self._greatest[batch.provider] = max(known, greatest)
        owner = self._owners_of(batch.symbols)[batch.codes]
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(self._info.partitions), side="right")
        batch = batch.take(order)
        source = None
        if self._sources is not None:
            places = np.concatenate([np.arange(at, at + len(b)) for b, at in waiting])
            source = places[order]
        entries: list[Entry] = []
        begin = 0
        for partition, end in enumerate(ends.tolist()):
            if end > begin:
                rows = slice(begin, end)
                entries += self._entries(
                    partition, batch.take(rows), None if source is None else source[rows]
                )
            begin = end
        return entries

    def _owners_of(self, symbols: tuple[str, ...]) -> NDArray[np.uint16]:
        owners = self._owners.get(symbols)
        if owners is None:
            count = self._info.partitions
            owners = np.array([partition_of(s, count) for s in symbols], np.uint16)
            if len(self._owners) > _CACHED_MAX:
                self._owners.clear()
            self._owners[symbols] = owners
        return owners

    def _entries(
        self, partition: int, batch: EventBatch, source: NDArray[np.int64] | None
    ) -> Iterator[Entry]:
        self._belong[partition] += len(batch)
        if source is not None and self._sources is not None:
            held = self._sources[partition]
            if int(source[0]) < held:  # a resumed lane: the partition has these already
                rows = source >= held
                batch, source = batch.take(rows), source[rows]
                if not len(batch):
                    return
        payloads = self._codec.encode_events(batch, self._settings.codec)
        if self._settings.codec == "columnar":
            span = int(batch.src_ts.min()), int(batch.src_ts.max())
            begin, reached = (0, 0) if source is None else (int(source[0]), int(source[-1]) + 1)
            only = batch.symbols[0] if len(batch.symbols) == 1 else ""
            for payload in payloads:
                yield Entry(
                    partition,
                    payload,
                    len(batch),
                    batch.provider,
                    *span,
                    reached,
                    symbol=only,
                    begin=begin,
                )
            return
        symbols = (batch.symbols[code] for code in batch.codes.tolist())
        places = repeat(-1) if source is None else source.tolist()
        times = batch.src_ts.tolist()
        for ts, symbol, place, payload in zip(times, symbols, places, payloads, strict=False):
            begin = max(place, 0)
            yield Entry(
                partition,
                payload,
                1,
                batch.provider,
                ts,
                ts,
                place + 1,
                symbol=symbol,
                begin=begin,
            )

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
            await patient(lambda: self._bus.append(self._info.name, entries))

    async def resume(self) -> None:
        """Write everything, and say that silence counts again from now on."""
        self._told.clear()  # so that every partition gets a mark of progress, which ends a pause
        await self.flush()

    async def end(self) -> None:
        """Write everything, and close each partition with the number of events it should hold."""
        await self.flush()
        entries = [
            Entry(p, self._codec.encode_mark(Mark(kind="end", count=count)), key=f"end/{p}")
            for p, count in enumerate(self._belong)
        ]
        await patient(lambda: self._bus.append(self._info.name, entries))


def _less_unused(batch: EventBatch) -> EventBatch:
    """The batch without symbols that no row bears."""
    used, codes = np.unique(batch.codes, return_inverse=True)
    symbols = tuple(batch.symbols[i] for i in used.tolist())
    return replace(batch, symbols=symbols, codes=codes.astype(code_dtype(len(symbols))))
