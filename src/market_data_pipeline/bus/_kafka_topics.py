"""Topics on the brokers: making, finding, checking, and where their partitions begin and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import structlog
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    ConfigResource,
    NewTopic,
    ResourceType,
)

from market_data_core.errors import TransientError, UsageError
from market_data_core.records import Bounds, Place, TopicInfo
from market_data_pipeline.bus._kafka_link import Link, is_stale, is_unknown
from market_data_pipeline.bus._topics import NoTopicError, is_name

T = TypeVar("T")
log = structlog.get_logger("kafka")

_NS_PER_MS = 1_000_000
_MS_PER_HOUR = 3_600_000
_PAUSE_S = 0.01
_INDEX_BYTES = str(256 << 10)
"""A broker makes a partition's two indices at full size when they are first used, 10 MiB by
default, while writers wait; of this size they still lead through a segment of 90 MB."""
_TRIES = 5
EARLIEST, LATEST = -2, -1
"""Times by which :meth:`Topics.offsets` finds the first record, and the end."""


class Topics:
    """Blocking calls about topics; safe to use from several threads.

    Args:
        link: the way to the brokers.
        retention_hours: how long records are to be kept at least.
    """

    def __init__(self, link: Link, retention_hours: float) -> None:
        self._link = link
        self._retention_ms = retention_hours * _MS_PER_HOUR
        self._warned: set[str] = set()
        self._consumer: Consumer | None = None
        self._lock = threading.Lock()
        self._wait = {"request_timeout": link.timeout_s}

    def on_broker(self, name: str) -> str:
        """What the brokers call a topic."""
        return self._link.settings.topic_prefix + name

    def find(self, name: str) -> TopicInfo | None:
        """The topic, or None."""
        return next(iter(self._describe([name])), None)

    def all(self) -> list[TopicInfo]:
        """All topics that could be ours, by name."""
        what = "the list of topics"
        try:
            found = self._link.admin.list_topics(timeout=self._link.timeout_s).topics
        except KafkaException as error:
            raise self._link.error(error.args[0], what) from error
        prefix = self._link.settings.topic_prefix
        names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        return self._describe(sorted(filter(is_name, names)))

    def _describe(self, names: list[str]) -> list[TopicInfo]:
        if not names:
            return []
        asked = TopicCollection([self.on_broker(name) for name in names])
        found = self._link.admin.describe_topics(asked, **self._wait)
        infos = []
        for name in names:
            try:
                told = self._link.result(found[self.on_broker(name)], f"topic {name!r}")
            except KafkaException:
                continue
            infos.append(TopicInfo(name, str(told.topic_id), len(told.partitions)))
        return infos

    def create(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist; warns of settings that lose records."""
        info = self.find(name)
        if info is None:
            info = self._create(name, partitions)
        self._look_at_settings(name)
        return info

    def _create(self, name: str, partitions: int) -> TopicInfo:
        settings = self._link.settings
        config = {
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "segment.index.bytes": _INDEX_BYTES,
            "max.message.bytes": str(settings.message_max_bytes),
            **settings.topic_config,
        }
        new = NewTopic(self.on_broker(name), partitions, settings.replication_factor, config=config)
        future = self._link.admin.create_topics([new], **self._wait)[self.on_broker(name)]
        try:
            future.result(self._link.timeout_s + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._link.error(error.args[0], f"topic {name!r}") from error
        return self._until(lambda: self._led(name), f"topic {name!r} is not ready yet")

    def _led(self, name: str) -> TopicInfo | None:
        """The topic once all of its partitions can be asked."""
        info = self.find(name)
        if info is None:
            return None
        try:
            self.offsets(name, range(info.partitions), LATEST)
        except (TransientError, NoTopicError):
            return None
        return info

    def drop(self, name: str) -> None:
        """Remove a topic; returns when it cannot be found any more."""
        future = self._link.admin.delete_topics([self.on_broker(name)], **self._wait)
        try:
            self._link.result(future[self.on_broker(name)], f"topic {name!r}")
        except KafkaException:
            return
        self._until(lambda: self.find(name) is None, f"topic {name!r} is still there")

    def _until(self, found: Callable[[], T | None], otherwise: str) -> T:
        deadline = time.monotonic() + self._link.timeout_s
        while not (answer := found()):
            if time.monotonic() > deadline:
                raise TransientError(otherwise)
            time.sleep(_PAUSE_S)
        return answer

    def offsets(self, name: str, partitions: Iterable[int], at_ms: int) -> dict[int, int]:
        """Where partitions begin, end, or reach a time of appending.

        Asked by a consumer that fetches nothing: a broker answers each connection in its order,
        so that behind a fetch which waits for news the answer would come late.

        Args:
            name: of the topic.
            partitions: which.
            at_ms: :data:`EARLIEST`, :data:`LATEST`, or UTC ms; -1 comes where nothing is as late.

        Raises:
            NoTopicError: there is no such topic.
        """
        asked = [TopicPartition(self.on_broker(name), p, at_ms) for p in partitions]
        with self._lock:
            if self._consumer is None:
                self._consumer = self._link.consumer()
            self._consumer.poll(0)  # takes its log lines
            return self._offsets(name, asked, self._consumer)

    def _offsets(self, name: str, asked: list[TopicPartition], by: Consumer) -> dict[int, int]:
        for tries in range(_TRIES):
            try:
                found = by.offsets_for_times(asked, timeout=self._link.timeout_s)
            except KafkaException as failed:
                error = failed.args[0]
            else:
                errors = [place.error for place in found if place.error]
                if not errors:
                    return {place.partition: place.offset for place in found}
                error = errors[0]
            if is_unknown(error) and self.find(name) is None:
                raise NoTopicError(name)
            if not (is_stale(error) or is_unknown(error)):
                raise self._link.error(error, f"topic {name!r}")
            time.sleep(_PAUSE_S * tries)  # who leads was just looked up again
        msg = f"topic {name!r} has no leader"
        raise TransientError(msg)

    def close(self) -> None:
        """Leave the brokers."""
        with self._lock:
            if self._consumer:
                self._consumer.close()
                self._consumer = None

    def bounds(self, name: str, partition: int) -> Bounds:
        """What a partition holds."""
        first = self.offsets(name, [partition], EARLIEST)[partition]
        return Bounds(first, self.offsets(name, [partition], LATEST)[partition])

    def position_at(self, name: str, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` or later, else the end."""
        at_ms = max(0, -(-append_ns // _NS_PER_MS))
        found = self.offsets(name, [partition], at_ms)[partition]
        return found if found >= 0 else self.offsets(name, [partition], LATEST)[partition]

    def trim(self, name: str, partition: int, below: int) -> None:
        """Forget the records of a partition below an offset."""
        place = TopicPartition(self.on_broker(name), partition, below)
        future = self._link.admin.delete_records([place], **self._wait)[place]
        try:
            self._link.result(future, f"topic {name!r}")
        except KafkaException as error:
            raise NoTopicError(name) from error

    def message_bytes_max(self, name: str) -> int:
        """Most bytes of a message, before it is compressed, that we and the topic surely take.

        Raises:
            UsageError: the topic does not take the batches of messages that a producer makes.
        """
        ours, batch = self._link.settings.message_max_bytes, self._link.batch_bytes_max
        theirs = int(self._settings(name).get("max.message.bytes") or ours)
        if theirs < batch:
            msg = (
                f"topic {name!r} takes messages of {theirs} bytes, and several are sent as a batch "
                f"of up to {batch}: raise max.message.bytes of the topic, or set batch.size in "
                f"bus.kafka.options to {theirs} at most"
            )
            raise UsageError(msg)
        return min(ours, theirs)

    def _settings(self, name: str) -> Mapping[str, str]:
        """The settings of a topic; none where they are not ours to see."""
        asked = ConfigResource(ResourceType.TOPIC, self.on_broker(name))
        future = self._link.admin.describe_configs([asked], **self._wait)[asked]
        try:
            found = self._link.result(future, f"topic {name!r}")
        except (KafkaException, UsageError) as error:
            log.debug("the settings of a topic cannot be seen", topic=name, error=str(error))
            return {}
        return {key: entry.value for key, entry in found.items()}

    def _look_at_settings(self, name: str) -> None:
        """Warn once of what lets records be lost or bear a wrong time of appending."""
        if name in self._warned:
            return
        found = self._settings(name)
        self._warned.add(name)
        if not found:
            return
        wrong = []
        if found.get("message.timestamp.type") != "LogAppendTime":
            wrong.append("message.timestamp.type=LogAppendTime")
        kept_ms = int(found.get("retention.ms") or -1)
        if 0 <= kept_ms < self._retention_ms:
            wrong.append("retention.ms=-1, or bus.retention.hours lower than it")
        if int(found.get("retention.bytes") or -1) >= 0:
            wrong.append("retention.bytes=-1")
        if "compact" in (found.get("cleanup.policy") or ""):
            wrong.append("cleanup.policy=delete")
        if wrong:
            log.warning(
                "the brokers may forget records before they are read, or misdate them",
                topic=self.on_broker(name),
                set_with_kafka_configs=wrong,
            )


def group_offsets(topic: str, places: Mapping[int, Place]) -> list[TopicPartition]:
    """What a group commits: where it resumes; in the metadata, up to where it has counted."""
    return [
        TopicPartition(topic, p, place.resume, metadata=f"counted={place.counted}")
        for p, place in places.items()
    ]
