"""What a partition writes in one transaction: bars, checkpoint, messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import VALUE_COLUMNS, BarBatch
from market_data_core.contracts.bus import Codec
from market_data_core.contracts.store import BadRow, Claim, Gap, Message
from market_data_core.deadletters import DeadLetter, encode_letters
from market_data_core.events import REASONS, EventBatch, Rejected, StreamEvent, parse_ts
from market_data_core.intervals import format_interval
from market_data_core.partitioning import partition_of
from market_data_core.records import Record
from market_data_core.signals import Signal
from market_data_pipeline.timeline import Generation, Timeline
from market_data_pipeline.windows.aggregate import Events
from market_data_pipeline.windows.checkpoint import Checkpoint, decode_checkpoint
from market_data_pipeline.windows.collected import Closed
from market_data_pipeline.windows.stream import WindowStream

_LETTERS_PER_MESSAGE = 1_000
_LETTER_BYTES_PER_MESSAGE = 8 << 20


@dataclass(frozen=True, slots=True)
class Decided:
    """Bars to write.

    Attributes:
        bars: the bars.
        fresh: shape (n,), int64, how many events each row brings into the store for the first
            time; they are what a row that cannot be written takes with it.
    """

    bars: BarBatch
    fresh: NDArray[np.int64]


@dataclass(slots=True)
class PartitionGroup:
    """Implements :class:`market_data_core.contracts.store.Group`."""

    claim: Claim
    decided: list[Decided]
    bars_topic: str
    checkpoint: Checkpoint
    letters: list[DeadLetter]
    forwards: list[Message]
    letters_topic: str
    gaps: list[Gap] = field(default_factory=list)
    tells_all: bool = False

    @property
    def bars(self) -> Sequence[BarBatch]:
        """Bars in the order in which they were decided."""
        return [decided.bars for decided in self.decided]

    @property
    def signals(self) -> Sequence[Signal]:
        """None: signals are made of bars that are stored."""
        return ()

    def moved(self, bad: Sequence[BadRow]) -> int:
        """How many events bad rows move from stored to dead-lettered."""
        return sum(int(self.decided[row.batch].fresh[row.row]) for row in bad)

    def widened(self, span: tuple[int, int] | None) -> tuple[int, int] | None:
        """`span`, least and greatest start of bars (UTC ns), with those of this group's bars."""
        for batch in self.bars:
            first, last = int(batch.ts.min()), int(batch.ts.max())
            low, high = span or (first, last)
            span = min(low, first), max(high, last)
        return span

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:
        """The checkpoint and messages, given which bars could not be written."""
        letters = [*self.letters, *(self._letter(row) for row in bad)]
        checkpoint = self.checkpoint
        if bad:
            counts = checkpoint.counts.moved(self.moved(bad))
            rows = [(row.batch, row.row) for row in bad]
            checkpoint = msgspec.structs.replace(checkpoint, counts=counts, bad=rows)
        key = self.claim.key
        origin = f"{key.group}/{key.topic}/{key.partition}"
        prefix = f"{origin}/{self.claim.token}/{self.claim.sequence}/letters"
        messages = [
            _letters_message(self.letters_topic, f"{prefix}/{i}", part)
            for i, part in enumerate(_portions(letters))
        ]
        return checkpoint.encode(), [*self.forwards, *messages]

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:
        """Which of its bars were refused, told from the checkpoint that its commit left."""
        return [BadRow(*row, "") for row in decode_checkpoint(checkpoint).bad]

    def _letter(self, bad: BadRow) -> DeadLetter:
        batch, i = self.decided[bad.batch].bars, bad.row
        symbol = batch.symbols[int(batch.codes[i])]
        row = {name: getattr(batch, name)[i].item() for name in ("ts", *VALUE_COLUMNS)}
        row |= {"state": batch.state, "only_new": batch.only_new}
        body = {"provider": batch.provider, "symbol": symbol, "interval": batch.interval, **row}
        return DeadLetter(
            reason="unwritable",
            detail=bad.error[:500],
            topic=self.claim.key.topic,
            log_id=self.checkpoint.log_id,
            partition=self.claim.key.partition,
            offset=self.checkpoint.counted,
            original=msgspec.json.encode(body),
            provider=batch.provider,
            symbol=symbol,
            src_ts=int(batch.ts[i]),
            events=self.moved([bad]),
        )


