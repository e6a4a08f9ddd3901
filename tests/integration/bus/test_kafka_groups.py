"""Kafka's group protocol through the bus, on a real broker."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_core.errors import UsageError
from market_data_core.records import Entry, Place
from market_data_pipeline.bus._kafka_bus import KafkaBus

if TYPE_CHECKING:
    from tests.servers.kafka import Server

TOPIC, GROUP = "mdp.events", "workers"
SESSION_MS = 1000
Open = Callable[..., KafkaBus]


@pytest.fixture
async def open_bus(kafka: Server) -> AsyncIterator[Open]:
    prefix = kafka.new_prefix()
    opened: list[KafkaBus] = []

    def open_one(**more: str) -> KafkaBus:
        own = KafkaBusSettings(
            bootstrap_servers=kafka.address,
            topic_prefix=prefix,
            session_timeout_ms=SESSION_MS,
            **more,  # type: ignore[arg-type]
        )
        opened.append(KafkaBus(BusSettings(kafka=own)))
        return opened[-1]

    yield open_one
    for bus in opened:
        await bus.close()


def group_of(bus: KafkaBus) -> str:
    """A group that no other test uses."""
    return on_broker(bus) + GROUP


def on_broker(bus: KafkaBus) -> str:
    return bus._topics.on_broker(TOPIC)


def committed(kafka: Server, bus: KafkaBus) -> dict[int, tuple[int, str | None]]:
    """What Kafka's tools see of the group: offset and metadata by partition."""
    admin = AdminClient({"bootstrap.servers": kafka.address})
    asked = [ConsumerGroupTopicPartitions(group_of(bus))]
    found = admin.list_consumer_group_offsets(asked)[group_of(bus)].result(10)
    return {place.partition: (place.offset, place.metadata) for place in found.topic_partitions}


async def shared(*members: tuple[KafkaBus, str], among: int = 4) -> list[frozenset[int]]:
    """What each member has, as soon as each partition has one owner and all have about as many."""
    async with asyncio.timeout(15):
        while True:
            found = [await bus.assignment(TOPIC, group_of(bus), name) for bus, name in members]
            sizes = [len(each) for each in found]
            spread = max(sizes) - min(sizes) <= 1 and sum(sizes) == among
            if spread and frozenset().union(*found) == frozenset(range(among)):
                return found
            await asyncio.sleep(0.05)


async def test_members_share_the_partitions_and_one_leaves(open_bus: Open, kafka: Server) -> None:
    """Cooperatively: who stays keeps what it has; and nobody commits on the way."""
    first, second = open_bus(), open_bus()
    await first.create_topic(TOPIC, 4)
    await first.append(TOPIC, [Entry(p, b"x", 1) for p in range(4)])
    (alone,) = await shared((first, "a"))
    assert alone == frozenset(range(4))
    kept, given = await shared((first, "a"), (second, "b"))
    assert kept | given == alone
    assert {
        p: len(r) for p, r in (await second.poll(TOPIC, dict.fromkeys(given, 0), 99, 5)).items()
    }
    await second.leave(TOPIC, group_of(second), "b")
    (again,) = await shared((first, "a"))
    assert again == alone
    assert committed(kafka, first) == {}


async def test_two_members_of_one_client(open_bus: Open) -> None:
    """They are two to the group."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 4)
    found = await shared((bus, "a"), (bus, "b"))
    assert [len(each) for each in found] == [2, 2]


_CHILD = """
import asyncio, sys
from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_pipeline.bus._kafka_bus import KafkaBus

async def main(address, prefix, topic, group):
    own = KafkaBusSettings(
        bootstrap_servers=address, topic_prefix=prefix, session_timeout_ms=1000)
    bus = KafkaBus(BusSettings(kafka=own))
    while True:
        print("has", len(await bus.assignment(topic, group, "child")), flush=True)
        await asyncio.sleep(0.05)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
