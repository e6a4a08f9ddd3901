"""Dead letters of the bus as recordings, so that they go through the windows again.

A replay is a lane: its windows are computed from what is known and what it adds, so an event that
was late restates its bar, and carrying the same letters twice changes no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import numpy as np
import polars as pl

from market_data_core.bars import BarBatch, BarState
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Store
from market_data_core.errors import RejectedError
from market_data_core.events import OFFICIAL_SUFFIX, EventBatch, Rejected, StreamEvent
from market_data_core.intervals import canonical_interval, format_interval
from market_data_core.wire import BatchBuilder
from market_data_pipeline.letters import Found, Place, Replay, event_of, runs_of
from market_data_pipeline.positions import batch_checkpoints
from market_data_pipeline.windows.assigner import FOREVER, NEVER, WindowSpec, floor_to

LETTERS_MAX = 50_000
"""Letters of one lane; more of them are carried in several, one after the other."""

_BATCH_EVENTS = 8_192
_NAME_CHARS = 16
_VERSION = "1"

BROKEN = "their bytes are no event; correct them (mdp dlq show ID --raw) and run them as a file"
CONFLICT = "another event with the same identity came first, and counts"
EARLY = "their time is still ahead of the clock"
INCOMPLETE = "the log no longer holds all that their stored bars were made of"
REPLACED = "another bar of the vendor's is stored in their place"
NO_NUMBERS = "their bar has no finite numbers that could be stored"


@dataclass(slots=True)
class Sorted:
    """Letters by what can be done with them.

    Attributes:
        events: go through the windows again.
        bars: were refused by the database, and are written to it again.
        refused: cannot be replayed as they are, by the reason in words.
    """

    events: list[Found] = field(default_factory=list)
    bars: list[Found] = field(default_factory=list)
    refused: dict[str, list[Found]] = field(default_factory=dict)

    def refuse(self, found: Found, why: str) -> None:
        """Put a letter aside."""
        self.refused.setdefault(why, []).append(found)

    @property
    def reasons(self) -> dict[str, Counter[str]]:
        """Why letters cannot be replayed -> how many of each reason they bear."""
        return {
            why: Counter(found.letter.reason for found in some)
            for why, some in self.refused.items()
        }


def sort_out(letters: Sequence[Found], now_ns: int) -> Sorted:
    """What can be done with letters, as far as they tell themselves.

    Args:
        letters: any.
        now_ns: events ahead of it (UTC ns) have to wait.
    """
    out, builder = Sorted(), BatchBuilder()
    for found in letters:
        reason, event = found.letter.reason, event_of(found.letter)
        if reason == "unwritable":
            if refused_bar(found) is None:
                out.refuse(found, NO_NUMBERS)
            else:
                out.bars.append(found)
        elif event is None:
            out.refuse(found, BROKEN)
        elif reason == "id_conflict":
            out.refuse(found, CONFLICT)
        elif found.letter.src_ts > now_ns:
            out.refuse(found, EARLY)
        else:
            try:
                builder.add(event, found.append_ts, found.place)
                out.events.append(found)
            except RejectedError:
                out.refuse(found, BROKEN)
    # an event that came too early was set aside before its values were looked at
    wrong = {place for place, _ in builder.build()[1]}
    for found in [found for found in out.events if found.place in wrong]:
        out.refuse(found, BROKEN)
    out.events = [found for found in out.events if found.place not in wrong]
    return out


class LettersRecording:
    """Implements :class:`market_data_core.contracts.provider.Recording` on dead letters.

    Args:
        log_id: the letters' log.
        letters: each holds an event.

    Attributes:
        lane: hash of the letters' places in their log.
    """

    def __init__(self, log_id: str, letters: Sequence[Found]) -> None:
        self._letters = sorted(letters, key=lambda found: (found.letter.src_ts, found.place))
        self.lane = replay_name(log_id, [found.place for found in letters])

    def read(self) -> Iterator[EventBatch | Rejected]:
        """Yield the events in src_ts order, ties in the order of the letters."""
        for begin in range(0, len(self._letters), _BATCH_EVENTS):
            builder = BatchBuilder()
            for found in self._letters[begin : begin + _BATCH_EVENTS]:
                event = event_of(found.letter)
                assert event is not None  # noqa: S101
                builder.add(event, found.append_ts)
            yield from builder.build()[0]

    def presorted(self) -> LettersRecording:
        """This recording: it is in memory, and in order."""
        return self


def replay_name(log_id: str, places: Sequence[Place]) -> str:
    """The name of the replay of the letters at `places`, in any order, of a log."""
    words = repr((_VERSION, log_id, runs_of(sorted(places))))
    return sha256(words.encode()).hexdigest()[:_NAME_CHARS]


def begun(log_id: str, letters: Sequence[Found]) -> Replay:
    """The statement that the replay of `letters` begins."""
    places = sorted(found.place for found in letters)
    name = replay_name(log_id, places)
    return Replay(log_id=log_id, name=name, state="begun", runs=runs_of(places))


class Guard:
    """Keeps replays from replacing stored bars by such as are made of fewer events.

    Where the log has been trimmed, replaced or cut short, the events that a bar was made of
    cannot be added up with the one that is replayed. The bar stays then, and so does the letter.

    Args:
        bus: holds the events.
        store: holds bars and checkpoints.
        group: consumer group.
        spec: the windows.
        max_future_ns: how far ahead of its append a live event may be.
    """

    def __init__(
        self, bus: Bus, store: Store, group: str, spec: WindowSpec, max_future_ns: int
    ) -> None:
        self._bus, self._store, self._group = bus, store, group
        self._spec, self._max_future_ns = spec, max_future_ns

    async def check(self, out: Sorted) -> None:
        """Refuse the events that must not be replayed."""
        whole_from = await self._whole_from()
        series: dict[tuple[str, str], list[tuple[Found, StreamEvent]]] = {}
        for found in out.events:
            event = event_of(found.letter)
            assert event is not None  # noqa: S101
            name = event.provider + (OFFICIAL_SUFFIX if event.kind == "bar" else "")
            doubtful = event.kind == "bar" or min(
                self._starts(found.letter.src_ts)
            ) < whole_from.get(event.provider, NEVER)
            if doubtful:
                series.setdefault((name, found.letter.symbol), []).append((found, event))
        wrong: dict[Place, str] = {}
        for (provider, symbol), some in series.items():
            wrong |= await self._wrong(provider, symbol, some)
        for found in out.events:
            if found.place in wrong:
                out.refuse(found, wrong[found.place])
        out.events = [found for found in out.events if found.place not in wrong]

    def _starts(self, ts: int) -> list[int]:
        return [floor_to(ts, length) for length in self._spec.intervals_ns]

    async def _wrong(
        self, provider: str, symbol: str, some: Sequence[tuple[Found, StreamEvent]]
    ) -> dict[Place, str]:
        """Which letters of one series stand against stored bars, and why."""
        start = min(min(self._starts(found.letter.src_ts)) for found, _ in some)
        end = max(found.letter.src_ts for found, _ in some) + 1
        frame = await self._store.bars(symbol, None, provider, start, end)
        columns = ("interval", "open", "high", "low", "close", "volume")
        stored = {
            (row[1], row[0]): row[2:]
            for row in frame.select(pl.col("ts").cast(pl.Int64), *columns).iter_rows()
        }
        wrong = {}
        for found, event in some:
            if event.kind == "bar":
                key = (canonical_interval(event.interval), found.letter.src_ts)
                values = (event.o, event.h, event.l, event.c, event.v)
                if stored.get(key, values) != values:
                    wrong[found.place] = REPLACED
                continue
            keys = zip(self._spec.intervals_ns, self._starts(found.letter.src_ts), strict=True)
            if any((format_interval(length), at) in stored for length, at in keys):
                wrong[found.place] = INCOMPLETE
        return wrong

    async def _whole_from(self) -> dict[str, int]:
        """Provider -> UTC ns before which logs may have lost ticks of it that are in bars."""
        topics = {info.name: info for info in await self._bus.topics()}
        found: dict[str, int] = {}
        for row, checkpoint in batch_checkpoints(await self._store.status(self._group)):
            info = topics.get(row.key.topic)
            gone = info is None or info.log_id != checkpoint.log_id
            trimmed = NEVER if gone else await self._kept_from(row.key.topic, row.key.partition)
            for state in checkpoint.streams:
                if state.kind == "tick":
                    # of a stream that has seen no event, nothing is gone
                    until = state.greatest + 1 if gone else min(trimmed, state.greatest + 1)
                    lost = max(until, state.fence, state.taint)
                    found[state.provider] = max(found.get(state.provider, NEVER), lost)
        return found

    async def _kept_from(self, topic: str, partition: int) -> int:
        """Greatest event time (UTC ns) of which a partition may have trimmed events."""
        bounds = await self._bus.bounds(topic, partition)
        if await self._bus.received(topic, partition, bounds.first) == 0:
            return NEVER
        polled = await self._bus.poll(topic, {partition: bounds.first}, 1, 0)
        if partition not in polled:
            return FOREVER
        return polled[partition][0].append_ts + self._max_future_ns


class _Bar(msgspec.Struct):
    """What a letter tells of a bar that was refused."""

    provider: str
    symbol: str
    interval: str
    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    trade_count: int
    state: BarState
    only_new: bool


_bar_decoder = msgspec.json.Decoder(_Bar)


def refused_bar(found: Found) -> BarBatch | None:
    """The bar of an ``unwritable`` letter, to be written as it would have been.

    A stored bar gives way only if it was made of no more events; a vendor's own bar, which does
    not tell of how many it was made, takes no other's place.

    Returns:
        A batch of one row; None if the letter does not hold all values.
    """
    try:
        bar = _bar_decoder.decode(found.letter.original)
    except msgspec.MsgspecError:
        return None
    numbers: Mapping[str, float] = {
        "open": bar.open, "high": bar.high, "low": bar.low, "close": bar.close,
        "volume": bar.volume, "vwap": np.nan if bar.vwap is None else bar.vwap,
    }  # fmt: skip
    columns = {name: np.array([value], np.float64) for name, value in numbers.items()}
    return BarBatch(
        provider=bar.provider,
        interval=bar.interval,
        state=bar.state,
        symbols=(bar.symbol,),
        codes=np.zeros(1, np.uint32),
        ts=np.array([bar.ts], np.int64),
        trade_count=np.array([bar.trade_count], np.int64),
        only_new=bar.only_new or bar.trade_count < 0,
        **columns,
    )