def _portions(letters: Sequence[DeadLetter]) -> Iterable[list[DeadLetter]]:
    """Letters of one provider each, bounded in number and size."""
    part: list[DeadLetter] = []
    size = 0
    for letter in sorted(letters, key=lambda item: item.provider):
        full = len(part) >= _LETTERS_PER_MESSAGE or size > _LETTER_BYTES_PER_MESSAGE
        if part and (full or part[0].provider != letter.provider):
            yield part
            part, size = [], 0
        part.append(letter)
        size += len(letter.original) + len(letter.message)
    if part:
        yield part


def _letters_message(topic: str, key: str, letters: list[DeadLetter]) -> Message:
    times = [letter.src_ts for letter in letters]
    return Message(
        topic,
        key,
        encode_letters(letters),
        len(letters),
        partition=0,
        provider=letters[0].provider,
        min_ts=min(times),
        max_ts=max(times),
    )


@dataclass(frozen=True, slots=True)
class Topics:
    """Names and sizes that a partition publishes to.

    Attributes:
        events: the topic it reads.
        partitions: among which its symbols are spread.
        bars: where changed bars go.
        letters: where dead letters go.
        generations: of the live topic, to which it belongs; None if it stands alone.
        tells_all: whether bars that were stored as they are before are published too.
    """

    events: str
    partitions: int
    bars: str
    letters: str
    generations: Timeline | None = None
    tells_all: bool = False

    @property
    def timeline(self) -> Timeline:
        """Where events belong by their time."""
        return self.generations or Timeline.alone(self.events, self.partitions)

    @property
    def home(self) -> Generation:
        """The generation that the topic is, as it is known now."""
        found = self.generations.of_topic(self.events) if self.generations else None
        return found or Generation(1, self.events, self.partitions)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch's rows stand in the log.

    Attributes:
        position: offset of the first record.
        singles: for single events, the record of each row; None if one record holds all rows.
    """

    position: int
    singles: Sequence[Record] | None = None

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Origin:
        """The origin of some of the rows, by a mask or by indices."""
        if self.singles is None:
            return self
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(self, singles=[self.singles[i] for i in index.tolist()])

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """Each row's offset; None if one record holds all rows."""
        if self.singles is None:
            return None
        return np.array([record.offset for record in self.singles], np.int64)

    def of_row(self, row: int) -> tuple[int, bytes]:
        """The offset of a row, and its message if that holds nothing else."""
        if self.singles is None:
            return self.position, b""
        record = self.singles[row]
        return record.offset, record.payload


