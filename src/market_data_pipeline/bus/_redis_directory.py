"""Which topics a Redis server has, and whether they still are the ones a client knows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from market_data_core.errors import LogLostError, UsageError
from market_data_core.records import TopicInfo
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus._redis_link import Link
from market_data_pipeline.bus._redis_topic import Topic
from market_data_pipeline.bus._topics import (
    Losses,
    NoTopicError,
    check_name,
    check_partition,
    check_partitions,
)

_FORMAT = "1"


class Directory:
    """The topics under one prefix of keys.

    Args:
        link: the server.
        prefix: what every key begins with.
        losses: takes note of topics that are gone.
    """

    def __init__(self, link: Link, prefix: str, losses: Losses) -> None:
        self._link, self._prefix, self._losses = link, prefix, losses
        self._known: dict[str, Topic] = {}

    @property
    def _all(self) -> str:
        """Key of the set of topics; no topic's name has a colon."""
        return f"{self._prefix}mdp:topics"

    def _key(self, name: str) -> str:
        check_name(name)
        return f"{self._prefix}{name}"

    async def create(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist."""
        key = self._key(name)
        fresh = uuid.uuid4().hex
        keys = [f"{key}:meta", self._all]
        answer = await self._link.run(scripts.CREATE, keys, fresh, partitions, _FORMAT, name)
        info = self._remember(name, answer).info
        check_partitions(info, partitions)
        self._losses.forget(name)
        return info

    async def find(self, name: str) -> Topic | None:
        """The topic as it is now; None if it does not exist."""
        meta = f"{self._key(name)}:meta"
        fields = ("log_id", "partitions", "format")
        answer = await self._link.call("HMGET", meta, *fields, keys=[meta])
        if answer[0] is None:
            self._forget(name)
            return None
        return self._remember(name, answer)

    async def names(self) -> list[str]:
        """Names of all topics, in order."""
        members = await self._link.call("SMEMBERS", self._all, keys=[self._all])
        return sorted(member.decode() for member in members)

    async def drop(self, name: str) -> None:
        """Remove a topic and all it holds; no error if it does not exist."""
        topic = await self.find(name)
        if topic is not None:
            self._forget(name)
            await self._link.run(scripts.DROP, [self._all, *topic.keys], name)
        self._losses.forget(name)

    async def get(self, name: str, partition: int = 0) -> Topic:
        """The topic as this client knows it.

        Raises:
            UsageError: there is no such topic, or it has no such partition.
        """
        topic = self._known.get(name) or await self.find(name)
        if topic is None:
            raise NoTopicError(name)
        check_partition(topic.info, partition)
        return topic

    def known(self, name: str) -> Topic | None:
        """The topic, if this client knows it; asks nobody."""
        return self._known.get(name)

    def _remember(self, name: str, answer: Sequence[bytes]) -> Topic:
        log_id, partitions, written = (value.decode() for value in answer)
        if written != _FORMAT:
            msg = (
                f"topic {name!r} has format {written}, this release reads {_FORMAT}; use the "
                "release that wrote it, or another bus.redis.key_prefix"
            )
            raise UsageError(msg)
        info = TopicInfo(name, log_id, int(partitions))
        known = self._known.get(name)
        if known is None or known.info != info:
            self._forget(name)
            known = self._known[name] = Topic(info, self._key(name))
        return known

    def _forget(self, name: str) -> None:
        if self._known.pop(name, None):
            self._losses.note(name)

    def require_same(self, topic: Topic, log_id: bytes | None) -> None:
        """Refuse to go on in a log that is another one by now.

        Raises:
            LogLostError: it is, or there is none any more.
        """
        if (log_id or b"").decode() == topic.info.log_id:
            return
        name = topic.info.name
        if self._known.get(name) is topic:
            self._forget(name)
        what = "was replaced by another one of its name" if log_id else "is gone"
        msg = f"topic {name!r} {what} while in use: somebody has removed it from the server"
        raise LogLostError(msg)

    async def check(self, topic: Topic) -> None:
        """Ask whether a topic is still the same log; errors as :meth:`require_same`."""
        meta = topic.meta
        self.require_same(topic, await self._link.call("HGET", meta, "log_id", keys=[meta]))
