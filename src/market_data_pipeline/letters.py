"""The dead letters of the bus, and which of them have been carried through the windows again.

Letters stay in their topic, which is a log. What was replayed stands in a log beside it: a replay
writes down the letters that it takes before it begins, and once more when it is through. So one
that was interrupted can be told, and goes on with the same letters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import msgspec

from market_data_core.contracts.bus import Bus
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import DamagedFileError, RejectedError
from market_data_core.events import StreamEvent
from market_data_core.records import Entry, Record, TopicInfo
from market_data_core.wire import decode_event
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.past_holes import poll_past_holes

REPLAYS_TOPIC = f"{LETTERS_TOPIC}.replays"
MAGIC = b"MDPY"
"""First bytes of a record of the replays' topic."""
EVENT_REASONS = ("late", "id_conflict", "future")
"""Reasons under which a whole event is set aside."""

_POLL_BYTES = 8 << 20
_UNBOUNDED = (1 << 63) - 1

Place = tuple[int, int]
"""Where a letter stands: offset of its record in the letters' topic, index in the record."""
State = Literal["begun", "done", "given_up"]


@dataclass(frozen=True, slots=True)
class Found:
    """A letter as it stands in its topic.

    Attributes:
        place: where.
        append_ts: when it was set aside, UTC ns.
        letter: the letter.
    """

    place: Place
    append_ts: int
    letter: DeadLetter

    @property
    def id(self) -> str:
        """As people name it, such as ``12.0``."""
        return f"{self.place[0]}.{self.place[1]}"


def event_of(letter: DeadLetter) -> StreamEvent | None:
    """The event that was set aside; None if the letter holds none that can be read."""
    if letter.reason not in EVENT_REASONS:
        return None
    try:
        return decode_event(letter.original)
    except RejectedError:
        return None


def letters_in(record: Record) -> list[Found]:
    """The letters of one record of their topic.

    Raises:
        RejectedError: the record holds something else.
    """
    letters = decode_letters(record.payload)
    return [Found((record.offset, i), record.append_ts, le) for i, le in enumerate(letters)]


async def records_of(bus: Bus, topic: str) -> AsyncIterator[Record]:
    """What partition 0 of a topic holds now, in order; nothing if there is no such topic."""
    if await bus.find_topic(topic) is None:
        return
    bounds = await bus.bounds(topic, 0)
    position = bounds.first
    while position < bounds.next:
        records = (await poll_past_holes(bus, topic, {0: position}, _POLL_BYTES, 0)).get(0)
        if not records:
            return
        for record in records:
            if record.offset < bounds.next:
                yield record
        position = records[-1].offset + 1


async def all_letters(bus: Bus) -> AsyncIterator[Found]:
    """The letters of the bus, oldest first."""
    async for record in records_of(bus, LETTERS_TOPIC):
        for found in letters_in(record):
            yield found


async def letters_at(bus: Bus, places: Sequence[Place]) -> list[Found]:
    """The letters at `places` that are still there, in the order of their places."""
    bounds = await bus.bounds(LETTERS_TOPIC, 0)
    wanted = sorted(set(places))
    found: list[Found] = []
    ready: dict[int, Record] = {}
    for offset, group in groupby(wanted, key=lambda place: place[0]):
        if not bounds.first <= offset < bounds.next:
            continue
        if offset not in ready:  # what lies near comes with it
            polled = await poll_past_holes(bus, LETTERS_TOPIC, {0: offset}, _POLL_BYTES, 0)
            ready = {record.offset: record for record in polled.get(0, ())}
        if offset in ready:
            letters = letters_in(ready[offset])
            found += [letters[index] for _, index in group if index < len(letters)]
    return found


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A statement about letters that are, or were, carried through the windows again.

    Attributes:
        log_id: the letters' log.
        name: of the replay, a hash of its letters.
        state: ``begun``; ``done`` once everything is stored; ``given_up`` if letters of an
            interrupted replay were trimmed, so that it cannot go on.
        runs: the letters, as (offset, first index, last index).
    """

    log_id: str
    name: str
    state: State
    runs: list[tuple[int, int, int]]

    @property
    def places(self) -> Iterator[Place]:
        """Where the letters stand."""
        for offset, first, last in self.runs:
            yield from ((offset, index) for index in range(first, last + 1))

    def encode(self) -> bytes:
        """As a record of the replays' topic."""
        return MAGIC + msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(Replay)


