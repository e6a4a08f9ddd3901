"""What operators see of a consumer group with XINFO and XPENDING: the store's checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.integration.bus.redis_kit import PLENTY, TOPIC, entry, needs_7, opened, read_all
from tests.servers.redis import Server

from market_data_core.records import Place, Record
from market_data_pipeline.bus._redis_entries import PENDING_MAX, id_of
from market_data_pipeline.bus.redis import RedisBus

GROUP = "mdp-consumers"


class Tools:
    """The group as redis-cli shows it."""

    def __init__(self, server: Server, prefix: str) -> None:
        self.client = server.client(decode_responses=True)
        self.stream = f"{prefix}{TOPIC}:0"

    @property
    def group(self) -> dict[str, Any]:
        """XINFO GROUPS."""
        (found,) = self.client.xinfo_groups(self.stream)
        return dict(found)

    @property
    def consumers(self) -> dict[str, int]:
        """XINFO CONSUMERS: name and number of pending entries."""
        found = self.client.xinfo_consumers(self.stream, GROUP)
        return {one["name"]: one["pending"] for one in found}

    @property
    def pending(self) -> list[tuple[str, str]]:
        """XPENDING: id and consumer."""
        found = self.client.xpending_range(self.stream, GROUP, "-", "+", 5_000)
        return [(str(one["message_id"]), str(one["consumer"])) for one in found]


@pytest.fixture
def prefix(redis_server: Server) -> str:
    return redis_server.new_prefix()


@pytest.fixture
async def bus(redis_server: Server, prefix: str) -> AsyncIterator[RedisBus]:
    async with opened(redis_server.uri, prefix) as one:
        await one.create_topic(TOPIC, 2)
        yield one


@pytest.fixture
def tools(redis_server: Server, prefix: str) -> Any:
    found = Tools(redis_server, prefix)
    yield found
    found.client.close()


async def work(bus: RedisBus, member: str, position: int = 0) -> list[Record]:
    """What a member of the group reads."""
    await bus.assignment(TOPIC, GROUP, member)
    return await read_all(bus, 0, position)


def ids(records: list[Record], consumer: str) -> list[tuple[str, str]]:
    return [(id_of(record.offset), consumer) for record in records]


async def test_the_group_follows_the_checkpoint(
    bus: RedisBus, tools: Tools, redis_server: Server
) -> None:
    """Below R all is acknowledged, up to K it is pending, behind that it was not delivered."""
    needs_7(redis_server)
    await bus.append(TOPIC, [entry(str(i)) for i in range(10)])
    await bus.append(TOPIC, [entry("mark", count=0)])
    records = await work(bus, "m")
    places = [record.offset for record in records]
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(places[3], places[7])})
    assert tools.pending == ids(records[3:7], "m")
    assert tools.group["last-delivered-id"] == id_of(places[7] - 1)
    assert tools.group["pending"] == 4
    for _ in range(2):
        await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(places[6], places[10] + 1)})
        assert tools.pending == ids(records[6:10], "m")  # a mark is nobody's work
    assert tools.group["lag"] == 0
    end = places[-1] + 1
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(end, end)})
    assert (tools.pending, tools.consumers) == ([], {"m": 0})


async def test_what_a_dead_member_held_is_claimed(
    bus: RedisBus, tools: Tools, redis_server: Server, prefix: str
) -> None:
    """By who reads it again."""
    await bus.append(TOPIC, [entry(str(i)) for i in range(10)])
    records = await work(bus, "dead")
    places = [record.offset for record in records]
    await bus.acknowledge(TOPIC, GROUP, "dead", {0: Place(places[2], places[8])})
    async with opened(redis_server.uri, prefix) as heir:
        await work(heir, "heir", places[4])
        await heir.acknowledge(TOPIC, GROUP, "heir", {0: Place(places[4], places[8])})
        assert tools.pending == ids(records[4:8], "heir")
        assert tools.consumers == {"dead": 0, "heir": 4}


async def test_who_leaves_is_no_consumer_any_more(bus: RedisBus, tools: Tools) -> None:
    await bus.append(TOPIC, [entry(str(i)) for i in range(3)])
    records = await work(bus, "m")
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(0, records[-1].offset + 1)})
    assert tools.consumers == {"m": 3}
    await bus.leave(TOPIC, GROUP, "m")
    assert tools.consumers == {}
    assert tools.group["pending"] == 0


async def test_no_more_than_so_many_are_shown(bus: RedisBus, tools: Tools) -> None:
    """Of a long window the oldest; then those behind them."""
    await bus.append(TOPIC, [entry(str(i)) for i in range(3 * PENDING_MAX)])
    records = await work(bus, "m")
    end = records[-1].offset + 1
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(0, end)})
    assert tools.pending == ids(records[:PENDING_MAX], "m")
    later = records[2 * PENDING_MAX].offset
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(later, end)})
    assert tools.pending == ids(records[2 * PENDING_MAX :], "m")


async def test_two_groups_in_one_process(bus: RedisBus, tools: Tools) -> None:
    """A micro-batcher and an archiver at places of their own."""
    await bus.append(TOPIC, [entry(str(i)) for i in range(10)])
    for group in (GROUP, "archive"):
        await bus.assignment(TOPIC, group, "m")
    first = (await bus.poll(TOPIC, {0: 0}, 4, 0))[0]
    records = await read_all(bus, 0, 0)
    places = [record.offset for record in records]
    assert len(first) < len(records)
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(places[1], places[4])})
    await bus.acknowledge(TOPIC, "archive", "m", {0: Place(places[9], places[9] + 1)})
    assert tools.pending == ids(records[1:4], "m")
    found = tools.client.xpending(tools.stream, "archive")
    assert (found["pending"], found["min"]) == (1, id_of(places[9]))


async def test_what_was_trimmed_or_removed_is_not_pending(bus: RedisBus, tools: Tools) -> None:
    await bus.append(TOPIC, [entry(str(i)) for i in range(6)])
    records = await work(bus, "m")
    tools.client.xdel(tools.stream, id_of(records[2].offset))
    end = records[-1].offset + 1
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(records[1].offset, end)})
    assert tools.group["pending"] in (4, 5)  # Redis 7 leaves out what is not there
    await bus.trim(TOPIC, 0, records[5].offset, 1 << 62, PLENTY)
    await bus.acknowledge(TOPIC, GROUP, "m", {0: Place(records[5].offset, end)})
    assert tools.pending == ids(records[5:], "m")
