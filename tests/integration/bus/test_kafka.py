"""What the bus suite does not see of the Kafka bus, on a real broker."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.servers import kafka as servers

from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_core.errors import TransientError, UsageError
from market_data_core.records import Entry, Record
from market_data_pipeline.bus._kafka_bus import KafkaBus
from market_data_pipeline.patience import patient

if TYPE_CHECKING:
    from tests.servers.kafka import Server

TOPIC = "mdp.events"
PLENTY = 1 << 30
Open = Callable[..., KafkaBus]


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Server]:
    """A broker that a test may stop."""
    with servers.running() as server:
        if server is None:
            pytest.skip(servers.MISSING)
        yield server


@pytest.fixture
async def open_at() -> AsyncIterator[Open]:
    opened: list[KafkaBus] = []

    def open_one(address: str, **more: Any) -> KafkaBus:
        own = KafkaBusSettings(bootstrap_servers=address, **more)
        opened.append(KafkaBus(BusSettings(kafka=own)))
        return opened[-1]

    yield open_one
    for bus in opened:
        await bus.close()


@pytest.fixture
def open_bus(kafka: Server, open_at: Open) -> Open:
    prefix = kafka.new_prefix()

    def open_one(address: str = kafka.address, **more: Any) -> KafkaBus:
        return open_at(address, **{"topic_prefix": prefix, **more})

    return open_one


def entry(text: str, partition: int = 0, **more: Any) -> Entry:
    return Entry(partition, text.encode(), 1, "p", 1, 1, **more)


async def read_all(bus: KafkaBus, partition: int = 0, topic: str = TOPIC) -> list[Record]:
    records: list[Record] = []
    position = (await bus.bounds(topic, partition)).first
    while found := await bus.poll(topic, {partition: position}, PLENTY, 0):
        records += found[partition]
        position = records[-1].offset + 1
    return records


def texts(records: list[Record]) -> list[str]:
    return [record.payload.decode() for record in records]


def on_broker(bus: KafkaBus, topic: str = TOPIC) -> str:
    return bus._topics.on_broker(topic)


# ---- other people's messages ---------------------------------------------------------------


def event(symbol: str, second: int) -> bytes:
    return json.dumps(
        {
            "ver": 1, "provider": "vendor", "symbol": symbol, "kind": "tick", "interval": "1s",
            "src_ts": f"2025-10-24T14:02:{second:02}Z", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1,
            "seq": second,
        }
    ).encode()  # fmt: skip


async def test_messages_of_others_are_read_like_ours(open_bus: Open, kafka: Server) -> None:
    """Each counts as one event, and is found by the provider and time that it shows."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    producer = Producer({"bootstrap.servers": kafka.address})
    foreign: list[tuple[bytes | None, dict[str, str | bytes | None] | None]] = [
        (event("SPY", 1), None),
        (b"not an event", {"mdp": b"not ours", "trace": b"1"}),
        (None, {"mdp": None}),
        (event("SPY", 9), {"trace": "x"}),
    ]
    for value, headers in foreign:
        producer.produce(on_broker(bus), value, "SPY", 0, headers=headers)
    producer.flush()
    await bus.append(TOPIC, [entry("ours")])
    records = await read_all(bus)
    assert [r.payload for r in records] == [value or b"" for value, _ in foreign] + [b"ours"]
    assert [r.count for r in records] == [1] * 5
    assert [r.checksum for r in records] == [zlib.crc32(r.payload) for r in records]
    assert await bus.received(TOPIC, 0, 5) == 5
    first_ns = 1_761_314_521 * 10**9
    for to_ns, expected in ((first_ns, []), (first_ns + 1, [0]), (1 << 62, [0, 3])):
        found = await bus.scan(TOPIC, 0, "vendor", 0, to_ns)
        assert [r.offset for r in found] == expected


async def test_transactions_of_others_leave_holes(open_bus: Open, kafka: Server) -> None:
    """What was aborted is not read; the markers at the end are no records."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    name = on_broker(bus)
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": name})
    producer.init_transactions(20)
    for text, end in (
        ("a", producer.commit_transaction),
        ("b", producer.abort_transaction),
        ("c", producer.commit_transaction),
        ("d", producer.abort_transaction),
    ):
        producer.begin_transaction()
        producer.produce(name, text, partition=0)
        producer.flush()
        end()
    async with asyncio.timeout(10):
        while (await bus.bounds(TOPIC, 0)).next < 8:  # the markers follow a little later
            await asyncio.sleep(0.01)
    records = await read_all(bus)
    assert texts(records) == ["a", "c"]
    assert await bus.received(TOPIC, 0, 8) == 2
    assert await bus.checksum(TOPIC, 0, 2) is None
    assert await bus.poll(TOPIC, {0: 5}, PLENTY, 0) == {}
    await bus.append(TOPIC, [entry("e")])
    assert texts((await bus.poll(TOPIC, {0: 5}, PLENTY, 5))[0]) == ["e"]


async def test_the_symbol_is_the_key(open_bus: Open, kafka: Server) -> None:
    """For other people's tools; the partition is the one that was asked for in any case."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 3)
    await bus.append(TOPIC, [entry("a", 2, symbol="SPY"), entry("b", 2)])
    consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": "tool"})
    consumer.assign([TopicPartition(on_broker(bus), 2, 0)])
    found = consumer.consume(2, 10)
    consumer.close()
    assert [(m.key(), m.value()) for m in found] == [(b"SPY", b"a"), (None, b"b")]


