"""Membership in a consumer group: which partitions Kafka gives us, and nothing else.

The consumer here never fetches. Reading goes by positions from the store, whatever the group says
meanwhile; so a revocation has nothing to flush and nothing to commit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_core.records import Place
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_topics import group_offsets

log = structlog.get_logger("kafka")

_POLL_S = 0.02
_FIRST_S = 2.0
_SILENT_S = 300.0
"""Of whom is not asked for so long, another member can have the partitions."""


class Member:
    """One member of a group on one topic, kept alive by a thread of its own.

    Args:
        link: makes the consumer.
        topic: as the brokers call it.
        group: consumer group.
    """

    def __init__(self, link: Link, topic: str, group: str) -> None:
        self._link, self._topic = link, topic
        self._what = f"group {group!r}"
        more = {"group_id": group, "session_timeout_ms": str(link.settings.session_timeout_ms)}
        more["heartbeat_interval_ms"] = str(max(100, link.settings.session_timeout_ms // 6))
        more["partition_assignment_strategy"] = "cooperative-sticky"
        more["topic_metadata_refresh_interval_ms"] = "10000"
        if link.settings.group_instance_id:
            more["group_instance_id"] = link.settings.group_instance_id
        self._options = more
        self._mine: frozenset[int] = frozenset()
        self._error: MdpError | None = None
        self._displaced = ""
        self._asked = time.monotonic()
        self._leaving = threading.Event()
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._places: dict[int, Place] = {}
        self._thread = threading.Thread(target=self._stay, name="kafka-member", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until the group has answered for the first time, or that takes too long."""
        self._told.wait(_FIRST_S)

    def partitions(self) -> frozenset[int]:
        """What is ours now.

        Raises:
            UsageError: the brokers do not let us in; or, from then on until it leaves, another
                process has taken this member's place.
        """
        self._asked = time.monotonic()
        if self._displaced:
            raise UsageError(self._displaced)
        error, self._error = self._error, None
        if error:
            raise error
        return self._mine

    def commit(self, places: Mapping[int, Place]) -> None:
        """Show where the group has come to, of what is ours; returns without waiting."""
        with self._lock:
            self._places.update(places)

    def leave(self) -> None:
        """Give up what is ours; blocks until the group was told, or that took too long."""
        self._leaving.set()
        self._thread.join(2 * self._link.timeout_s)

    def _stay(self) -> None:
        while not (self._leaving.is_set() or self._displaced):
            if self._is_forgotten():
                self._leaving.wait(_POLL_S)
                continue
            consumer = self._link.consumer(**self._options)
            calls = {"on_assign": self._assigned, "on_revoke": self._revoked}
            try:
                consumer.subscribe([self._topic], **calls, on_lost=self._revoked)
                self._poll(consumer)
            except KafkaException as error:  # of a rebalance that came to nothing
                self._expelled(error.args[0])
            finally:
                consumer.close()
                self._mine = frozenset()
            self._leaving.wait(_POLL_S)

    def _is_forgotten(self) -> bool:
        return time.monotonic() - self._asked > _SILENT_S

    def _poll(self, consumer: Consumer) -> None:
        while not (self._leaving.is_set() or self._is_forgotten()):
            message = consumer.poll(_POLL_S)
            self._commit(consumer)
            error = None if message is None else message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                continue
            if error.fatal() or error.code() == KafkaError._FATAL:
                self._expelled(error)
                return
            translated = self._link.error(error, self._what)
            if not isinstance(translated, TransientError):
                self._error = translated

    def _expelled(self, error: KafkaError) -> None:
        """Join again, but not where another process would be thrown out in turn."""
        instance = self._link.settings.group_instance_id
        if instance and "fenced" in error.str():
            self._displaced = (
                f"another process has become {instance!r} in {self._what}: "
                "bus.kafka.group_instance_id has to differ between processes"
            )
        else:
            self._error = self._link.error(error, self._what)

    def _commit(self, consumer: Consumer) -> None:
        with self._lock:
            places, self._places = self._places, {}
        offsets = group_offsets(self._topic, {p: places[p] for p in places if p in self._mine})
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:  # a later one will show it
                log.debug("offsets not committed", topic=self._topic, error=str(error))

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        fresh = [TopicPartition(p.topic, p.partition, OFFSET_END) for p in places]
        consumer.incremental_assign(fresh)
        consumer.pause(fresh)
        self._told.set()
        self._mine |= {p.partition for p in places}
        if places:
            given = sorted(p.partition for p in places)
            log.info("partitions given", topic=self._topic, partitions=given)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        consumer.incremental_unassign(places)
        taken = {p.partition for p in places}
        self._mine -= taken
        if taken:
            log.info("partitions taken", topic=self._topic, partitions=sorted(taken))
