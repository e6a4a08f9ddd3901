"""One topic as ``mdp stream tail`` reads it: a span of it, its last lines, and what comes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from market_data_core.config import Settings
from market_data_core.errors import LogLostError, MdpError, UsageError
from market_data_core.records import Record, TopicInfo
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _log
from market_data_pipeline.cli._tail_lines import Lines
from market_data_pipeline.past_holes import poll_past_holes
from market_data_pipeline.patience import patient

Point = tuple[Literal["offset", "time"], int]
"""A place in a partition: an offset, or a time of appending in UTC ns."""
Placed = tuple[tuple[int, int, int, int], bytes]
"""A line, after its record's time of appending, partition, offset and its number within that."""

FOLLOW_S = 0.5
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a topic is wanted.

    Attributes:
        topic: its name.
        partition: None for all.
        begin: None for the last lines.
        end: None for all there is.
        limit: lines; None for all.
    """

    topic: str
    partition: int | None
    begin: Point | None
    end: Point | None
    limit: int | None

    @property
    def by_offset(self) -> bool:
        """Whether a place is told by an offset, which means something in one topic alone."""
        return any(point and point[0] == "offset" for point in (self.begin, self.end))


class TopicTail:
    """One topic, with a client of the bus of its own.

    Args:
        settings: say where the bus is.
        name: of the topic.
        wanted: what of it is wanted.
        lines: makes lines of records.

    Attributes:
        name: as above.
        positions: partition -> offset up to which it has been shown.
    """

    def __init__(self, settings: Settings, name: str, wanted: Wanted, lines: Lines) -> None:
        self._settings, self.name, self._wanted, self._lines = settings, name, wanted, lines
        self._look_at = 0.0
        self._info = TopicInfo(name, "", 0)
        self._spans: dict[int, tuple[int, int]] = {}
        self.positions: dict[int, int] = {}
        self._bus = open_bus(settings)

    async def find(self) -> TopicInfo:
        """The topic.

        Raises:
            UsageError: there is none.
        """
        self._info = await _log.topic_of(self._bus, self.name)
        return self._info

    async def appears(self) -> TopicInfo:
        """The topic, which is waited for."""
        while True:
            info = await patient(lambda: self._bus.find_topic(self.name))
            if info is not None:
                return info
            await asyncio.sleep(FOLLOW_S)

    async def open(self) -> None:
        """Find what is wanted of the topic as it is now.

        Raises:
            UsageError: it has no such partition or place.
        """
        self._spans = await self._find_spans(await self.find())
        last = self._wanted.begin is None
        self.positions = {n: end if last else at for n, (at, end) in self._spans.items()}

    async def open_new(self) -> None:
        """Begin with the first record of a topic that has just been made."""
        self._info = await self.appears()
        for number in self._numbers(self._info):
            bounds = await patient(lambda p=number: self._bus.bounds(self.name, p))  # type: ignore[misc]
            self.positions[number] = bounds.first

    def _numbers(self, info: TopicInfo) -> list[int]:
        chosen = self._wanted.partition
        if chosen is None:
            return list(range(info.partitions))
        if not 0 <= chosen < info.partitions:
            msg = f"--partition {chosen}: topic {info.name!r} has 0 to {info.partitions - 1}"
            raise UsageError(msg)
        return [chosen]

    async def _find_spans(self, info: TopicInfo) -> dict[int, tuple[int, int]]:
        """Partition -> offsets between which it is read."""
        numbers = self._numbers(info)
        for option, point in (("--from", self._wanted.begin), ("--until", self._wanted.end)):
            if point and point[0] == "offset" and len(numbers) > 1:
                msg = (
                    f"{option} {point[1]} is an offset, and topic {info.name!r} has "
                    f"{info.partitions} partitions; add --partition, or give a time"
                )
                raise UsageError(msg)
        spans = {}
        for number in numbers:
            bounds = await self._bus.bounds(info.name, number)
            begin = await self._place(number, self._wanted.begin, bounds.first, "--from")
            end = await self._place(number, self._wanted.end, bounds.next, "--until")
            spans[number] = begin, end
        return spans

    async def _place(self, number: int, point: Point | None, default: int, option: str) -> int:
        if point is None:
            return default
        kind, value = point
        if kind == "time":
            return await self._bus.position_at(self.name, number, value)
        bounds = await self._bus.bounds(self.name, number)
        if not bounds.first <= value <= bounds.next:
            msg = (
                f"{option} {value}: partition {number} of {self.name!r} holds "
                f"{bounds.first} to {bounds.next}"
            )
            raise UsageError(msg)
        return value

    # ---- what is there ---------------------------------------------------------------------

    def records(self) -> AsyncIterator[Record]:
        """What is wanted of that which was there when it was opened, in order of appending."""
        return _log.merged(self._bus, self.name, self._spans)

    async def last(self, limit: int) -> list[Placed]:
        """The last `limit` lines of each partition."""
        found: list[Placed] = []
        for number, (_, end) in self._spans.items():
            found += await self._last_of(number, end, limit)
        return found

    async def _last_of(self, number: int, end: int, limit: int) -> list[Placed]:
        """The last `limit` lines of a partition below `end`."""
        topic, point = self.name, self._wanted.end
        if point and point[0] == "time":
            until_ns = point[1]
        else:
            last = await _log.newest(self._bus, topic, number)
            if last is None:
                return []
            until_ns = last.append_ts + 1
        lines: list[Placed] = []
        async for block in _log.backwards(self._bus, topic, number, end, until_ns):
            found: list[Placed] = []
            for record in reversed(block):
                place = (record.append_ts, number, record.offset)
                of_record = enumerate(self._lines.of(record, topic))
                found = [((*place, i), line) for i, line in of_record][-limit:] + found
                if len(found) + len(lines) >= limit:
                    break
            lines = (found + lines)[-limit:]
            if len(lines) >= limit:
                break
        return lines

    # ---- what comes ------------------------------------------------------------------------

    async def follow(self, show: Callable[[str, Sequence[Record]], bool]) -> None:
        """Show records from the positions on as they come, until nothing more is wanted.

        Args:
            show: takes the topic and records in order of appending; whether more is wanted.
        """
        wanted = True
        while wanted:
            try:
                found = await self._coming()
            except (LogLostError, UsageError) as error:
                await self._find_again(error)
                continue
            for number, records in found.items():
                self.positions[number] = records[-1].offset + 1
            coming = [record for records in found.values() for record in records]
            coming.sort(key=lambda r: (r.append_ts, r.partition, r.offset))
            wanted = show(self.name, coming)

    async def _coming(self) -> dict[int, list[Record]]:
        """What has come; while nothing comes, looks now and then whether the log is another.

        Raises:
            LogLostError: it is another, or has lost what was to be read.
        """
        found = await patient(
            lambda: poll_past_holes(self._bus, self.name, self.positions, _log.POLL_BYTES, FOLLOW_S)
        )
        if not found and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            now = await patient(lambda: self._bus.find_topic(self.name))
            if now is None or now.log_id != self._info.log_id:
                msg = f"topic {self.name!r} was dropped"
                raise LogLostError(msg)
        return found

    async def _find_again(self, error: MdpError) -> None:
        """Go on where the log has lost what was to be read, or in one that took its place.

        Raises:
            MdpError: `error`, if the log is as it was.
        """
        await self._bus.close()
        self._bus = open_bus(self._settings)
        now = await self.appears()
        same = now.log_id == self._info.log_id
        if not same:
            sys.stderr.write(f"{self.name} was made anew; going on with its beginning\n")
        found = {}
        for number in self._numbers(now):
            bounds = await patient(lambda p=number: self._bus.bounds(self.name, p))  # type: ignore[misc]
            at = self.positions.get(number, bounds.first) if same else bounds.first
            found[number] = min(max(at, bounds.first), bounds.next)
            if same and found[number] != at:
                sys.stderr.write(
                    f"partition {number} of {self.name} no longer holds position {at}; going on "
                    f"with {found[number]}\n"
                )
        if same and found == self.positions:
            raise error
        self._info, self.positions = now, found

    async def close(self) -> None:
        """Let go of the bus."""
        await self._bus.close()