async def test_a_member_crashes(open_bus: Open, kafka: Server, how: signal.Signals) -> None:
    """After the session timeout the other one has its partitions."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 4)
    prefix = on_broker(bus).removesuffix(TOPIC)
    arguments = [kafka.address, prefix, TOPIC, group_of(bus)]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = b""
            while line != b"has 2\n":
                mine = await bus.assignment(TOPIC, group_of(bus), "parent")
                line = await child.stdout.readline()
        assert len(mine) == 2
        child.send_signal(how)
        (all_of_them,) = await shared((bus, "parent"))
        assert all_of_them == frozenset(range(4))
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


async def test_a_member_with_a_name_that_stays_comes_back(open_bus: Open) -> None:
    """Within the session timeout: nothing moves, and it has what it had."""
    stays, restarts = open_bus(group_instance_id="one"), open_bus(group_instance_id="two")
    await stays.create_topic(TOPIC, 4)
    before = await shared((stays, "a"), (restarts, "b"))
    moved: list[frozenset[int]] = []
    await restarts.leave(TOPIC, group_of(restarts), "b")
    back = open_bus(group_instance_id="two")
    async with asyncio.timeout(10):
        while await back.assignment(TOPIC, group_of(back), "c") != before[1]:
            moved.append(await stays.assignment(TOPIC, group_of(stays), "a"))
            await asyncio.sleep(0.02)
    assert {*moved, await stays.assignment(TOPIC, group_of(stays), "a")} == {before[0]}


async def test_two_processes_of_one_name_that_stays(open_bus: Open) -> None:
    """The first is told that the other has taken its place, as often as it asks, and lets it."""
    first, second = open_bus(group_instance_id="one"), open_bus(group_instance_id="one")
    await first.create_topic(TOPIC, 4)
    await shared((first, "a"))
    await second.assignment(TOPIC, group_of(second), "b")
    await refused(first)
    await shared((second, "b"))
    deadline = time.monotonic() + 2 * SESSION_MS / 1000
    while time.monotonic() < deadline:
        with pytest.raises(UsageError, match=r"'one' in group .* has to differ"):
            await first.assignment(TOPIC, group_of(first), "a")
        assert len(await second.assignment(TOPIC, group_of(second), "b")) == 4
        await asyncio.sleep(0.02)
    await second.leave(TOPIC, group_of(second), "b")
    await first.leave(TOPIC, group_of(first), "a")
    await shared((first, "a"))  # when it is asked to, it joins again


async def refused(bus: KafkaBus) -> None:
    """Ask for a share until that fails."""
    async with asyncio.timeout(10):
        with suppress(UsageError):
            while True:
                await bus.assignment(TOPIC, group_of(bus), "a")
                await asyncio.sleep(0.02)


async def test_what_is_acknowledged_is_seen_by_kafkas_tools(open_bus: Open, kafka: Server) -> None:
    """The place to resume, and in the metadata what is counted; of members alone."""
    bus = open_bus()
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(p, b"x", 1) for p in (0, 1) for _ in range(5)])
    await bus.acknowledge(TOPIC, group_of(bus), "nobody", {1: Place(1, 2)})
    assert committed(kafka, bus) == {}
    await shared((bus, "a"), among=2)
    await bus.acknowledge(TOPIC, group_of(bus), "a", {0: Place(3, 5)})
    await bus.acknowledge(TOPIC, group_of(bus), "a", {0: Place(4, 5), 1: Place(2, 2)})
    expected = {0: (4, "counted=5"), 1: (2, "counted=2")}
    async with asyncio.timeout(10):
        while await asyncio.to_thread(committed, kafka, bus) != expected:
            await asyncio.sleep(0.05)
    await bus.acknowledge(TOPIC, group_of(bus), "a", {0: Place(5, 5)})
    await bus.leave(TOPIC, group_of(bus), "a")  # what was told is shown before it leaves
    assert committed(kafka, bus)[0] == (5, "counted=5")