def decode_replay(payload: bytes) -> Replay:
    """The statement from its bytes.

    Raises:
        DamagedFileError: they are none.
    """
    try:
        if not payload.startswith(MAGIC):
            raise msgspec.DecodeError
        return _decoder.decode(payload[len(MAGIC) :])
    except msgspec.MsgspecError as error:
        msg = f"topic {REPLAYS_TOPIC!r} holds a record that is no statement about a replay"
        raise DamagedFileError(msg) from error


def runs_of(places: Sequence[Place]) -> list[tuple[int, int, int]]:
    """Places, in order, as runs of neighbours."""
    runs: list[tuple[int, int, int]] = []
    for offset, index in places:
        if runs and runs[-1][0] == offset and runs[-1][2] == index - 1:
            runs[-1] = (offset, runs[-1][1], index)
        else:
            runs.append((offset, index, index))
    return runs


class Replays:
    """What is known of the replays of the letters' topic as it is now.

    Args:
        letters: the letters' topic.
        said: the statements with the times of their append (UTC ns), in log order.
    """

    def __init__(self, letters: TopicInfo | None, said: Sequence[tuple[Replay, int]]) -> None:
        self.letters = letters
        self._done: dict[int, list[tuple[int, int, int]]] = {}
        open_: dict[str, Replay] = {}
        for replay, append_ts in said:
            if letters is None or replay.log_id != letters.log_id:
                continue  # of letters that are gone
            if replay.state == "begun":
                open_[replay.name] = replay
                continue
            open_.pop(replay.name, None)
            if replay.state == "done":
                for offset, first, last in replay.runs:
                    self._done.setdefault(offset, []).append((first, last, append_ts))
        self.unfinished = list(open_.values())
        self._taken = {place for replay in self.unfinished for place in replay.places}

    @classmethod
    async def load(cls, bus: Bus) -> Replays:
        """As the bus knows them.

        Raises:
            DamagedFileError: a record of their topic is not what it should be.
        """
        said = [
            (decode_replay(record.payload), record.append_ts)
            async for record in records_of(bus, REPLAYS_TOPIC)
        ]
        return cls(await bus.find_topic(LETTERS_TOPIC), said)

    def done_at(self, place: Place) -> int | None:
        """When the replay of a letter was through, UTC ns; None if it was not."""
        for first, last, append_ts in self._done.get(place[0], ()):
            if first <= place[1] <= last:
                return append_ts
        return None

    def is_taken(self, place: Place) -> bool:
        """Whether a replay that is not through has taken the letter."""
        return place in self._taken

    async def say(self, bus: Bus, replay: Replay) -> None:
        """Write a statement down; saying it twice has the effect of once.

        Raises:
            TransientError: the bus cannot be written now.
        """
        await bus.create_topic(REPLAYS_TOPIC, 1)
        await self._forget_old(bus)
        key = f"{replay.log_id}/{replay.name}/{replay.state}"
        await bus.append(REPLAYS_TOPIC, [Entry(0, replay.encode(), key=key)])

    async def _forget_old(self, bus: Bus) -> None:
        """Trim what was said of letters that their topic has trimmed."""
        bounds = await bus.bounds(LETTERS_TOPIC, 0)
        kept = await poll_past_holes(bus, LETTERS_TOPIC, {0: bounds.first}, 1, 0)
        if 0 in kept:
            before = (await bus.bounds(REPLAYS_TOPIC, 0)).next
            oldest = kept[0][0].append_ts
            await bus.trim(REPLAYS_TOPIC, 0, before, oldest, _UNBOUNDED)
