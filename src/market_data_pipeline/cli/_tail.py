"""How ``mdp stream tail`` reads: the last lines, from a place on, and what comes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from market_data_core.config import Settings
from market_data_core.errors import LogLostError, MdpError, UsageError
from market_data_core.feedback import FEEDBACK_TOPIC
from market_data_core.records import Record, TopicInfo
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _log, _output
from market_data_pipeline.cli._tail_lines import Lines
from market_data_pipeline.patience import patient

T = TypeVar("T")
Point = tuple[Literal["offset", "time"], int]
"""A place in a partition: an offset, or a time of appending in UTC ns."""

_FOLLOW_S = 0.5
_LOOK_S = 2.0
_LINES_AT_ONCE = 1_000


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


async def tail(settings: Settings, wanted: Wanted, lines: Lines, follow: bool) -> None:
    """Write the lines that are wanted to standard output.

    Raises:
        UsageError: there is no such topic, partition or place.
        TransientError: the bus is away, and nothing is followed.
    """
    reader = _Reader(settings, wanted, lines, follow)
    try:
        await reader.run()
    finally:
        await reader.bus.close()


class _Reader:
    """One run of the command."""

    def __init__(self, settings: Settings, wanted: Wanted, lines: Lines, follow: bool) -> None:
        self._settings, self._wanted, self._lines = settings, wanted, lines
        self._follow = follow
        self._left = wanted.limit if wanted.begin is not None else None
        self._look_at = 0.0
        self.bus = open_bus(settings)

    async def run(self) -> None:
        """The lines that are there, then those that come."""
        if self._follow:
            await self._wait_for_topic()
        info = await self._retry(lambda: _log.topic_of(self.bus, self._wanted.topic))
        spans = await self._retry(lambda: self._spans(info))
        if self._wanted.begin is None:
            await self._retry(lambda: self._last(spans))
        elif not self._follow:
            await self._from(spans)
        if self._follow:
            last = self._wanted.begin is None
            await self._go_on(info, {n: end if last else at for n, (at, end) in spans.items()})

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """A bus that is away is waited for only by those who follow."""
        return await (patient(call) if self._follow else call())

    async def _wait_for_topic(self) -> None:
        """A topic that a stage will create is waited for, so that tail can be started first."""
        bus, name = self._settings.bus, self._wanted.topic
        if name in (bus.events_topic, bus.bars_topic, LETTERS_TOPIC, FEEDBACK_TOPIC):
            await self._appears(name)

    async def _appears(self, name: str) -> TopicInfo:
        while True:
            info = await patient(lambda: self.bus.find_topic(name))
            if info is not None:
                return info
            await asyncio.sleep(_FOLLOW_S)

    def _numbers(self, info: TopicInfo) -> list[int]:
        chosen = self._wanted.partition
        if chosen is None:
            return list(range(info.partitions))
        if not 0 <= chosen < info.partitions:
            msg = f"--partition {chosen}: topic {info.name!r} has 0 to {info.partitions - 1}"
            raise UsageError(msg)
        return [chosen]

    async def _spans(self, info: TopicInfo) -> dict[int, tuple[int, int]]:
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
            bounds = await self.bus.bounds(info.name, number)
            begin = await self._place(number, self._wanted.begin, bounds.first, "--from")
            end = await self._place(number, self._wanted.end, bounds.next, "--until")
            spans[number] = begin, end
        return spans

    async def _place(self, number: int, point: Point | None, default: int, option: str) -> int:
        if point is None:
            return default
        kind, value = point
        if kind == "time":
            return await self.bus.position_at(self._wanted.topic, number, value)
        bounds = await self.bus.bounds(self._wanted.topic, number)
        if not bounds.first <= value <= bounds.next:
            msg = (
                f"{option} {value}: partition {number} of {self._wanted.topic!r} holds "
                f"{bounds.first} to {bounds.next}"
            )
            raise UsageError(msg)
        return value

    # ---- what is there ---------------------------------------------------------------------

    async def _last(self, spans: dict[int, tuple[int, int]]) -> None:
        limit = self._wanted.limit
        assert limit is not None  # noqa: S101
        found: list[tuple[tuple[int, int, int, int], bytes]] = []
        for number, (_, end) in spans.items():
            found += await self._last_of(number, end, limit)
        found.sort(key=lambda line: line[0])
        _output.write_lines(line for _, line in found[-limit:])

    async def _last_of(
        self, number: int, end: int, limit: int
    ) -> list[tuple[tuple[int, int, int, int], bytes]]:
        """The last `limit` lines of a partition below `end`, each with its place in time."""
        topic, point = self._wanted.topic, self._wanted.end
        if point and point[0] == "time":
            until_ns = point[1]
        else:
            last = await _log.newest(self.bus, topic, number)
            if last is None:
                return []
            until_ns = last.append_ts + 1
        lines: list[tuple[tuple[int, int, int, int], bytes]] = []
        async for block in _log.backwards(self.bus, topic, number, end, until_ns):
            found: list[tuple[tuple[int, int, int, int], bytes]] = []
            for record in reversed(block):
                place = (record.append_ts, number, record.offset)
                some = [((*place, i), line) for i, line in enumerate(self._lines.of(record))]
                found = some[-limit:] + found
                if len(found) + len(lines) >= limit:
                    break
            lines = (found + lines)[-limit:]
            if len(lines) >= limit:
                break
        return lines

    async def _from(self, spans: dict[int, tuple[int, int]]) -> None:
        waiting: list[bytes] = []
        async for record in _log.merged(self.bus, self._wanted.topic, spans):
            waiting += self._of(record)
            if len(waiting) >= _LINES_AT_ONCE or self._left == 0:
                _output.write_lines(waiting)
                waiting = []
            if self._left == 0:
                return
        _output.write_lines(waiting)

    def _of(self, record: Record) -> Iterator[bytes]:
        """The lines of a record, as far as any are still wanted."""
        for line in self._lines.of(record):
            if self._left == 0:
                return
            if self._left is not None:
                self._left -= 1
            yield line

    # ---- what comes ------------------------------------------------------------------------

    async def _go_on(self, info: TopicInfo, positions: dict[int, int]) -> None:
        while self._left != 0:
            try:
                found = await self._coming(info, positions)
            except (LogLostError, UsageError) as error:
                info, positions = await self._found_again(info, positions, error)
                continue
            for number, records in found.items():
                positions[number] = records[-1].offset + 1
            coming = [record for records in found.values() for record in records]
            coming.sort(key=lambda r: (r.append_ts, r.partition, r.offset))
            _output.write_lines([line for record in coming for line in self._of(record)])

    async def _coming(self, info: TopicInfo, positions: dict[int, int]) -> dict[int, list[Record]]:
        """What has come; while nothing comes, looks now and then whether the log is another.

        Raises:
            LogLostError: it is another, or has lost what was to be read.
        """
        found = await patient(
            lambda: self.bus.poll(info.name, positions, _log.POLL_BYTES, _FOLLOW_S)
        )
        if not found and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            now = await patient(lambda: self.bus.find_topic(info.name))
            if now is None or now.log_id != info.log_id:
                msg = f"topic {info.name!r} was dropped"
                raise LogLostError(msg)
        return found

    async def _found_again(
        self, info: TopicInfo, positions: dict[int, int], error: MdpError
    ) -> tuple[TopicInfo, dict[int, int]]:
        """Go on where the log has lost what was to be read, or in one that took its place.

        Raises:
            MdpError: `error`, if the log is as it was.
        """
        await self.bus.close()
        self.bus = open_bus(self._settings)
        now = await self._appears(info.name)
        same = now.log_id == info.log_id
        if not same:
            sys.stderr.write(f"{info.name} was made anew; going on with its beginning\n")
        found = {}
        for number in self._numbers(now):
            bounds = await patient(lambda p=number: self.bus.bounds(info.name, p))  # type: ignore[misc]
            at = positions.get(number, bounds.first) if same else bounds.first
            found[number] = min(max(at, bounds.first), bounds.next)
            if same and found[number] != at:
                sys.stderr.write(
                    f"partition {number} of {info.name} no longer holds position {at}; going on "
                    f"with {found[number]}\n"
                )
        if same and found == positions:
            raise error
        return now, found
