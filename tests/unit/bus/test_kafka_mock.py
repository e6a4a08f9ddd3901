"""Faults of the protocol that a real broker shows at its worst moments only: a mock of brokers.

The mock is librdkafka's own, not Kafka: it speaks a part of the protocol, and fails when told to.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError

from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_core.records import Entry, TopicInfo
from market_data_pipeline.bus._kafka_bus import KafkaBus
from market_data_pipeline.patience import patient

TOPIC = "mdp.events"
PRODUCE, FETCH, LIST_OFFSETS = 0, 1, 2


class Mock:
    """Three brokers within this process.

    Attributes:
        address: of all of them.
    """

    def __init__(self, library: Path) -> None:
        self._c: Any = ctypes.CDLL(str(library))
        for name in ("conf_new", "new", "mock_cluster_new"):
            getattr(self._c, f"rd_kafka_{name}").restype = ctypes.c_void_p
        self._c.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        why = ctypes.create_string_buffer(200)
        options = ctypes.c_void_p(self._c.rd_kafka_conf_new())
        self._host = ctypes.c_void_p(self._c.rd_kafka_new(0, options, why, len(why)))
        self._cluster = ctypes.c_void_p(self._c.rd_kafka_mock_cluster_new(self._host, 3))
        self.address: str = self._c.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._c.rd_kafka_mock_topic_create(self._cluster, TOPIC.encode(), 2, 3)

    def fail(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with these errors."""
        errors = (ctypes.c_int * len(codes))(*codes)
        kind, number = ctypes.c_int16(request), ctypes.c_size_t(len(codes))
        self._c.rd_kafka_mock_push_request_errors_array(self._cluster, kind, number, errors)

    def move(self, partition: int, broker: int) -> None:
        """Let another broker lead a partition."""
        self._c.rd_kafka_mock_partition_set_leader(
            self._cluster, TOPIC.encode(), ctypes.c_int32(partition), ctypes.c_int32(broker)
        )

    def close(self) -> None:
        """End the brokers."""
        self._c.rd_kafka_mock_cluster_destroy(self._cluster)
        self._c.rd_kafka_destroy(self._host)


@pytest.fixture
def mock() -> Iterator[Mock]:
    beside = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = sorted(beside.glob("librdkafka*"))
    if not found:
        pytest.skip("this build of confluent-kafka does not show its librdkafka")
    brokers = Mock(found[0])
    yield brokers
    brokers.close()


@pytest.fixture
def bus(mock: Mock, monkeypatch: pytest.MonkeyPatch) -> KafkaBus:
    made = KafkaBus(BusSettings(kafka=KafkaBusSettings(bootstrap_servers=mock.address)))
    # the mock knows no way to describe topics and their settings
    monkeypatch.setattr(made._topics, "find", lambda name: TopicInfo(name, "mock", 2))
    monkeypatch.setattr(made._topics, "message_bytes_max", lambda _: 1 << 20)
    return made


async def written_and_read(bus: KafkaBus) -> list[str]:
    """What is there when forty entries were appended, one after the other."""
    for i in range(20):
        entries = [Entry(p, b"%d" % i, 1, "p", 1, 1, key=f"{p}/{i}") for p in (0, 1)]
        await patient(lambda entries=entries: bus.append(TOPIC, entries))  # type: ignore[misc]
    return await what_is_there(bus)


async def what_is_there(bus: KafkaBus) -> list[str]:
    """What both partitions hold."""
    positions, read = {0: 0, 1: 0}, {0: list[str](), 1: list[str]()}
    while found := await patient(lambda: bus.poll(TOPIC, positions, 1 << 20, 0)):
        for p, records in found.items():
            read[p] += [record.payload.decode() for record in records]
            positions[p] = records[-1].offset + 1
    assert read[0] == read[1]
    return read[0]


@pytest.mark.parametrize(
    "codes",
    [
        (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE),
        (KafkaError.REQUEST_TIMED_OUT, KafkaError.NETWORK_EXCEPTION),
        (KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND),
        (KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (KafkaError.KAFKA_STORAGE_ERROR, KafkaError.UNKNOWN_PRODUCER_ID),
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.BROKER_NOT_AVAILABLE),
    ],
    ids=lambda codes: "+".join(map(str, codes)),
)
async def test_appends_that_fail(mock: Mock, bus: KafkaBus, codes: tuple[int, ...]) -> None:
    """Each entry has effect once and in order, also where a new producer has to go on."""
    mock.fail(PRODUCE, *codes)
    async with asyncio.timeout(40):
        found = await written_and_read(bus)
    await bus.close()
    assert found == [str(i) for i in range(20)]


async def test_reads_that_fail_and_leaders_that_move(mock: Mock, bus: KafkaBus) -> None:
    """They are made again; nothing is passed over."""
    expected = [str(i) for i in range(20)]
    async with asyncio.timeout(40):
        assert await written_and_read(bus) == expected
        for broker in (1, 2, 3):
            for partition in (0, 1):
                mock.move(partition, broker)
            mock.fail(FETCH, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NETWORK_EXCEPTION)
            mock.fail(LIST_OFFSETS, KafkaError.NOT_LEADER_FOR_PARTITION)
            assert await what_is_there(bus) == expected
    await bus.close()
