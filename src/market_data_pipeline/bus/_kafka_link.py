"""What every client of the Kafka brokers has in common: options, errors and logs."""

from __future__ import annotations

import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneError
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from market_data_core.config import KafkaBusSettings
from market_data_core.errors import LogLostError, MdpError, TransientError, UsageError
from market_data_core.redaction import redact
from market_data_pipeline.bus._topics import WHILE_IN_USE

T = TypeVar("T")
log = structlog.get_logger("kafka")

_EVERY = {
    "log.connection.close": "false",
    "reconnect.backoff.ms": "50",
    "reconnect.backoff.max.ms": "1000",
    "socket.nagle.disable": "true",
    "topic.metadata.refresh.fast.interval.ms": "50",
}
_PRODUCER = {
    "enable.idempotence": "true",
    "enable.gapless.guarantee": "true",  # nothing behind a message that a broker refuses
    "acks": "all",
    "message.timeout.ms": "0",  # what was not confirmed in time stays in line, in its order
    "linger.ms": "0",  # entries come together
    "batch.size": "1000000",
    "allow.auto.create.topics": "false",  # one that was removed would come back as the broker likes
    "queue.buffering.max.messages": "200000",
    "queue.buffering.max.kbytes": "262144",
}
_CONSUMER = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": "true",
    "fetch.wait.max.ms": "100",
    "fetch.queue.backoff.ms": "5",
    "queued.max.messages.kbytes": "32768",
}
_OURS = {
    **{name: value for name, value in {**_PRODUCER, **_CONSUMER}.items() if "queue" not in name},
    "request.required.acks": "all",
    "bootstrap.servers": "bus.kafka.bootstrap_servers",
    "metadata.broker.list": "bus.kafka.bootstrap_servers",
    "compression.type": "bus.kafka.compression",
    "compression.codec": "bus.kafka.compression",
    "message.max.bytes": "bus.kafka.message_max_bytes",
    "session.timeout.ms": "bus.kafka.session_timeout_ms",
    "group.instance.id": "bus.kafka.group_instance_id",
    "group.id": "bus.redis.consumer_group",
    "group.protocol": "classic",
    "partition.assignment.strategy": "cooperative-sticky",
    "delivery.timeout.ms": "0",
    "transactional.id": "none",
    "retries": "2147483647",
    "message.send.max.retries": "2147483647",
}
_FREE = frozenset({"linger.ms", "batch.size", "fetch.wait.max.ms"})
"""What we set, but anybody may set otherwise."""
_SAME = {"-1": "all"}

_LOST = frozenset(
    {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}
)
_UNKNOWN = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._UNSUPPORTED_FEATURE,
    }
)
_FENCED = "currently fenced"
"""So says a cluster that has just started, or lost sight of its brokers, of any new topic."""
_SILENT = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})
_STALE = frozenset(
    {
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    }
)
_LOG_EVERY_S, _LOGGED_MAX = 10.0, 1000
_DEBUG_BELOW = 40  # librdkafka's errors are a warning here: it goes on trying


def is_unknown(error: KafkaError) -> bool:
    """Whether an error says that there is no such topic or partition."""
    return error.code() in _UNKNOWN


def is_stale(error: KafkaError) -> bool:
    """Whether an error comes of an old idea of who leads a partition."""
    return error.code() in _STALE


