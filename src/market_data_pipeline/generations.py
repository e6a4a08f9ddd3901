"""Generations of the live topic: the same events in another number of partitions from a time on.

The first generation is the configured topic itself, later ones are topics of their own
(``mdp.events-g2``, ``mdp.events-g3``). Each holds the events of a span of event time: an event
belongs to the generation of its ``src_ts``, whatever log somebody wrote it to, and is forwarded
if that was another one. Spans meet on the grid of all windows, so a window has all its events in
one partition of one generation, and generations share no state.

Which generations there are is told by a registry, a topic of one partition that is only appended
to. A generation begins so long after it was entered there that nobody can have taken an event of
its span before knowing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import lcm

import msgspec
import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Positions
from market_data_core.errors import DamagedFileError, LogLostError, RejectedError, UsageError
from market_data_core.events import format_ts, parse_ts
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry, Record, TopicInfo
from market_data_pipeline.timeline import Generation, Timeline
from market_data_pipeline.windows.assigner import FOREVER, NEVER
from market_data_pipeline.windows.checkpoint import decode_checkpoint

log = structlog.get_logger("generations")

_POLL_BYTES = 1 << 20
_STALE_NS = 2 * NS_PER_S
_MARGIN_NS = 5 * NS_PER_S
"""What is known may be :data:`_STALE_NS` old when records are taken; the rest of the margin is for
clocks of several machines that differ."""


class _Entered(msgspec.Struct, kw_only=True):
    """A record of the registry; `begins` is "" for the first generation."""

    generation: int
    topic: str
    partitions: int
    begins: str = ""
    lead_ns: int = 0


def registry_topic(events_topic: str) -> str:
    """Name of the topic that tells the generations of `events_topic`."""
    return f"{events_topic}-generations"


def lead_ns(max_future_ns: int) -> int:
    """How long before its begin a generation has to be entered, at least.

    Every event that a worker takes is at most `max_future_ns` ahead of its append; a worker
    takes none that was appended more than two seconds after it last looked at the registry.
    """
    return max_future_ns + _MARGIN_NS


def grid_ns(windows_ns: Sequence[int]) -> int:
    """The least common multiple of the windows' lengths: there all of them meet."""
    return lcm(*windows_ns)


