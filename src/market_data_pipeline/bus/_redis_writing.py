"""Writing to streams: each append once, whatever becomes of its answer; the inbox, relayed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import structlog

from market_data_core.errors import TransientError
from market_data_core.records import Entry
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus._inbox import sorted_out
from market_data_pipeline.bus._redis_directory import Directory
from market_data_pipeline.bus._redis_entries import message_of, next_id, tail_of
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_topic import Topic
from market_data_pipeline.bus._topics import check_partition

log = structlog.get_logger("redis")

_WAIT_MS = 1_000
_UNSURE_MAX = 1_000
_RELAYED_MAX = 10_000


class _Tokens:
    """Numbers of one topic's appends, each until its outcome is known.

    The entries of an append that failed are held, so that nothing else is taken for them. Of
    callers that gave up, the oldest are forgotten.
    """

    def __init__(self) -> None:
        self._last = 0
        self._unsure: dict[int, tuple[int, Sequence[Entry]]] = {}

    def begin(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """The number of this append, and the number up to which all outcomes are known."""
        token, _ = self._unsure.get(id(entries), (0, entries))
        if not token:
            self._last += 1
            token = self._last
            self._unsure[id(entries)] = (token, entries)
            if len(self._unsure) > _UNSURE_MAX:
                del self._unsure[next(iter(self._unsure))]
        return token, next(iter(self._unsure.values()))[0] - 1

    def end(self, entries: Sequence[Entry]) -> None:
        """The outcome of the append is known."""
        self._unsure.pop(id(entries), None)


class Writer:
    """Appends of one client.

    Args:
        link: the server.
        directory: its topics.
        replicas: how many must have an append before it counts.
    """

    def __init__(self, link: Link, directory: Directory, replicas: int) -> None:
        self._link, self._directory, self._replicas = link, directory, replicas
        self._name = uuid.uuid4().hex
        self._tokens: dict[str, _Tokens] = {}  # by name: they go on if a topic is made anew

    async def append(self, topic: Topic, entries: Sequence[Entry]) -> None:
        """Append entries, or nothing if this call was heard before and only its answer was lost."""
        for entry in entries:
            check_partition(topic.info, entry.partition)
        tokens = self._tokens.setdefault(topic.info.name, _Tokens())
        token, low = tokens.begin(entries)
        streams, numbers, rest = _told(topic, entries)
        keys = [topic.meta, topic.seen, f"{topic.key}:writers:{self._name}", *streams]
        arguments = [topic.info.log_id, token, low, numbers, *rest]
        answer = await self._write(scripts.APPEND, keys, arguments)
        tokens.end(entries)
        if answer < 0:
            await self._directory.check(topic)
            msg = f"topic {topic.info.name!r} was not there for a moment: nothing was appended"
            raise TransientError(msg)

    async def _write(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> int:
        if not self._replicas:
            return int(await self._link.run(script, keys, *arguments))
        # on one connection, since the server waits for what that connection wrote
        command = ("EVAL", script, len(keys), *keys, *arguments)
        wait = ("WAIT", self._replicas, _WAIT_MS)
        answer, have = await self._link.several([command, wait], keys)
        if have < self._replicas:
            msg = f"{have} of {self._replicas} replicas have what was appended (bus.redis.replicas)"
            raise TransientError(msg)
        return int(answer)

    async def relay(self, topic: Topic, entries: Sequence[Sequence[Any]], full: bool) -> None:
        """Send what others wrote to the plain name to the partitions of its symbols, once.

        Whoever dies in between has done all of it or nothing: taking entries out of the inbox and
        appending them is one step on the server.

        Args:
            topic: the topic.
            entries: of its inbox, from where it was relayed to on.
            full: there may be more.
        """
        if full:
            start, inbox = next_id(entries[-1][0]), topic.inbox
            command = ("XRANGE", inbox, start, "+", "COUNT", _RELAYED_MAX)
            entries = [*entries, *await self._link.call(*command, keys=[inbox])]
        last = entries[-1][0]
        made = sorted_out([message_of(*entry) for entry in entries], topic.info.partitions)
        streams, numbers, rest = _told(topic, made)
        keys = [topic.meta, topic.seen, topic.inbox, *streams]
        places = [topic.relayed, last.decode(), next_id(last)]
        arguments = [topic.info.log_id, *places, len(entries), numbers, *rest]
        answer = await self._write(scripts.RELAY, keys, arguments)
        if answer < 0:
            await self._directory.check(topic)
        elif not answer:  # another worker was faster, or did it before we came
            relayed = await self._link.call("HGET", topic.meta, "relayed", keys=[topic.meta])
            topic.relayed = (relayed or b"0-0").decode()
        else:
            topic.relayed = last.decode()
            if answer > 1:
                log.error(
                    "messages were removed before they were read; producers must not set MAXLEN",
                    stream=topic.inbox,
                    messages=answer - 1,
                )


def _told(topic: Topic, entries: Sequence[Entry]) -> tuple[list[str], str, list[Any]]:
    """Streams of the entries, their partitions as JSON, and what scripts are told of each entry."""
    numbers = sorted({entry.partition for entry in entries})
    places = {number: place for place, number in enumerate(numbers, 1)}
    rest: list[Any] = []
    for e in entries:
        rest += [places[e.partition], e.count, e.source, e.key, tail_of(e), e.payload]
    return [topic.stream(number) for number in numbers], json.dumps(numbers), rest
