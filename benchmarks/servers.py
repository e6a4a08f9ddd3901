"""Fresh brokers for a benchmark, and the workload in them as another program would write it.

Starting a server and filling it are outside the clock. Redis flushes its append-only file every
second; Kafka is one broker.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from benchmarks.workload import START_NS, SYMBOLS, Cache
from market_data_core.partitioning import partition_of

TOPIC = "mdp.events"
PARTITIONS = 8
LATER_NS = 3_600 * 10**9
"""How much later than the workload the messages are that end it, one in each partition."""
_PIPELINE = 5_000
_WARMING = ((64 << 10, 400), (500, 3_000))
"""Bytes and number of messages: as those of the whole path, and as those of a live feed."""
Message = tuple[str, bytes]
"""Symbol, and a single version-1 event as JSON."""


class Broker(Protocol):
    """A running server.

    Attributes:
        settings: what leads the platform to it.
        address: what leads others to it.
        topic: of the events, as the server calls it.
    """

    settings: dict[str, object]
    address: str
    topic: str

    def fill(self, messages: Sequence[Message]) -> None:
        """Write messages, each into the partition of its symbol."""
        ...


class Messages(msgspec.Struct):
    """The workload as single messages.

    Attributes:
        rows: in arrival order, the last ones end the windows.
        events: without those.
        end_ts: UTC ns, after the workload and before those.
    """

    rows: list[Message]
    events: int
    end_ts: int


def messages(cache: Cache) -> Messages:
    """The workload, and one message an hour later for each partition."""
    rows: list[Message] = []
    line = b""
    for line in cache.load().lines():
        rows.append((msgspec.json.decode(line)["symbol"], line.rstrip()))
    events, last = len(rows), msgspec.json.decode(line)
    hour = int(last["src_ts"][11:13]) + 1
    for partition in range(PARTITIONS):
        symbol = next(s for s in _names() if partition_of(s, PARTITIONS) == partition)
        late = f"{last['src_ts'][:11]}{hour:02}{last['src_ts'][13:]}"
        event = last | {"symbol": symbol, "src_ts": late, "seq": 10**9, "event_id": None}
        del event["event_id"]
        rows.append((symbol, msgspec.json.encode(event)))
    return Messages(rows, events, START_NS + LATER_NS // 2)


def _names() -> Iterator[str]:
    """Symbols of the workload, then others."""
    yield from SYMBOLS
    yield from (f"END{i}" for i in range(1_000))


class _Redis:
    def __init__(self, server: Any) -> None:
        self._server, self.address, self.topic = server, server.uri, TOPIC
        self.settings: dict[str, object] = {"bus.type": "redis", "bus.redis.uri": server.uri}

    def fill(self, messages: Sequence[Message]) -> None:
        with self._server.client() as client:
            for i in range(0, len(messages), _PIPELINE):
                pipe = client.pipeline(transaction=False)
                for symbol, data in messages[i : i + _PIPELINE]:
                    pipe.xadd(f"{TOPIC}:{partition_of(symbol, PARTITIONS)}", {"data": data})
                pipe.execute()


class _Kafka:
    def __init__(self, server: Any) -> None:
        self.address = server.address
        self._prefix = server.new_prefix()
        self.topic = f"{self._prefix}{TOPIC}"
        self.settings: dict[str, object] = {
            "bus.type": "kafka",
            "bus.kafka.bootstrap_servers": server.address,
            "bus.kafka.topic_prefix": self._prefix,
        }

    def fill(self, messages: Sequence[Message]) -> None:
        from confluent_kafka import Producer

        options = {"bootstrap.servers": self.address, "linger.ms": 20, "acks": "all"}
        producer = Producer(options | {"queue.buffering.max.messages": len(messages) + 1})
        for symbol, data in messages:
            producer.produce(self.topic, data, symbol, partition_of(symbol, PARTITIONS))
        producer.flush()


def topic(broker: Broker) -> None:
    """The workload's topic on a Kafka broker, for those who do not make it themselves."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": broker.address})
    for made in admin.create_topics([NewTopic(broker.topic, PARTITIONS)]).values():
        made.result()


@contextmanager
def redis() -> Iterator[Broker]:
    """A Redis server with an append-only file."""
    from tests.servers import redis as servers

    with servers.running() as server:
        if server is None:
            raise SystemExit(servers.MISSING)
        yield _Redis(server)


_open = ExitStack()
atexit.register(_open.close)


@lru_cache(1)
def _kafka_server() -> Any:
    """One broker for all rounds of a process: a JVM is not fast before it has run for a while."""
    from tests.servers import kafka as servers

    server = _open.enter_context(servers.running(jvm=()))
    if server is None:
        raise SystemExit(servers.MISSING)
    for size, count in _WARMING:
        _warm(_Kafka(server), size, count)
    return server


def _warm(broker: _Kafka, size: int, count: int) -> None:
    """Write `count` messages of `size` bytes into each partition, one at a time, and read them."""
    from confluent_kafka import Consumer, Producer

    topic(broker)
    producer = Producer({"bootstrap.servers": broker.address, "acks": "all", "linger.ms": 0})
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "warm"})
    consumer.subscribe([broker.topic])
    for _ in range(count):
        for partition in range(PARTITIONS):
            producer.produce(broker.topic, os.urandom(size), None, partition)
        producer.flush()
        consumer.consume(PARTITIONS, 0.001)
    consumer.close()


@contextmanager
def kafka() -> Iterator[Broker]:
    """A Kafka broker, with topics of its own for each use."""
    yield _Kafka(_kafka_server())


class Start(Protocol):
    """Starts a broker."""

    def __call__(self) -> AbstractContextManager[Broker]:
        """The broker, ended at the end of the context."""
        ...