def next_begin(now_ns: int, windows_ns: Sequence[int], max_future_ns: int) -> int:
    """The earliest time at which a generation that is entered now can begin, UTC ns.

    No window lies in two generations then. A second is left for the entering.
    """
    grid, least = grid_ns(windows_ns), now_ns + lead_ns(max_future_ns) + NS_PER_S
    return -(-least // grid) * grid


class Generations:
    """The generations as a process knows them, and how it learns of new ones.

    Args:
        bus: holds the registry and the topics.
        events_topic: the first generation's topic.
        clock: wall-clock time.

    Attributes:
        events_topic: as above.
        timeline: which generation an event belongs to; grows when it is refreshed.
    """

    def __init__(self, bus: Bus, events_topic: str, clock: Clock) -> None:
        self._bus, self.events_topic, self._clock = bus, events_topic, clock
        self._registry = registry_topic(events_topic)
        self._position: int | None = None
        self._begun = False
        """Whether the registry tells anything: who made it may have died before entering."""
        self._looked_at = 0
        self._reading = asyncio.Lock()
        self._infos: dict[str, TopicInfo] = {}
        self.timeline = Timeline()

    @property
    def looked_at(self) -> int:
        """When the registry was last read, UTC ns."""
        return self._looked_at

    async def look(self, partitions: int) -> Timeline:
        """What there is, for those who only read; no topic is created.

        Args:
            partitions: of the first generation if its topic does not exist.
        """
        await self._read()
        if not self.timeline.generations:
            info = await self._bus.find_topic(self.events_topic)
            count = info.partitions if info else partitions
            self.timeline.generations = (Generation(1, self.events_topic, count),)
        return self.timeline

    async def open(self, partitions: int, enter: bool = False) -> None:
        """Learn what there is and create the topics that are missing.

        Args:
            partitions: of the first generation if its topic does not exist.
            enter: enter the first generation in the registry at once, because others can change
                the topic's partitions.

        Raises:
            DamagedFileError: the registry has lost its end.
            UsageError: the topic has another number, or the newest one not that of the registry.
            TransientError: the log is unreachable.
        """
        await self._read()
        if not self.timeline.generations:
            info = await self._bus.find_topic(self.events_topic)
            if info is None:
                info = await self._bus.create_topic(self.events_topic, partitions)
            if info.partitions != partitions:
                msg = (
                    f"topic {info.name!r} has {info.partitions} partitions, the configuration says "
                    f"{partitions}; set bus.partitions to {info.partitions}, then change the "
                    f"number with: mdp stream repartition --partitions {partitions}"
                )
                raise UsageError(msg)
            self.timeline.generations = (Generation(1, info.name, partitions),)
            if enter:
                await self._enter_first(partitions)
        await self._require_whole()
        for generation in self.timeline.generations:
            await self.topic(generation)
        count = self.timeline.newest.partitions
        if count != partitions:
            log.info(
                "the registry of generations tells the number of partitions",
                topic=self.timeline.newest.topic,
                partitions=count,
                configured=partitions,
            )

    async def _require_whole(self) -> None:
        """A topic is made after it was entered: one that is not entered has been."""
        following = self._topic_name(self.timeline.newest.number + 1)
        if await self._bus.find_topic(following) is None:
            return
        await self._read()  # it may have been entered just now
        if self.timeline.of_topic(following) is None:
            msg = (
                f"topic {following!r} exists, but {self._registry!r} does not tell when it begins: "
                "its end was lost; restore it from a backup"
            )
            raise DamagedFileError(msg)

    def _topic_name(self, number: int) -> str:
        return f"{self.events_topic}-g{number}" if number > 1 else self.events_topic

    async def refresh(self) -> None:
        """Read what was entered since, and create the topics of new generations.

        Raises:
            TransientError: the log is unreachable.
        """
        await self._read()
        new = [g for g in self.timeline.generations if g.topic not in self._infos]
        for generation in new:
            await self.topic(generation)
            log.info(
                "the number of partitions changes",
                topic=generation.topic,
                partitions=generation.partitions,
                begins=format_ts(generation.from_ts),
            )

    async def catch_up(self, appended_ns: int) -> None:
        """Before records are taken: know every generation that their events can belong to.

        Args:
            appended_ns: when the newest of the records was appended, UTC ns.

        Raises:
            TransientError: the log is unreachable.
        """
        if appended_ns > self._looked_at + _STALE_NS:
            await self.refresh()

    async def topic(self, generation: Generation) -> TopicInfo:
        """A generation's topic, created if it does not exist.

        Raises:
            UsageError: it has less partitions than the generation; or more, while that is the
                newest one.
        """
        found = self._infos.get(generation.topic) or await self._bus.find_topic(generation.topic)
        info = found or await self._bus.create_topic(generation.topic, generation.partitions)
        more = info.partitions > generation.partitions
        if info.partitions != generation.partitions and not (more and generation.until < FOREVER):
            msg = (
                f"topic {info.name!r} has {info.partitions} partitions, its generation was made "
                f"with {generation.partitions}; partitions are not added from outside: run "
                f"mdp stream repartition --partitions {info.partitions}"
            )
            raise UsageError(msg)
        self._infos[generation.topic] = info
        return info

    async def enter(self, partitions: int, begins: int, first: int, lead: int) -> Generation:
        """Enter a new generation; of several at once the first in the registry counts.

        Args:
            partitions: its number.
            begins: first src_ts of its events, UTC ns.
            first: partitions of the first generation, if it has to be entered too.
            lead: how much later than its entry it has to begin, ns.

        Returns:
            The generation that is in force under the next number now, whoever entered it.

        Raises:
            UsageError: it took so long to enter it that it was too late.
        """
        number = self.timeline.newest.number + 1
        if not self._begun:
            await self._enter_first(first)
        await self._append(
            _Entered(
                generation=number,
                topic=self._topic_name(number),
                partitions=partitions,
                begins=format_ts(begins),
                lead_ns=lead,
            )
        )
        await self._read()
        found = [g for g in self.timeline.generations if g.number == number]
        if not found:
            msg = f"entering {format_ts(begins)} took until it was too late for it; try again"
            raise UsageError(msg)
        await self.topic(found[0])
        return found[0]

    async def _enter_first(self, partitions: int) -> None:
        await self._bus.create_topic(self._registry, 1)
        await self._append(_Entered(generation=1, topic=self.events_topic, partitions=partitions))
        await self._read()

    async def _append(self, record: _Entered) -> None:
        payload = msgspec.json.encode(record)
        key = f"{record.generation}/{record.partitions}/{record.begins}"
        await self._bus.append(self._registry, [Entry(0, payload, key=key)])

    async def _read(self) -> None:
        """Take in what the registry has more than is known."""
        async with self._reading:  # two at once could take back what the other has learnt
            looked_at = self._clock.now_ns()
            known = self.timeline.generations
            if self._position is None and await self._bus.find_topic(self._registry) is not None:
                self._position = (await self._bus.bounds(self._registry, 0)).first
                known = ()  # it has the first one too
            for record in await self._unread():
                self._begun = True
                known = self._with(known, record)
            if known:
                self.timeline.generations = known
            self._looked_at = looked_at

    async def _unread(self) -> list[Record]:
        records: list[Record] = []
        while self._position is not None:
            places = {0: self._position}
            try:
                found = await self._bus.poll(self._registry, places, _POLL_BYTES, 0)
            except LogLostError as error:
                log.warning("the registry of generations has lost records", reason=str(error))
                self._position = (await self._bus.bounds(self._registry, 0)).first
                return []  # what is known stays known
            if not found:
                break
            records += found[0]
            self._position = records[-1].offset + 1
        return records

    def _with(self, known: tuple[Generation, ...], record: Record) -> tuple[Generation, ...]:
        """`known`, and the generation of a record of the registry if that counts."""
        try:
            entered = msgspec.json.decode(record.payload, type=_Entered)
            begins = parse_ts(entered.begins) if entered.begins else NEVER
        except (msgspec.MsgspecError, RejectedError) as error:
            msg = f"{self._registry}, record {record.offset} cannot be read: {error}"
            raise DamagedFileError(msg) from error
        in_time = begins == NEVER or begins >= record.append_ts + entered.lead_ns
        follows = entered.generation == len(known) + 1
        if not (follows and in_time and (not known or begins > known[-1].from_ts)):
            return known  # somebody else was quicker, or it was entered too late
        before = [replace(known[-1], until=begins)] if known else []
        new = Generation(entered.generation, entered.topic, entered.partitions, begins)
        return (*known[:-1], *before, new)


async def sealed_at(
    bus: Bus, store: Positions, group: str, info: TopicInfo
) -> dict[int, int] | None:
    """The end of each partition, if all that a topic holds is decided and committed.

    A generation whose time is over is sealed then, until somebody writes to it late.

    Returns:
        None if there is something to do.
    """
    rows = await store.status(group, info.name)
    places = {r.key.partition: decode_checkpoint(r.checkpoint) for r in rows if r.checkpoint}
    if any(p.log_id != info.log_id or p.holds_events for p in places.values()):
        return None
    ends = {}
    for number in range(info.partitions):
        place = places.get(number)
        ends[number] = place.counted if place else (await bus.bounds(info.name, number)).first
    try:
        return None if await bus.poll(info.name, ends, 1, 0) else ends
    except LogLostError:
        return None  # its owner has to find out what is missing


async def unpublished(store: Positions, group: str, info: TopicInfo) -> bool:
    """Whether the outbox has messages of a topic: its worker has died, or keeps them till later."""
    numbers = range(info.partitions)
    return any([await store.outbox(group, info.name, number) for number in numbers])
