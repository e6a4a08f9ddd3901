"""What the log says, read back for verification: events that were counted and not set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import polars as pl

from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.store import PartitionStatus, Store
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, Kind, StreamEvent, parse_ts
from market_data_core.partitioning import partition_of
from market_data_core.records import Bounds, Record, TopicInfo
from market_data_core.wire import BatchBuilder
from market_data_pipeline._verify_sources import Doubt, Source
from market_data_pipeline.archive.covering import Covering, Forgotten
from market_data_pipeline.archive.files import Archive, Selection
from market_data_pipeline.positions import batch_checkpoints, groups_of
from market_data_pipeline.timeline import Generation, Timeline
from market_data_pipeline.windows.assigner import FOREVER, NEVER
from market_data_pipeline.windows.checkpoint import Checkpoint, StreamState

VALUES = ("open", "high", "low", "close", "volume")
_KEY = ("code", "ts", "seq", *VALUES)
_SET_ASIDE = ("late", "id_conflict", "future")
SCHEMA: dict[str, type[pl.DataType]] = {
    "code": pl.UInt32, "ts": pl.Int64, "seq": pl.Int64, **dict.fromkeys(VALUES, pl.Float64),
    "closed": pl.Int64, "source": pl.Int32, "interval": pl.String,
}  # fmt: skip
"""Columns of events: `code` points into :attr:`CountedLog.symbols`, `ts` and `closed` are UTC ns,
`source` is the index of the partition they came from, `closed` how far that has stored bars."""


class CountedLog:
    """The events topics as far as checkpoints have counted them.

    Args:
        bus: the log.
        store: holds checkpoints and what is not published yet.
        codec: how payloads are read.
        group: consumer group.
        letters_topic: where dead letters are.
        max_future_ns: how far ahead of its append a live event may be.
        generations: of the live topic.
        archive: holds what the log has forgotten; None if there is no archive.

    Attributes:
        from_log: events that were read from the log.
        from_archive: events that were read from the archive.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        codec: Codec,
        group: str,
        letters_topic: str,
        max_future_ns: int,
        generations: Timeline,
        archive: Archive | None = None,
    ) -> None:
        self._generations = generations
        self._archive, self._covering = archive, None if archive is None else Covering(archive, ())
        self._bus, self._store, self._codec = bus, store, codec
        self._group, self._letters_topic = group, letters_topic
        self._max_future_ns = max_future_ns
        self._rows: list[PartitionStatus] = []
        self._checkpoints: list[tuple[PartitionStatus, Checkpoint]] = []
        self._topics: dict[str, TopicInfo] = {}
        self._unpublished: list[bytes] = []
        self._index: dict[str, int] = {}
        self.from_log = self.from_archive = 0

    @property
    def symbols(self) -> list[str]:
        """What the codes of events mean."""
        return list(self._index)

    async def load(self) -> None:
        """Take the checkpoints as they are now."""
        self._rows = await self._store.status(self._group)
        self._checkpoints = list(batch_checkpoints(self._rows))
        self._topics = {info.name: info for info in await self._bus.topics()}
        if self._archive:
            rows = await self._store.status(groups_of(self._group)["archive"])
            self._covering = Covering(self._archive, rows)
        for row in self._rows:
            key = row.key
            items = await self._store.outbox(key.group, key.topic, key.partition)
            self._unpublished += [
                i.message.payload for i in items if i.message.destination == self._letters_topic
            ]

    async def moved(self) -> bool:
        """Whether somebody has committed since :meth:`load`."""
        now = await self._store.status(self._group)
        return [r.sequence for r in now] != [r.sequence for r in self._rows]

    def providers(self, kind: Kind) -> set[str]:
        """Providers of which there are events of `kind`."""
        return {
            state.provider
            for _, checkpoint in self._checkpoints
            for state in checkpoint.streams
            if (state.kind == kind and state.greatest > NEVER) or state.kind == kind == "bar"
        }

    def _streams(
        self, provider: str, kind: Kind
    ) -> Iterator[tuple[PartitionStatus, Checkpoint, StreamState]]:
        for row, checkpoint in self._checkpoints:
            for state in checkpoint.streams:
                if state.provider == provider and state.kind == kind:
                    yield row, checkpoint, state

    def sources(self, provider: str, kind: Kind) -> list[Source]:
        """Where events of `provider` can be read."""
        found: dict[tuple[str, int], Source] = {}
        for row, checkpoint, state in self._streams(provider, kind):
            info = self._held(row.key.topic, checkpoint.log_id)
            info = info or self._archived_topic(row, checkpoint)
            if info is not None:
                home = self._home(info)
                found[row.key.topic, row.key.partition] = Source(
                    info,
                    home,
                    row.key.partition,
                    checkpoint.counted,
                    min(state.closed, home.until) if kind == "tick" else FOREVER,
                    tuple(state.intervals),
                    state.since,
                )
        return list(found.values())

    def _home(self, info: TopicInfo) -> Generation:
        found = self._generations.of_topic(info.name)
        return found or Generation(1, info.name, info.partitions)

    def _held(self, topic: str, log_id: str) -> TopicInfo | None:
        """The topic, if the bus has it still with that log."""
        info = self._topics.get(topic)
        return info if info is not None and info.log_id == log_id else None

    def _archived_topic(self, row: PartitionStatus, checkpoint: Checkpoint) -> TopicInfo | None:
        """The topic of a log that is gone, if the archive has all of it that was counted."""
        topic, log_id = row.key.topic, checkpoint.log_id
        gone = Forgotten(topic, log_id, row.key.partition, checkpoint.counted)
        if self._covering is None or not self._covering.covers(gone):
            return None
        partitions = sum(other.key.topic == topic for other in self._rows)
        return TopicInfo(topic, log_id, partitions)

    async def _forgotten(self, source: Source) -> Forgotten | None:
        """What of a source only the archive can have."""
        info, before = source.info, source.counted
        if self._held(info.name, info.log_id):
            before = min(before, (await self._bus.bounds(info.name, source.partition)).first)
        return Forgotten(info.name, info.log_id, source.partition, before) if before > 0 else None

    async def doubts(self, provider: str, kind: Kind) -> list[Doubt]:
        """What of `provider` neither the log nor the archive holds."""
        found = []
        for row, checkpoint, state in self._streams(provider, kind):
            topic, number = row.key.topic, row.key.partition
            info = self._held(topic, checkpoint.log_id)
            archived = self._archived_topic(row, checkpoint)
            if info is None and archived is None:
                found.append(Doubt(f"the log of {topic} is gone", FOREVER, 0, 0))
                continue
            home = self._home(info or archived or TopicInfo(topic, "", 0))
            partitions = home.partitions
            lost = max(state.fence, state.taint)
            if lost > NEVER:
                why = f"{topic} has lost events"
                found.append(Doubt(why, lost, number, partitions, more=True))
            bounds = await self._bus.bounds(topic, number) if info else Bounds(FOREVER, FOREVER)
            gone = Forgotten(
                topic, checkpoint.log_id, number, min(bounds.first, checkpoint.counted)
            )
            if gone.before > 0 and self._covering and self._covering.covers(gone):
                oldest = self._covering.oldest(provider)
                why = f"{topic} no longer holds its oldest events, nor does the archive"
                found.append(Doubt(why, FOREVER if oldest is None else oldest, number, partitions))
            elif bounds.first > 0:
                until = home.until
                if bounds.next > bounds.first:
                    kept = (await self._bus.poll(topic, {number: bounds.first}, 1, 0))[number][0]
                    until = min(until, kept.append_ts + self._max_future_ns)
                why = f"{topic} no longer holds its oldest events"
                found.append(Doubt(why, until, number, partitions))
        if not found and not self.sources(provider, kind):
            found.append(Doubt("no log holds the provider", FOREVER, 0, 0))
        return found

    async def read(
        self, provider: str, kind: Kind, from_ts: int, to_ts: int, symbols: tuple[str, ...]
    ) -> pl.DataFrame:
        """Events in [from_ts, to_ts) that were counted and not set aside, copies included.

        Returns:
            A frame of :data:`SCHEMA`, in no particular order.
        """
        letters = await self._letters(provider, from_ts, to_ts)
        frames = [pl.DataFrame(schema=SCHEMA)]
        sources = self.sources(provider, kind)
        wanted = Selection(from_ts, to_ts, provider, symbols)
        archived = await self._archived(sources, wanted, kind)
        for number, source in enumerate(sources):
            until = min(source.closed, to_ts)
            if until <= from_ts:
                continue
            place = (source.info.log_id, source.partition)
            records: list[Record] = []
            if self._held(source.info.name, source.info.log_id):
                records = await self._bus.scan(
                    source.info.name, source.partition, provider, from_ts, until
                )
            counted = [r for r in records if r.offset < source.counted]
            part = replace(wanted, to_ts=until)
            logged = self._events(self._batches(counted), source, number, part, kind)
            kept = self._events(archived.get(number, ()), source, number, part, kind)
            self.from_log += len(logged)
            self.from_archive += len(kept)
            aside = [le for le in letters if (le.log_id, le.partition) == place]
            frames.append(self._without(pl.concat([logged, kept]), aside))
        return pl.concat(frames)

    async def _archived(
        self, sources: Sequence[Source], wanted: Selection, kind: Kind
    ) -> dict[int, list[EventBatch]]:
        """By index of the source, events that its log has forgotten."""
        found: dict[int, list[EventBatch]] = {}
        if self._covering is None:
            return found
        gone = {number: await self._forgotten(source) for number, source in enumerate(sources)}
        places = {number: place for number, place in gone.items() if place}
        for number, batch in self._covering.events(wanted, kind, places):
            found.setdefault(number, []).append(batch)
        return found

    def _events(
        self,
        batches: Iterable[EventBatch],
        source: Source,
        number: int,
        wanted: Selection,
        kind: Kind,
    ) -> pl.DataFrame:
        """The rows of batches that are wanted and belong to a source."""
        frame = pl.concat(
            [pl.DataFrame(schema=SCHEMA)]
            + [
                self._frame(batch, source, number)
                for batch in batches
                if batch.provider == wanted.provider and batch.kind == kind
            ]
        ).filter(pl.col("ts").is_between(wanted.from_ts, wanted.to_ts, closed="left"))
        if wanted.symbols:
            frame = frame.filter(pl.col("code").is_in([self._code(s) for s in wanted.symbols]))
        return frame

    def _batches(self, records: Sequence[Record]) -> Iterator[EventBatch]:
        singles = BatchBuilder()
        for record in records:
            try:
                item = self._codec.decode(record.payload)
                if isinstance(item, StreamEvent):
                    singles.add(item, record.append_ts)
            except RejectedError:
                continue  # counted as a dead letter
            if isinstance(item, EventBatch):
                yield item
        yield from singles.build()[0]

    def _frame(self, batch: EventBatch, source: Source, number: int) -> pl.DataFrame:
        """The rows of a batch that belong in its partition; others were sent where they belong."""
        codes = np.array([self._code(symbol) for symbol in batch.symbols], np.uint32)
        owners = [partition_of(s, source.home.partitions) for s in batch.symbols]
        mine = (np.array(owners) == source.partition)[batch.codes]
        mine &= source.home.holds(batch.src_ts)
        columns = (*batch.prices(), batch.close, batch.volume)
        frame = pl.DataFrame(
            {
                "code": codes[batch.codes],
                "ts": batch.src_ts,
                "seq": batch.seq,
                **{n: c.to_floats() for n, c in zip(VALUES, columns, strict=True)},
            },
        ).with_columns(
            pl.lit(source.closed, pl.Int64).alias("closed"),
            pl.lit(number, pl.Int32).alias("source"),
            pl.lit(batch.interval).alias("interval"),
        )
        return frame if mine.all() else frame.filter(mine)

    def _code(self, symbol: str) -> int:
        return self._index.setdefault(symbol, len(self._index))

    async def _letters(self, provider: str, from_ts: int, to_ts: int) -> list[DeadLetter]:
        """Events of `provider` in the range that were set aside, published or about to be."""
        payloads: list[bytes] = []
        places = set()
        if self._letters_topic in self._topics:
            records = await self._bus.scan(self._letters_topic, 0, provider, from_ts, to_ts)
            payloads = [record.payload for record in records]
            log_id = self._topics[self._letters_topic].log_id
            places = {(log_id, record.offset) for record in records}
        known = set(payloads)
        payloads += [payload for payload in self._unpublished if payload not in known]
        letters = [letter for payload in payloads for letter in decode_letters(payload)]
        if self._covering:
            wanted = Selection(from_ts, to_ts, provider)
            letters += self._covering.letters(wanted, places)
        return [
            letter
            for letter in letters
            if letter.provider == provider and from_ts <= letter.src_ts < to_ts
        ]

    def _without(self, frame: pl.DataFrame, letters: Sequence[DeadLetter]) -> pl.DataFrame:
        """`frame` without the events of which every copy was set aside.

        A letter stands for one copy; if there are fewer letters than copies, one copy counted.
        """
        aside = Counter(self._key(le) for le in letters if le.reason in _SET_ASIDE)
        if not aside or not len(frame):
            return frame
        rows = [(*key, n) for key, n in aside.items()]
        schema = {name: SCHEMA[name] for name in _KEY} | {"letters": pl.UInt32}
        named = pl.DataFrame(rows, schema=schema, orient="row")
        hit = frame.select(_KEY).with_row_index("row").join(named, on=_KEY)
        gone = hit.filter(pl.len().over(_KEY) <= pl.col("letters"))["row"]
        keep = np.ones(len(frame), bool)
        keep[gone.to_numpy()] = False
        return frame.filter(keep)

    def _key(self, letter: DeadLetter) -> tuple[int | float, ...]:
        event = msgspec.json.decode(letter.original, type=StreamEvent)
        code = self._code(event.symbol)
        values = (event.o, event.h, event.l, event.c, event.v)
        return code, parse_ts(event.src_ts), event.seq, *values

    async def unwritable(
        self, provider: str, from_ts: int, to_ts: int
    ) -> set[tuple[str, str, int]]:
        """(symbol, interval, start) of bars of `provider` that the database refused."""
        refused = [
            (letter, msgspec.json.decode(letter.original, type=_Refused))
            for letter in await self._letters(provider, from_ts, to_ts)
            if letter.reason == "unwritable"
        ]
        return {(letter.symbol, body.interval, letter.src_ts) for letter, body in refused}


class _Refused(msgspec.Struct):
    interval: str
