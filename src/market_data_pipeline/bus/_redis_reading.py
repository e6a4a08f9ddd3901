"""Reading streams in their order, and noticing what is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from market_data_core.errors import LogHoleError, LogLostError, TransientError
from market_data_core.records import Bounds, Record
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus._redis_directory import Directory
from market_data_pipeline.bus._redis_entries import (
    Cursor,
    id_of,
    is_crowded,
    offset_of,
    others_of,
    record_of,
)
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_topic import Topic
from market_data_pipeline.bus._redis_writing import Writer

log = structlog.get_logger("redis")

_CHECK_EVERY_S = 1.0
_Answer = Sequence[tuple[bytes, list[Any]]]


class Reader:
    """Polls of one client.

    Args:
        link: the server.
        directory: its topics.
        writer: sends on what is in an inbox.
    """

    def __init__(self, link: Link, directory: Directory, writer: Writer) -> None:
        self._link, self._directory, self._writer = link, directory, writer

    async def state(self, topic: Topic, partition: int) -> tuple[Bounds, int, int]:
        """Bounds, events received, and greatest source position."""
        keys = [topic.meta, topic.stream(partition)]
        answer = await self._link.run(scripts.BOUNDS, keys, partition)
        log_id, last, trimmed, robbed, received, source = answer
        self._directory.require_same(topic, log_id)
        end = offset_of(last) + 1 if last != b"0-0" else 0
        begin = max(offset_of(place) if place else 0 for place in (trimmed, robbed))
        return Bounds(min(begin, end), end), int(received), int(source)

    async def poll(
        self, topic: Topic, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records at or behind each partition's position; waits up to `timeout_s` for some."""
        if not positions:
            await asyncio.sleep(timeout_s)
            return {}
        cursors = await self._arrive(topic, positions)
        share = max(1, max_bytes // len(positions))
        deadline, inbox = time.monotonic() + timeout_s, True
        while True:
            left = max(0.0, deadline - time.monotonic())
            wait_s = min(left, self._link.block_s) if inbox else 0.0
            answer, relayed = await self._read(topic, positions, share, wait_s, inbox)
            found = self._taken(topic, cursors, answer, share)
            now = time.monotonic()
            if now >= topic.checked_at:
                topic.checked_at = now + _CHECK_EVERY_S
                await self._check(topic, cursors, found)
            for number, cursor in cursors.items():
                topic.took(cursor, positions[number], found.get(number, ()))
            if found:
                return found
            if now >= deadline and not relayed:
                return {}
            inbox = now < deadline  # at last, look at what was relayed, and at nothing else

    async def _arrive(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, Cursor]:
        """The readers' places; checks positions that no poll has led to."""
        found = {}
        for number, position in positions.items():
            cursor = topic.cursors.get((number, position))
            if cursor is None:
                bounds = (await self.state(topic, number))[0]
                if not bounds.first <= position <= bounds.next:
                    msg = (
                        f"topic {topic.info.name!r}, partition {number}: position {position} is "
                        f"not in the log, which holds {bounds.first} to {bounds.next}"
                    )
                    raise LogLostError(msg)
                received = await self._received(topic, number, position)
                # whoever reads on behind a hole has been told of it
                told = topic.holes.get(number, frozenset())
                cursor = Cursor(number, position, received, told)
            found[number] = cursor.copy()
        return found

    async def _received(self, topic: Topic, partition: int, position: int) -> int | None:
        """Events before a position that no poll has led to, by which a hole right there shows.

        The entry before it tells; if others wrote that, the last one of ours before it, and one
        event for each of theirs. So one of theirs in between that was removed after it had been
        read is told of as missing. If the entry before the position is gone (trimmed, or removed
        once it was read), or more than a thousand of theirs come before it, nobody can tell, and
        what was removed right behind the position is passed over in silence.

        Returns:
            None if nothing tells.
        """
        if not position:
            return None
        stream = topic.stream(partition)
        received = await self._link.run(scripts.BEHIND, [stream], id_of(position - 1))
        return int(received) if received else None

    async def _read(
        self,
        topic: Topic,
        positions: Mapping[int, int],
        share: int,
        wait_s: float,
        inbox: bool,
    ) -> tuple[_Answer, bool]:
        """What has come; what is in the inbox is sent on its way, and whether something was."""
        count = topic.entries_for(share)
        block = ("BLOCK", max(1, int(wait_s * 1e3))) if wait_s > 0 else ()
        streams = [topic.stream(partition) for partition in positions]
        after = [id_of(position - 1) if position else "0-0" for position in positions.values()]
        if inbox and topic.groups and topic.inbox and 0 in positions:
            streams, after = [*streams, topic.inbox], [*after, topic.relayed]
        command = ("XREAD", "COUNT", count, *block, "STREAMS", *streams, *after)
        try:
            answer = await self._link.call(*command, keys=streams)
        except TransientError:
            topic.checked_at = 0.0  # the server may come back with less than it had
            raise
        here = [(name, entries) for name, entries in answer or () if entries]
        theirs = [entries for name, entries in here if name.decode() == topic.inbox]
        for entries in theirs:
            await self._writer.relay(topic, entries, full=len(entries) >= count)
        return [(n, entries) for n, entries in here if n.decode() != topic.inbox], bool(theirs)

    def _taken(
        self, topic: Topic, cursors: Mapping[int, Cursor], answer: _Answer, share: int
    ) -> dict[int, list[Record]]:
        """The records of an answer."""
        numbers = {topic.stream(number).encode(): number for number in cursors}
        found: dict[int, list[Record]] = {}
        largest, most = 0.0, 0
        for name, entries in answer:
            number = numbers[name]
            cursor = cursors[number]
            records, size = others_of(number, entries, share)
            cursor.follow_others(records)
            for place, fields in entries[len(records) :] if size < share else ():
                record, received = record_of(number, place, fields)
                try:
                    forgotten = cursor.follow(topic.info.name, record, received)
                except LogHoleError:
                    if records:
                        break  # first hand over what is whole
                    topic.told(cursor, record.offset)
                    raise
                if forgotten:
                    topic.checked_at = 0.0  # is it still the same log?
                    self._tell_forgotten(topic, number, forgotten)
                records.append(record)
                size += len(record.payload)
                if size >= share:
                    break
            found[number] = records
            if is_crowded(records[-1].offset):
                topic.checked_at = 0.0
            largest, most = max(largest, size / len(records)), max(most, len(entries))
        if found:
            topic.weigh(most, largest)
        return found

    @staticmethod
    def _tell_forgotten(topic: Topic, partition: int, events: int | None) -> None:
        log.error(
            "the server has lost its latest records; what was read of them stays",
            topic=topic.info.name,
            partition=partition,
            events=events,
        )

    async def _check(
        self,
        topic: Topic,
        cursors: Mapping[int, Cursor],
        found: Mapping[int, Sequence[Record]],
    ) -> None:
        """Whether it is still the same log, and where nothing came, reaches to its readers.

        A server that has lost its latest records goes on behind the place that readers have
        reached, so that they miss nothing of what comes.

        Raises:
            LogLostError: it is another one, or has something else in place of what was read.
        """
        if found and not any(is_crowded(records[-1].offset) for records in found.values()):
            await self._directory.check(topic)
            return
        streams = [topic.stream(number) for number in cursors]
        log_id, *ends = await self._link.run(scripts.ENDS, [topic.meta, *streams])
        self._directory.require_same(topic, log_id)
        for (number, cursor), stream, last in zip(cursors.items(), streams, ends, strict=True):
            end = offset_of(last)
            if last == b"0-0" or end + 1 >= cursor.position:
                continue
            if end not in topic.recent.get(number, ()):
                msg = (
                    f"topic {topic.info.name!r}, partition {number}: the server has lost records "
                    f"before position {cursor.position}, and others have taken their places"
                )
                raise LogLostError(msg)
            if await self._link.run(scripts.SKIP, [stream], last, id_of(cursor.position - 1)):
                cursor.received = None
                self._tell_forgotten(topic, number, None)