async def test_a_long_backlog_is_read_whole_in_small_bites(open_bus: Open) -> None:
    """More than is fetched ahead, one partition much longer than the other."""
    bus, reader = open_bus(), open_bus()
    await bus.create_topic(TOPIC, 2)
    text = "x" * 10_000
    await bus.append(TOPIC, [entry(f"{i}:{text}", i % 20 == 0) for i in range(600)])
    positions, read = {0: 0, 1: 0}, {0: list[int](), 1: list[int]()}
    while found := await reader.poll(TOPIC, positions, 400_000, 0):
        for p, records in found.items():
            assert sum(len(r.payload) for r in records) <= 200_000
            read[p] += [int(r.payload.split(b":")[0]) for r in records]
            positions[p] = records[-1].offset + 1
    assert read == {0: [i for i in range(600) if i % 20], 1: list(range(0, 600, 20))}
    kept = reader._idle[TOPIC]
    assert [sorted(each._parts) for each in kept] == [[0, 1]]


# ---- topics --------------------------------------------------------------------------------


async def test_only_topics_with_the_prefix_are_ours(open_bus: Open, kafka: Server) -> None:
    """Those of others and of Kafka itself are not listed."""
    bus, other = open_bus(), open_bus(topic_prefix=kafka.new_prefix())
    made = await bus.create_topic(TOPIC, 1)
    assert await other.find_topic(TOPIC) is None
    assert await other.create_topic(TOPIC, 2) != made
    assert await bus.topics() == [made]
    everything = await open_bus(topic_prefix="").topics()
    names = [info.name for info in everything]
    assert {on_broker(bus), on_broker(other)} <= set(names)
    assert not [name for name in names if name.startswith("_")]


async def test_a_topic_that_forgets_is_warned_of_once(open_bus: Open, kafka: Server) -> None:
    """One that we made is not, unless its settings were chosen so."""
    bus = open_bus()
    name = on_broker(bus, "theirs")
    admin = AdminClient({"bootstrap.servers": kafka.address})
    config = {"retention.ms": "3600000", "cleanup.policy": "compact,delete"}
    admin.create_topics([NewTopic(name, 1, config=config)])[name].result(10)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            await bus.create_topic("theirs", 1)
        await bus.create_topic("ours", 1)
        chosen = open_bus(topic_config={"retention.bytes": 10**9, "segment.bytes": 10**7})
        await chosen.create_topic("chosen", 1)
    found = {
        line["topic"]: line["set_with_kafka_configs"] for line in logs if "misdate" in line["event"]
    }
    assert found == {
        name: [
            "message.timestamp.type=LogAppendTime",
            "retention.ms=-1, or bus.retention.hours lower than it",
            "cleanup.policy=delete",
        ],
        on_broker(bus, "chosen"): ["retention.bytes=-1"],
    }


@pytest.mark.parametrize(
    "config", [{"retention.ms": "soon"}, {"no.such.setting": 1}, {"min.insync.replicas": 0}]
)
async def test_a_topic_setting_that_is_none(open_bus: Open, config: dict[str, Any]) -> None:
    """The broker's own words say which."""
    with pytest.raises(UsageError, match=next(iter(config))):
        await open_bus(topic_config=config).create_topic(TOPIC, 1)


# ---- options -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"acks": -1, "linger.ms": 3, "enable.idempotence": True}])
async def test_options_that_are_taken(open_bus: Open, options: dict[str, Any]) -> None:
    bus = open_bus(options=options)
    await bus.create_topic(TOPIC, 1)
    await bus.append(TOPIC, [entry("a")])
    assert texts(await read_all(bus)) == ["a"]


def sasl(password: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": servers.USER,
        "sasl.password": password,
    }


async def test_authentication(open_bus: Open, kafka: Server) -> None:
    """With the right password all works; a wrong one is named a cause and not shown."""
    bus = open_bus(kafka.sasl_address, options=sasl(servers.PASSWORD))
    await bus.create_topic(TOPIC, 1)
    await bus.append(TOPIC, [entry("a")])
    assert texts(await read_all(bus)) == ["a"]
    assert await bus.assignment(TOPIC, on_broker(bus), "m") == {0}
    wrong = open_bus(kafka.sasl_address, options=sasl("wr0ng-secret"), timeout_ms=1000)
    with pytest.raises(UsageError, match=r"[Aa]uthentication") as caught:
        await wrong.find_topic(TOPIC)
    assert "wr0ng" not in str(caught.value)
    assert "wr0ng" not in repr(wrong._link.settings)


