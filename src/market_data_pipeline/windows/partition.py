"""One partition, from records to groups: validation, windows, counts and the checkpoint.

No I/O: the micro-batcher hands records in and takes groups out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import msgspec

from market_data_core.contracts.bus import Codec
from market_data_core.contracts.store import BadRow, Claim, Gap, Message
from market_data_core.decoding import Decoder, Singles, latest_of
from market_data_core.events import EventBatch, Rejected, StreamEvent
from market_data_core.records import Mark, Place, Record
from market_data_pipeline.windows.assigner import FOREVER, NEVER, WindowSpec
from market_data_pipeline.windows.belonging import Belonging
from market_data_pipeline.windows.checkpoint import Checkpoint
from market_data_pipeline.windows.group import (
    Decided,
    Letters,
    Origin,
    PartitionGroup,
    Topics,
    batch_of,
    forwards,
    rounded,
    within,
)
from market_data_pipeline.windows.holes import Holes
from market_data_pipeline.windows.official import OfficialBars
from market_data_pipeline.windows.recovery import tell_difference
from market_data_pipeline.windows.silence import idle_mark
from market_data_pipeline.windows.stream import WindowStream


class Partition:
    """The state of one owned partition.

    Args:
        claim: proof of ownership.
        checkpoint: where the last owner stood.
        spec: the windows.
        topics: where it reads and publishes.
        codec: how payloads are read and written.
        max_future_ns: how far ahead of its append an event may be; None on a lane.
    """

    def __init__(
        self,
        claim: Claim,
        checkpoint: Checkpoint,
        spec: WindowSpec,
        topics: Topics,
        codec: Codec,
        max_future_ns: int | None,
    ) -> None:
        self.claim = claim
        self.spec = spec
        self.topics = topics
        self.position = checkpoint.resume
        self.ended = checkpoint.ended
        self.ticks: dict[str, WindowStream] = {}
        self.last_append: dict[str, int] = {}
        self.gaps: list[Gap] = []
        self._codec = codec
        self._max_future_ns = max_future_ns
        self._checkpoint = checkpoint
        self._counted = self.first_new = checkpoint.counted
        self.place = Place(checkpoint.resume, checkpoint.counted)
        self._read_until = NEVER
        where = f"{topics.events}, partition {claim.key.partition}"
        self._holes = Holes(where, spec.base_ns, checkpoint.counted, checkpoint.counts.open)
        self._checksum = checkpoint.checksum
        self._counts = msgspec.structs.replace(checkpoint.counts)
        self._forwarded = checkpoint.forwarded
        self._log_received = self._counts.received + self._forwarded - checkpoint.received_before
        self._official: dict[tuple[str, str], OfficialBars] = {}
        self._bars: list[Decided] = []
        self._letters = Letters(topics.events, checkpoint.log_id, claim.key.partition)
        self._forwards: list[Message] = []
        self._decoder = Decoder(codec, max_future_ns)
        self._belonging = Belonging(topics, claim.key.partition)
        self.dirty = False
        for state in checkpoint.streams:
            if state.kind == "bar":
                key = (state.provider, state.interval)
                self._official[key] = OfficialBars(spec, *key, state, self._decode_batch)
            else:
                self.ticks[state.provider] = WindowStream(spec, state)

    def _decode_batch(self, data: bytes) -> EventBatch:
        batch = self._codec.decode(data)
        assert isinstance(batch, EventBatch)  # noqa: S101  (we encoded it)
        return batch

    def stream(self, provider: str) -> WindowStream:
        """The provider's ticks, begun if they are new."""
        found = self.ticks.get(provider)
        if found is None:
            found = self.ticks[provider] = WindowStream(self.spec)
        return found

    def take(self, records: Sequence[Record], began_ns: int) -> None:
        """Read records in log order; those below the counted position only rebuild state.

        Args:
            records: what the log held from `position` on; empty at its end.
            began_ns: when reading began, UTC ns.
        """
        border = bisect_left(records, self.first_new, key=attrgetter("offset"))
        self._read(records[:border])
        if self._holes.due(restored=not self.restoring, behind=border < len(records)):
            self._tell_holes()
        self._read(records[border:])
        if border < len(records):
            self._checksum = records[-1].checksum
        self._read_until = records[-1].append_ts if records else began_ns

    def _read(self, records: Sequence[Record]) -> None:
        for read, item in self._decoder.items(records):
            self._take(item, read[-1])
            self.position = read[-1].offset + 1
            if self._is_new(read[-1]):
                self._counted, self.dirty = self.position, True
                self._log_received += sum(record.count for record in read)

    def miss(self, position: int, events: int) -> None:
        """Note that the log has lost events before the record at `position`."""
        self._holes.miss(position, events)

    def _tell_holes(self) -> None:
        loss = self._holes.tell(self.ticks)
        self._log_received += loss.unread
        self._counts.lost += loss.lost
        self.gaps += loss.gaps
        self.dirty |= bool(loss.lost or loss.gaps)

    @property
    def _open(self) -> int:
        return sum(stream.open_events for stream in self.ticks.values())

    def _take(self, item: Singles | EventBatch | Mark | Rejected, record: Record) -> None:
        """Take what stands in records up to `record`."""
        new = self._is_new(record)
        if isinstance(item, Singles):
            for refused in item.refused if new else ():
                self._reject(*refused)
            # what was appended last tells of a provider's silence: its stream comes last
            for batch, records in sorted(item.batches, key=lambda found: found[1][-1].offset):
                self._take_batch(batch, records[-1], Origin(records[0].offset, records), new)
        elif isinstance(item, EventBatch):
            self._take_batch(item, record, Origin(record.offset), new)
        elif isinstance(item, Mark):
            self._take_mark(item, record, new)
        elif new:
            self._reject(record, item)

    def _latest(self, record: Record) -> int:
        return latest_of(record, self._max_future_ns)

    def _is_new(self, record: Record) -> bool:
        """Whether the record was not counted when this owner took over."""
        return record.offset >= self.first_new

    @property
    def restoring(self) -> bool:
        """Whether something is still to be read that an earlier owner counted.

        Until it is, windows are incomplete: nothing may be collected.
        """
        return self.position < self.first_new

    def _reject(self, record: Record, item: Rejected, event: StreamEvent | None = None) -> None:
        self._counts.dead_lettered += record.count
        self._letters.rejected(record, item, event)

    def _take_mark(self, mark: Mark, record: Record, new: bool) -> None:
        if mark.kind != "idle":  # which is our own word: the silence goes on
            self.last_append[mark.provider] = record.append_ts
        if not new:
            # the checkpoint knows it; a pause that is over must not come back
            if mark.kind in ("progress", "idle") and mark.ts <= self._latest(record):
                late = self.spec.allow_late_ns if mark.kind == "progress" else 0
                self.stream(mark.provider).restore_mark(mark.ts - late)
            return
        if mark.kind == "end":
            self.ended = True
            tell_difference(self.topics.events, record.partition, mark.count, self._log_received)
            for stream in self.ticks.values():
                stream.advance(FOREVER)
            return
        stream = self.stream(mark.provider)
        if mark.kind == "pause":
            stream.paused = True
        elif mark.ts > self._latest(record):
            return  # a producer with a wrong clock must not close anybody's windows
        elif mark.kind == "progress":
            self.gaps += self._holes.reached(mark.provider, stream, mark.ts)
            stream.progress(mark.ts)
        else:
            stream.advance(mark.ts)

    def _take_batch(self, batch: EventBatch, record: Record, origin: Origin, new: bool) -> None:
        """Take the events of one stream; `record` is the last one that they came from."""
        self.last_append[batch.provider] = record.append_ts
        mine = self._belonging.rows(batch)
        if mine is None:
            self._take_own(batch, record, origin, new)
            return
        if new:
            self._forward(batch.take(~mine), record)
        self._take_own(batch.take(mine), record, origin.take(mine), new)
        self._take_later(batch, record, new)

    def _take_own(self, batch: EventBatch, record: Record, origin: Origin, new: bool) -> None:
        """Take the events of one stream that belong here."""
        if origin.singles is None:  # single events were held against their own append already
            batch = self._less_ahead(batch, record, origin, new)
        if not len(batch):
            return
        if batch.kind == "bar":
            if new:
                self._take_official(batch, origin)
            return
        stream = self.stream(batch.provider)
        if not new:
            stream.restore(batch, origin.position)
            return
        self.gaps += self._holes.reached(batch.provider, stream, int(batch.src_ts[0]))
        late = stream.add(batch, origin.position, origin.offsets)
        if len(late):
            self._counts.late += len(late)
            self._letters.events(batch.take(late), origin.take(late), "late")

    def _take_later(self, batch: EventBatch, record: Record, new: bool) -> None:
        """An event of a later generation tells how far its provider is, as a mark would."""
        until, latest = self.topics.home.until, self._latest(record)
        later = batch.src_ts[(batch.src_ts >= until) & (batch.src_ts <= latest)]
        if len(later) and batch.kind == "tick":
            stream, greatest = self.stream(batch.provider), int(later.max())
            if new:
                stream.progress(greatest)
            else:
                stream.restore_mark(greatest - self.spec.allow_late_ns)

    def _less_ahead(
        self, batch: EventBatch, record: Record, origin: Origin, new: bool
    ) -> EventBatch:
        """The events whose times are believed; the others are set aside."""
        ahead = batch.src_ts > self._latest(record)
        if not ahead.any():
            return batch
        if new:
            self._counts.dead_lettered += int(ahead.sum())
            self._letters.events(batch.take(ahead), origin, "future")
        return batch.take(~ahead)

    def _take_official(self, batch: EventBatch, origin: Origin) -> None:
        key = (batch.provider, batch.interval)
        if key not in self._official:
            self._official[key] = OfficialBars(self.spec, *key)
        taken = self._official[key].take(batch)
        self._bars += taken.bars
        self._counts.stored += taken.stored
        self._counts.deduplicated += taken.deduplicated
        self._counts.late += len(taken.late)
        self._counts.dead_lettered += len(taken.conflicts)
        for rows, reason in ((taken.late, "late"), (taken.conflicts, "id_conflict")):
            self._letters.events(batch.take(rows), origin.take(rows), reason)

    def _forward(self, batch: EventBatch, record: Record) -> None:
        """Send misplaced events where their symbols belong; they are received there."""
        self._forwarded += len(batch)
        # single events of several streams share a position: only a number tells them apart; and a
        # log that was lost gives positions again, but never to the same owner
        key = self.claim.key
        owner = f"{key.group}/{self.topics.events}/{record.partition}/{self.claim.token}"
        place = f"{owner}/{record.offset}"
        self._forwards += forwards(batch, self.topics, self._codec, place, len(self._forwards))

    def collect(self, provider: str, limit: int = FOREVER) -> None:
        """Close and restate what is due of one provider's windows."""
        stream = self.ticks[provider]
        collected = stream.collect(limit)
        self._counts.stored += collected.stored
        self._counts.deduplicated += collected.deduplicated
        for events, position in collected.conflicts:
            batch = batch_of(provider, stream, events)
            self._counts.dead_lettered += len(batch)
            self._letters.events(batch, Origin(position), "id_conflict")
        for closed in collected.bars:
            for whole in within(closed, self.topics.home):
                self._bars += rounded(provider, stream, whole)
        self.dirty = True

    @property
    def pending_rows(self) -> int:
        """Bars and letters that wait for the next group."""
        return sum(len(decided.bars) for decided in self._bars) + len(self._letters)

    @property
    def has_output(self) -> bool:
        """Whether a group would carry more than a position."""
        return bool(self._bars or self._letters or self._forwards or self.gaps)

    def group(self) -> PartitionGroup:
        """What has come together since the last group; the caller commits it or gives up."""
        before = self._checkpoint.received_before
        self._counts.received = before + self._log_received - self._forwarded
        self._counts.open = self._open
        bars, forwards, gaps = self._bars, self._forwards, self.gaps
        self._bars, self._forwards, self.gaps = [], [], []
        positions = (s.resume_position() for s in self.ticks.values())
        resume = min((p for p in positions if p is not None), default=self._counted)
        encode = lambda batch: next(iter(self._codec.encode_events(batch, "columnar")))  # noqa: E731
        self._checkpoint = Checkpoint(
            log_id=self._checkpoint.log_id,
            resume=min(resume, self._counted),
            counted=self._counted,
            checksum=self._checksum,
            received_before=before,
            forwarded=self._forwarded,
            ended=self.ended,
            bars=self._checkpoint.bars
            + sum(len(d.bars) for d in bars if d.bars.state != "revised"),
            counts=msgspec.structs.replace(self._counts),
            streams=[
                *(stream.state(provider) for provider, stream in self.ticks.items()),
                *(official.state(encode) for official in self._official.values()),
            ],
        )
        self.dirty = False
        return PartitionGroup(
            self.claim,
            bars,
            self.topics.bars,
            self._checkpoint,
            self._letters.handed_over(),
            forwards,
            self.topics.letters,
            gaps,
            self.topics.tells_all,
        )

    def committed(self, group: PartitionGroup, bad: Sequence[BadRow]) -> None:
        """The group is in the store; `bad` rows of it are not."""
        self.claim = replace(self.claim, sequence=self.claim.sequence + 1)
        self.place = Place(group.checkpoint.resume, group.checkpoint.counted)
        if bad:
            events = group.moved(bad)
            self._counts = self._counts.moved(events)
            self._checkpoint.counts = self._checkpoint.counts.moved(events)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the latest group."""
        return self._checkpoint

    def idle_marks(self, silence_ns: int) -> list[Mark]:
        """Marks for providers whose silence lets a window close, or a closed one be let go.

        Silence is known only up to the time until which the log was read: a process that slept
        since must not take its own absence for the provider's.
        """
        marks = []
        for provider, stream in self.ticks.items():
            silent = self._read_until - self.last_append.setdefault(provider, self._read_until)
            mark = None if self.ended else idle_mark(provider, stream, silent, silence_ns)
            marks += [mark] if mark else []
        return marks
