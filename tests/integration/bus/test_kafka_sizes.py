"""What is too large for a topic of Kafka, on a real broker: nothing behind it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_core.errors import UsageError
from market_data_core.records import Entry
from market_data_pipeline.bus._kafka_bus import KafkaBus
from market_data_pipeline.patience import patient

if TYPE_CHECKING:
    from tests.servers.kafka import Server

TOPIC = "mdp.events"
LIMIT = "max.message.bytes"
Open = Callable[..., KafkaBus]


@pytest.fixture
async def open_bus(kafka: Server) -> AsyncIterator[Open]:
    prefix = kafka.new_prefix()
    opened: list[KafkaBus] = []

    def open_one(**more: Any) -> KafkaBus:
        own = KafkaBusSettings(bootstrap_servers=kafka.address, topic_prefix=prefix, **more)
        opened.append(KafkaBus(BusSettings(kafka=own)))
        return opened[-1]

    yield open_one
    for bus in opened:
        await bus.close()


def entry(text: str, partition: int = 0, **more: Any) -> Entry:
    return Entry(partition, text.encode(), 1, "p", 1, 1, **more)


def texts(entries: list[Entry]) -> list[str]:
    return [e.payload.decode() for e in entries]


async def read_all(bus: KafkaBus, partition: int = 0) -> list[str]:
    found: list[str] = []
    position = 0
    while records := await bus.poll(TOPIC, {partition: position}, 1 << 30, 0):
        found += [record.payload.decode() for record in records[partition]]
        position = records[partition][-1].offset + 1
    return found


def let_take(kafka: Server, bus: KafkaBus, size: int) -> None:
    """Change what the topic takes, as an administrator does."""
    resource = ConfigResource(ResourceType.TOPIC, bus._topics.on_broker(TOPIC))
    change = ConfigEntry(LIMIT, str(size), incremental_operation=AlterConfigOpType.SET)
    resource.add_incremental_config(change)
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.incremental_alter_configs([resource])[resource].result(10)


async def test_an_entry_that_is_too_large(open_bus: Open) -> None:
    """For us or for the topic: nothing of the append is written, and it is told what to do."""
    few = {"batch.size": 50_000}
    bus = open_bus(message_max_bytes=100_000, topic_config={LIMIT: 50_000}, options=few)
    await bus.create_topic(TOPIC, 1)
    for size in (100_000, 49_000):
        with pytest.raises(UsageError, match=r"larger than 50000; raise bus\.kafka\.m"):
            await bus.append(TOPIC, [entry("a"), entry("b" * size), entry("c")])
    assert await read_all(bus) == []
    many = [entry(f"{i}".ljust(20_000, ".")) for i in range(20)]
    await bus.append(TOPIC, many)
    assert await read_all(bus) == texts(many)


async def test_batches_that_are_larger_than_the_topic_takes(open_bus: Open) -> None:
    """They are refused before any is sent; reading goes on."""
    maker = open_bus(topic_config={LIMIT: 50_000}, options={"batch.size": 50_000})
    await maker.create_topic(TOPIC, 1)
    await maker.append(TOPIC, [entry("a")])
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    with pytest.raises(UsageError, match=r"raise max\.message\.bytes .* batch\.size .* to 50000"):
        await bus.append(TOPIC, [entry("b")])
    assert await read_all(bus) == ["a"]


async def test_nothing_follows_what_the_brokers_refuse(open_bus: Open, kafka: Server) -> None:
    """It would tell that what was refused is settled: the topic takes less than it did before."""
    bus = open_bus(options={"batch.size": 1})
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [entry("a")])
    let_take(kafka, bus, 2_000)
    pieces = ("b", "c" * 5_000, "d", "e")
    entries = [entry(text, source=i + 1, begin=i) for i, text in enumerate(pieces)]
    for _ in range(2):
        with pytest.raises(UsageError, match="of the topic"):
            await patient(lambda: bus.append(TOPIC, entries))
        assert await read_all(bus) in (["a"], ["a", "b"])
    assert await open_bus().source(TOPIC, 0) <= 1
    await patient(lambda: bus.append(TOPIC, [entry("f", 1)]))
    assert await read_all(bus, 1) == ["f"]
    let_take(kafka, bus, 2_000_000)
    await patient(lambda: bus.append(TOPIC, entries))
    assert await read_all(bus) == ["a", *pieces]