class Letters:
    """Dead letters of one partition that wait for the next group."""

    def __init__(self, topic: str, log_id: str, partition: int) -> None:
        self._topic, self._log_id, self._partition = topic, log_id, partition
        self._letters: list[DeadLetter] = []

    def __len__(self) -> int:
        return len(self._letters)

    def handed_over(self) -> list[DeadLetter]:
        """All letters since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def rejected(self, record: Record, item: Rejected, event: StreamEvent | None = None) -> None:
        """A record that cannot be used; of one that came too early `event` tells what it holds."""
        letter = DeadLetter(
            reason=item.reason,
            detail=item.detail,
            topic=self._topic,
            log_id=self._log_id,
            partition=self._partition,
            offset=record.offset,
            original=item.original,
            where=item.where,
            events=record.count,
        )
        if event and item.reason == "future":
            event = msgspec.structs.replace(event, symbol=event.symbol.upper())
            original = msgspec.json.encode(event)
            letter = msgspec.structs.replace(
                letter,
                provider=event.provider,
                symbol=event.symbol,
                src_ts=parse_ts(event.src_ts),
                original=original,
                message=b"" if item.original == original else item.original,
            )
        self._letters.append(letter)

    def events(self, batch: EventBatch, origin: Origin, reason: str) -> None:
        """Events that were read but cannot be used."""
        for i, (event, src_ts) in enumerate(
            zip(batch.events(), batch.src_ts.tolist(), strict=True)
        ):
            original = msgspec.json.encode(event)
            offset, message = origin.of_row(i)
            self._letters.append(
                DeadLetter(
                    reason=reason,
                    detail=REASONS[reason],
                    topic=self._topic,
                    log_id=self._log_id,
                    partition=self._partition,
                    offset=offset,
                    original=original,
                    provider=event.provider,
                    symbol=event.symbol,
                    src_ts=src_ts,
                    message=b"" if message == original else message,
                )
            )


def batch_of(provider: str, stream: WindowStream, events: Events) -> EventBatch:
    """Ticks of a stream as a batch again; their ingest times are not kept."""
    return EventBatch(
        provider,
        "tick",
        format_interval(stream.spec.base_ns),
        tuple(stream.symbols),
        events.codes,
        events.ts,
        events.seq,
        events.ts,
        events.close,
        events.volume,
        events.ohl,
    )


def forwards(
    batch: EventBatch, topics: Topics, codec: Codec, place: str, number: int
) -> Iterable[Message]:
    """Messages that take events to the generation of their time, the partition of their symbol.

    Args:
        batch: the events.
        topics: where they are.
        codec: how payloads are written.
        place: owner and record they came from; with `number`, which rises, the messages' keys.
        number: of the first message.
    """
    for home, events in topics.timeline.split(batch):
        target = np.array([partition_of(s, home.partitions) for s in events.symbols])
        owners = target[events.codes]
        for to in np.unique(owners).tolist():
            part = events.take(owners == to)
            span = int(part.src_ts.min()), int(part.src_ts.max())
            for payload in codec.encode_events(part, "columnar"):
                key = f"{place}/to/{to}/{number}"
                number += 1
                yield Message(home.topic, key, payload, len(part), to, part.provider, *span)


def within(closed: Closed, home: Generation) -> Iterable[Closed]:
    """`closed` without windows that reach beyond the generation; nothing if none is left.

    They are of a length that was not there when the spans were chosen, and have no bar, since no
    partition has all of their events.
    """
    whole = home.whole(closed.bars.start, closed.length_ns)
    if whole.all():
        yield closed
    elif whole.any():
        yield replace(closed, bars=closed.bars.take(whole), fresh=closed.fresh[whole])


def rounded(provider: str, stream: WindowStream, closed: Closed) -> list[Decided]:
    """Exact bars rounded for the store; those that lack lost events apart, marked as such."""
    bars = closed.bars
    volume, notional = bars.volume.to_floats(), bars.notional.to_floats()
    with np.errstate(divide="ignore", invalid="ignore"):
        vwap = np.where(volume == 0, np.nan, notional / volume)
    batch = BarBatch(
        provider=provider,
        interval=format_interval(closed.length_ns),
        state="revised" if closed.revised else "final",
        symbols=tuple(stream.symbols),
        codes=bars.codes,
        ts=bars.start,
        open=bars.open.to_floats(),
        high=bars.high.to_floats(),
        low=bars.low.to_floats(),
        close=bars.close.to_floats(),
        volume=volume,
        vwap=vwap,
        trade_count=bars.count,
    )
    # a wide bar lacks events as soon as it touches the span in which some were lost
    tainted = (bars.start < stream.taint) & (bars.start + closed.length_ns > stream.fence)
    protected = bars.start < stream.protected
    if not (tainted.any() or protected.any()):
        return [Decided(batch, closed.fresh)]
    parts = []
    for gap in (False, True):
        for only_new in (False, True):
            rows = (tainted == gap) & (protected == only_new)
            part = replace(batch.take(rows), only_new=only_new)
            part = replace(part, state="gap") if gap else part
            parts.append(Decided(part, closed.fresh[rows]))
    return [part for part in parts if len(part.bars)]
