"""What a lane has to know of the lanes and feeds that were there before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np

from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.store import Positions
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, StreamEvent, parse_ts
from market_data_core.partitioning import partition_of
from market_data_core.records import Record, TopicInfo
from market_data_core.wire import BatchBuilder
from market_data_pipeline.generations import Generations
from market_data_pipeline.timeline import Generation
from market_data_pipeline.windows.assigner import FOREVER, NEVER, WindowSpec, floor_to
from market_data_pipeline.windows.checkpoint import Checkpoint, StreamState, decode_checkpoint

Ledger = dict[tuple[str, int], Counter[bytes]]
"""(log, partition) -> how often each event, told by identity and values, was set aside."""


class RawEvents:
    """Ticks as the log holds them, less what was set aside as late or contradictory.

    Args:
        bus: the log.
        codec: how payloads are read.
        letters_topic: where dead letters are.
        max_future_ns: the live lane's bound on times ahead of the append.
        generations: of the live topic, to which it applies.
    """

    def __init__(
        self,
        bus: Bus,
        codec: Codec,
        letters_topic: str,
        max_future_ns: int,
        generations: Generations,
    ) -> None:
        self._bus, self._codec = bus, codec
        self.letters_topic = letters_topic
        self._max_future_ns, self._generations = max_future_ns, generations

    async def ledger(
        self, provider: str, from_ts: int, to_ts: int, unpublished: Iterable[bytes] = ()
    ) -> Ledger:
        """Events of `provider` in the range that were set aside.

        Args:
            provider: the feed.
            from_ts: begin of the range, UTC ns.
            to_ts: its end.
            unpublished: messages of dead letters that may still be on their way.
        """
        payloads = dict.fromkeys(unpublished)
        if await self._bus.find_topic(self.letters_topic) is not None:
            records = await self._bus.scan(self.letters_topic, 0, provider, from_ts, to_ts)
            payloads |= dict.fromkeys(r.payload for r in records)
        found: Ledger = {}
        for letter in (letter for payload in payloads for letter in decode_letters(payload)):
            if letter.provider == provider and letter.reason in ("late", "id_conflict"):
                key = (letter.log_id, letter.partition)
                found.setdefault(key, Counter())[_identity(letter)] += 1
        return found

    async def read(
        self,
        info: TopicInfo,
        partition: int,
        provider: str,
        from_ts: int,
        to_ts: int,
        before: int,
        unpublished: Iterable[bytes] = (),
    ) -> list[EventBatch]:
        """Ticks of `provider` in [from_ts, to_ts) in log order, from records below `before`."""
        ledger = await self.ledger(provider, from_ts, to_ts, unpublished)
        batches = []
        records = await self._bus.scan(info.name, partition, provider, from_ts, to_ts)
        for record in (r for r in records if r.offset < before):
            for batch in self._decode(record):
                kept = self._valid(batch, record, info)
                kept = kept.take((kept.src_ts >= from_ts) & (kept.src_ts < to_ts))
                if kept.provider == provider and kept.kind == "tick" and len(kept):
                    batches.append(kept)
        return _less(batches, ledger.get((info.log_id, partition)))

    def _decode(self, record: Record) -> list[EventBatch]:
        try:
            item = self._codec.decode(record.payload)
            if isinstance(item, StreamEvent):
                builder = BatchBuilder()
                builder.add(item, record.append_ts)
                return builder.build()[0]
        except RejectedError:
            return []  # it is a dead letter
        return [item] if isinstance(item, EventBatch) else []

    def _valid(self, batch: EventBatch, record: Record, info: TopicInfo) -> EventBatch:
        live = self._generations.timeline.of_topic(info.name)
        count = live.partitions if live else info.partitions
        mine = [partition_of(s, count) == record.partition for s in batch.symbols]
        keep = np.array(mine)[batch.codes]
        if live:
            keep &= batch.src_ts <= record.append_ts + self._max_future_ns
            keep &= live.holds(batch.src_ts)
        return batch if keep.all() else batch.take(keep)


def _less(batches: list[EventBatch], aside: Counter[bytes] | None) -> list[EventBatch]:
    """The batches without what was set aside.

    Of equal copies the later ones were set aside, the first is the one that counted, so the
    search goes backwards through the log.
    """
    if not aside:
        return batches
    left = aside.copy()
    times = np.unique([parse_ts(msgspec.json.decode(plain)[1]) for plain in aside])
    kept = []
    for batch in reversed(batches):
        keep = np.ones(len(batch), bool)
        suspects = np.flatnonzero(np.isin(batch.src_ts, times))
        events = list(batch.take(suspects).events())
        for i, event in zip(suspects[::-1].tolist(), reversed(events), strict=True):
            plain = _plain(event)
            if left[plain] > 0:
                left[plain] -= 1
                keep[i] = False
        if keep.any():
            kept.append(batch.take(keep))
    return kept[::-1]


def _plain(event: StreamEvent) -> bytes:
    return msgspec.json.encode((event.symbol, event.src_ts, event.seq, event.o, event.h, event.l,
                                event.c, event.v))  # fmt: skip


def _identity(letter: DeadLetter) -> bytes:
    return _plain(msgspec.json.decode(letter.original, type=StreamEvent))


class LaneHistory:
    """Implements :class:`market_data_pipeline.windows.micro_batcher.History`.

    Args:
        bus: where the other topics are.
        store: where their positions are.
        raw: reads their events.
        group: consumer group.
        lane: the lane's own topic.
        live: the generations of the live topic.
        partitions: of the lane.
        spec: the windows.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        raw: RawEvents,
        group: str,
        lane: str,
        live: Generations,
        partitions: int,
        spec: WindowSpec,
    ) -> None:
        self._bus, self._store, self._raw = bus, store, raw
        self._group, self._lane, self._live = group, lane, live
        self._partitions, self._spec = partitions, spec
        self._checkpoints: dict[tuple[str, int], Checkpoint] | None = None
        self._lanes: list[TopicInfo] = []
        self._fresh = False
        self._topics: list[TopicInfo] | None = None
        self._live_found: list[tuple[Generation, TopicInfo]] | None = None
        self._live_places: dict[tuple[str, int], Checkpoint] | None = None

    async def _load(self) -> dict[tuple[str, int], Checkpoint]:
        """Positions of the other topics; lanes wait for one another, so these stand still."""
        if self._checkpoints is None:
            rows = await self._store.status(self._group)
            self._checkpoints = {
                (r.key.topic, r.key.partition): decode_checkpoint(r.checkpoint)
                for r in rows
                if r.checkpoint
                and r.key.topic.startswith(f"{self._live.events_topic}.")
                and r.key.topic != self._lane
            }
            names = {topic for topic, _ in self._checkpoints}
            self._lanes = [t for t in await self._all_topics() if t.name in names]
        return self._checkpoints

    async def _all_topics(self) -> list[TopicInfo]:
        if self._topics is None:
            self._topics = await self._bus.topics()
        return self._topics

    async def _live_topics(self) -> list[tuple[Generation, TopicInfo]]:
        """The live feed's topics, if there are any beside this lane."""
        if self._live.timeline.of_topic(self._lane):
            return []  # this lane is of the live feed itself
        if self._live_found is None:
            timeline = await self._live.look(self._partitions)
            generations = () if timeline.of_topic(self._lane) else timeline.generations
            found = [(g, await self._bus.find_topic(g.topic)) for g in generations]
            self._live_found = [(generation, info) for generation, info in found if info]
        return self._live_found

    async def _live_checkpoints(self) -> dict[tuple[str, int], Checkpoint]:
        """Positions of the live feed: they move while this lane works."""
        if self._live_places is None:
            timeline = await self._live.look(self._partitions)
            self._live_places = {
                (r.key.topic, r.key.partition): decode_checkpoint(r.checkpoint)
                for generation in timeline.generations
                for r in await self._store.status(self._group, generation.topic)
                if r.checkpoint
            }
        return self._live_places

    async def limit(self, provider: str, partition: int, from_ts: int) -> int:
        """Windows that end above this belong to a live feed that may still write them."""
        live = await self._live_topics()
        if not live:
            return FOREVER
        found, checkpoints = FOREVER, await self._live_checkpoints()
        reached = max(
            (s.greatest for c in checkpoints.values() for s in _ticks(c, provider)), default=NEVER
        )
        for generation, info in live:
            for number in self._numbers(generation, partition):
                checkpoint = checkpoints.get((info.name, number))
                found = min(found, self._final(checkpoint, provider, generation, reached))
                # what the feed's owner has not read yet may belong to any window from here on
                counted = checkpoint.counted if checkpoint else 0
                if (await self._bus.bounds(info.name, number)).next <= counted:
                    continue
                records = await self._bus.scan(info.name, number, provider, from_ts, FOREVER)
                if any(record.offset >= counted for record in records):
                    found = min(found, floor_to(from_ts, self._spec.widest_ns))
        return found

    def _final(
        self, checkpoint: Checkpoint | None, provider: str, generation: Generation, reached: int
    ) -> int:
        """Up to where a partition of a live topic does not change any more.

        Args:
            checkpoint: of the partition, None if there is none.
            provider: the feed.
            generation: the topic's.
            reached: greatest time of the feed in any generation, UTC ns.

        Returns:
            UTC ns; FOREVER once nothing of the generation's time can change.
        """
        found = FOREVER
        if checkpoint is None:
            return found
        for state in _ticks(checkpoint, provider):
            final = min(state.watermark - self._spec.revise_horizon_ns, state.closed)
            # a feed that fell silent before its generation's end has gone on in a later one
            over = reached >= generation.until and not checkpoint.holds_events
            if final < generation.until and not over:
                found = min(found, floor_to(max(final, NEVER), self._spec.widest_ns))
        return found

    async def protected(self, provider: str) -> int:
        """End of the time in which topics that are gone may have had events of `provider`.

        Their bars cannot be added up again, so they must not give way to what is left.
        """
        checkpoints = {**(await self._load()), **(await self._live_checkpoints())}
        logs = {t.name: t.log_id for t in await self._all_topics()}
        return max(
            (
                state.greatest + 1
                for (topic, _), checkpoint in checkpoints.items()
                for state in checkpoint.streams
                if state.provider == provider and logs.get(topic) != checkpoint.log_id
            ),
            default=NEVER,
        )

    def next_round(self) -> None:
        """Look again at live feeds: within a round, all partitions are told of the same moment."""
        self._fresh = False
        self._topics = self._live_found = self._live_places = None

    def refresh(self) -> None:
        """Look again at what other lanes have done, once in a round."""
        if not self._fresh:
            self._checkpoints, self._fresh = None, True

    def _numbers(self, home: TopicInfo | Generation, partition: int) -> Iterable[int]:
        """The topic's partitions that this partition's symbols can be in."""
        return (partition,) if home.partitions == self._partitions else range(home.partitions)

    async def known(
        self, provider: str, partition: int, from_ts: int, to_ts: int
    ) -> list[EventBatch]:
        """Ticks of this partition's symbols that others have stored in [from_ts, to_ts)."""
        checkpoints, topics = await self._load(), self._lanes
        homes: list[tuple[TopicInfo | Generation, TopicInfo]] = [(info, info) for info in topics]
        if live := await self._live_topics():
            checkpoints, homes = checkpoints | await self._live_checkpoints(), [*homes, *live]
        found = []
        for home, info in homes:
            for number in self._numbers(home, partition):
                checkpoint = checkpoints.get((info.name, number))
                closed = _closed(checkpoint, provider, from_ts)
                if checkpoint is None or min(closed, to_ts) <= from_ts:
                    continue
                until, counted = min(closed, to_ts), checkpoint.counted
                letters = await self._unpublished(info.name, number)
                found += await self._raw.read(
                    info, number, provider, from_ts, until, counted, letters
                )
        here = [batch.take(self._here(batch, partition)) for batch in found]
        return [batch for batch in here if len(batch)]

    async def own(
        self, provider: str, partition: int, from_ts: int, to_ts: int, before: int
    ) -> list[EventBatch]:
        """Ticks of this lane itself in [from_ts, to_ts), from records below offset `before`."""
        info = await self._bus.find_topic(self._lane)
        if info is None:
            return []
        letters = await self._unpublished(info.name, partition)
        return await self._raw.read(info, partition, provider, from_ts, to_ts, before, letters)

    async def _unpublished(self, topic: str, partition: int) -> list[bytes]:
        """Dead letters that were decided but may not have reached their topic."""
        items = await self._store.outbox(self._group, topic, partition)
        messages = (item.message for item in items)
        return [m.payload for m in messages if m.destination == self._raw.letters_topic]

    def _here(
        self, batch: EventBatch, partition: int
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        mine = [partition_of(s, self._partitions) == partition for s in batch.symbols]
        return np.array(mine)[batch.codes]


def _closed(checkpoint: Checkpoint | None, provider: str, from_ts: int) -> int:
    """End of the last window of `provider` that was stored; NEVER if none reaches `from_ts`."""
    if checkpoint is None:
        return NEVER
    states = (s for s in _ticks(checkpoint, provider) if s.greatest >= from_ts)
    return max((s.closed for s in states), default=NEVER)


def _ticks(checkpoint: Checkpoint, provider: str) -> list[StreamState]:
    """The places of a provider's ticks."""
    return [s for s in checkpoint.streams if s.provider == provider and s.kind == "tick"]