class Link:
    """Makes clients, and says in the platform's words what goes wrong with them.

    Args:
        settings: of the bus.
        group: the consumer group, which readers name so that access rules can.

    Attributes:
        timeout_s: longest wait for an answer.
        batch_bytes_max: most bytes of several messages that a producer sends as one batch.
        admin: for all that is not writing or reading.

    Raises:
        UsageError: an option is unknown, or would break what the bus promises.
    """

    def __init__(self, settings: KafkaBusSettings, group: str) -> None:
        _check(settings.options)
        self.settings = settings
        self.timeout_s = settings.timeout_ms / 1000
        self._group = group
        batch = settings.options.get("batch.size", _PRODUCER["batch.size"])
        self._logged: dict[str, float] = {}
        self._refused: tuple[float, KafkaError] | None = None
        try:
            self.admin = AdminClient(self._options({}), logger=self)
        except KafkaException as error:
            msg = f"bus.kafka.options: {redact(error.args[0].str())}"
            raise UsageError(msg) from None
        self.batch_bytes_max = min(int(batch, 0), settings.message_max_bytes)

    def producer(self) -> Producer:
        """A producer that neither loses nor doubles nor reorders."""
        extra = {**_PRODUCER, "message.max.bytes": str(self.settings.message_max_bytes)}
        extra["compression.type"] = self.settings.compression
        return Producer(self._options(extra), logger=self)

    def consumer(self, **more: str) -> Consumer:
        """A consumer; `more` are options with ``_`` for ``.``."""
        extra = {**_CONSUMER, "group.id": self._group}
        extra.update({name.replace("_", "."): value for name, value in more.items()})
        return Consumer(self._options(extra), logger=self)

    def _options(self, extra: dict[str, str]) -> dict[str, Any]:
        return {
            **_EVERY,
            "client.id": "mdp",
            **extra,
            **{name: _SAME.get(value, value) for name, value in self.settings.options.items()},
            "bootstrap.servers": self.settings.bootstrap_servers,
            "error_cb": self._noticed,
        }

    def _noticed(self, error: KafkaError) -> None:
        if error.code() in _REFUSED:  # the calls that wait for it only see that nothing comes
            self._refused = time.monotonic(), error

    def log(self, level: int, _: str, facility: str, client: str, text: str) -> None:
        """Take a line of librdkafka's log; of each kind one in ten seconds is a warning."""
        now = time.monotonic()
        if self._logged.get(text, 0) > now:  # it says the same at every try
            return
        if len(self._logged) > _LOGGED_MAX:
            self._logged.clear()
        warn = level >= _DEBUG_BELOW and now >= self._logged.get(facility, 0)
        self._logged[text] = now + _LOG_EVERY_S
        if warn:
            self._logged[facility] = now + _LOG_EVERY_S
        write = log.warning if warn else log.debug
        write("librdkafka", facility=facility, client=client, text=redact(text))

    def result(self, future: Future[T], what: str) -> T:
        """What an administrative call answers.

        Raises:
            MdpError: see :meth:`error`.
            KafkaException: there is no such topic or partition.
        """
        try:
            answer = future.result(self.timeout_s + 1)
        except NotDoneError as error:
            raise self.silence(what, "no answer") from error
        except KafkaException as error:
            if is_unknown(error.args[0]):
                raise
            raise self.error(error.args[0], what) from error
        self.admin.poll(0)
        return answer

    def error(self, error: KafkaError, what: str) -> MdpError:
        """What to raise for an error of librdkafka.

        Args:
            error: it.
            what: what could not be done, such as "topic 'mdp.events'".
        """
        if error.code() in _SILENT:
            return self.silence(what, error.str())
        text = redact(f"{what}: {error.str()}")
        if error.code() in _LOST:
            return LogLostError(text)
        if error.code() in _LARGE:
            return UsageError(
                f"{text}; raise bus.kafka.message_max_bytes, and max.message.bytes of the topic"
            )
        if error.code() in _UNKNOWN:  # whoever works with it has looked for it before
            return LogLostError(f"{what}: the topic, or its partition, {WHILE_IN_USE}")
        if error.code() in _REFUSED and _FENCED not in error.str():
            return UsageError(f"{text}; see bus.kafka and the rights of its user")
        return self._transient(text)

    def silence(self, what: str, text: str) -> MdpError:
        """What to raise where nothing came in time: why, if a broker has refused us."""
        self.admin.poll(0)  # what its connections had to say comes only so
        refused, self._refused = self._refused, None
        if refused and time.monotonic() < refused[0] + 2 * self.timeout_s + 1:
            return self.error(refused[1], what)
        return self._transient(redact(f"{what}: {text}"))

    def _transient(self, text: str) -> TransientError:
        return TransientError(f"{text} (Kafka at {self.settings.bootstrap_servers})")


def _check(options: dict[str, str]) -> None:
    for name, value in options.items():
        needed = _OURS.get(name)
        if needed is None or name in _FREE or _SAME.get(value, value) == needed:
            continue
        if needed.startswith("bus."):
            msg = f"bus.kafka.options: {name} is set by {needed}"
        else:
            msg = f"bus.kafka.options: {name} has to be {needed} for the log to be safe"
        raise UsageError(msg)