async def test_a_poll_that_nobody_waits_for_any_more(open_bus: Open) -> None:
    """It ends soon, and what it had fetched comes with the next."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await bus.poll(TOPIC, {0: 0}, PLENTY, 600)
    await bus.append(TOPIC, [entry("a")])
    assert texts((await bus.poll(TOPIC, {0: 0}, PLENTY, 600))[0]) == ["a"]


async def test_closing_ends_what_waits(open_bus: Open) -> None:
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    waiting = asyncio.create_task(bus.poll(TOPIC, {0: 0}, PLENTY, 600))
    await asyncio.wait({waiting}, timeout=0.2)
    async with asyncio.timeout(5):
        await bus.close()
        with pytest.raises(RuntimeError, match="the bus is closed"):
            await waiting
    with pytest.raises(RuntimeError, match="the bus is closed"):
        await bus.topics()


# ---- a broker that is not there ------------------------------------------------------------


async def test_no_broker_is_an_error_soon(open_at: Open) -> None:
    """Whoever can wait does so by calling again."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        bus = open_at(f"127.0.0.1:{nobody.getsockname()[1]}", timeout_ms=300)
        began = time.monotonic()
        for call in (
            bus.create_topic(TOPIC, 1),
            bus.find_topic(TOPIC),
            bus.topics(),
            bus.append(TOPIC, [entry("a")]),
            bus.poll(TOPIC, {0: 0}, 1, 600),
            bus.bounds(TOPIC, 0),
        ):
            with pytest.raises(TransientError, match=r"127\.0\.0\.1"):
                await call
        assert time.monotonic() - began < 10


async def test_what_was_not_confirmed_is_sent_once(own_kafka: Server, open_at: Open) -> None:
    """The broker hangs: the append is told to fail, stays in line, and is waited for again."""
    prefix = own_kafka.new_prefix()
    bus = open_at(own_kafka.address, timeout_ms=500, topic_prefix=prefix)
    await bus.create_topic(TOPIC, 2)
    before = [entry("before")]
    await patient(lambda: bus.append(TOPIC, before))
    own_kafka.pause()
    entries = [entry(f"{i}", i % 2) for i in range(2000)]
    later = [entry("later")]
    try:
        for _ in range(2):
            with pytest.raises(TransientError):
                await bus.append(TOPIC, entries)
        with pytest.raises(TransientError):
            await bus.append(TOPIC, later)
    finally:
        own_kafka.resume()
    await patient(lambda: bus.append(TOPIC, entries))
    await patient(lambda: bus.append(TOPIC, later))
    reader = open_at(own_kafka.address, topic_prefix=prefix)
    assert texts(await read_all(reader, 1)) == [f"{i}" for i in range(1, 2000, 2)]
    even = [f"{i}" for i in range(0, 2000, 2)]
    assert texts(await read_all(reader)) == ["before", *even, "later"]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_the_broker_restarts_amid_appends(own_kafka: Server, open_at: Open, how: str) -> None:
    """Nothing is lost, nothing is there twice, nothing is out of order; a reader goes on."""
    options = {"timeout_ms": 1000, "topic_prefix": own_kafka.new_prefix()}
    writer, reader = (open_at(own_kafka.address, **options) for _ in range(2))
    await writer.create_topic(TOPIC, 2)
    done, written = asyncio.Event(), asyncio.Event()
    sent = 0

    async def write() -> None:
        nonlocal sent
        while not done.is_set():
            entries = [entry(f"{i}", i % 2) for i in range(sent, sent + 50)]
            await patient(lambda entries=entries: writer.append(TOPIC, entries))  # type: ignore[misc]
            sent += 50
        written.set()

    read: dict[int, list[str]] = {0: [], 1: []}
    positions = {0: 0, 1: 0}

    async def follow() -> None:
        while not written.is_set() or sum(map(len, read.values())) < sent:
            found = await patient(lambda: reader.poll(TOPIC, positions, PLENTY, 0.1))
            for p, records in found.items():
                read[p] += texts(records)
                positions[p] = records[-1].offset + 1

    async def disturb() -> None:
        for _ in range(2):
            at = sent
            while sent < at + 500:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_kafka.stop if how == "stop" else own_kafka.kill)
            await asyncio.to_thread(own_kafka.start)
        at = sent
        while sent < at + 500:
            await asyncio.sleep(0.01)
        done.set()

    async with asyncio.timeout(50):
        await asyncio.gather(write(), follow(), disturb())
    for p in (0, 1):
        assert read[p] == [f"{i}" for i in range(p, sent, 2)]
    assert await reader.received(TOPIC, 0, positions[0]) == sent // 2
