"""What only the Redis bus can be asked: its keys, its ids, two readers of one client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.bus.redis_kit import PLENTY, TOPIC, entry, opened, read_all, received, texts
from tests.servers.redis import Server

from market_data_core.errors import UsageError
from market_data_core.records import Place
from market_data_pipeline.bus import _redis_upkeep
from market_data_pipeline.bus._redis_scripts import SEQUENCES
from market_data_pipeline.bus.redis import RedisBus


@pytest.fixture
def prefix(redis_server: Server) -> str:
    return redis_server.new_prefix()


@pytest.fixture
async def bus(redis_server: Server, prefix: str) -> AsyncIterator[RedisBus]:
    async with opened(redis_server.uri, prefix) as one:
        yield one


@pytest.fixture
def client(redis_server: Server) -> Any:
    with redis_server.client() as one:
        yield one


# ---- keys ----------------------------------------------------------------------------------


async def test_two_deployments_on_one_server_do_not_see_each_other(redis_server: Server) -> None:
    first, second = redis_server.new_prefix(), redis_server.new_prefix()
    async with opened(redis_server.uri, first) as a, opened(redis_server.uri, second) as b:
        made = [await bus.create_topic(TOPIC, 2) for bus in (a, b)]
        await a.append(TOPIC, [entry("a", key="k")])
        await b.append(TOPIC, [entry("b", key="k"), entry("b2")])
        assert made[0].log_id != made[1].log_id
        assert texts(await read_all(a)) == ["a"]
        assert texts(await read_all(b)) == ["b", "b2"]
        await a.drop_topic(TOPIC)
        assert await a.topics() == []
        assert await b.topics() == made[1:]
        assert await received(b) == 2


async def test_two_databases_of_one_server_do_not_see_each_other(redis_server: Server) -> None:
    prefix, other = redis_server.new_prefix(), redis_server.uri.removesuffix("/0") + "/3"
    async with opened(redis_server.uri, prefix) as a, opened(other, prefix) as b:
        await a.create_topic(TOPIC, 1)
        assert await b.find_topic(TOPIC) is None


async def test_keys_are_where_the_documentation_says(
    bus: RedisBus, prefix: str, client: Any
) -> None:
    await bus.create_topic(TOPIC, 2)
    await bus.create_topic("one", 1)
    await bus.append(TOPIC, [entry("a", 1, key="k")])
    await bus.append("one", [entry("b")])
    kinds = {k.decode().removeprefix(prefix): client.type(k) for k in client.keys(f"{prefix}*")}
    writers = {name for name in kinds if ":writers:" in name}
    assert len(writers) == 2
    assert {name: kind for name, kind in kinds.items() if name not in writers} == {
        "mdp:topics": b"set", "mdp.events:meta": b"hash", "mdp.events:keys": b"zset",
        "mdp.events:1": b"stream", "one": b"stream", "one:meta": b"hash",
    }  # fmt: skip
    for name in writers:
        assert 0 < client.ttl(prefix + name) <= 86_400


@pytest.mark.parametrize(
    "key", ["mdp.events:0", "mdp.events:meta", "mdp.events:keys", "mdp:topics"]
)
async def test_a_key_in_the_way_is_named(bus: RedisBus, prefix: str, client: Any, key: str) -> None:
    """Nothing of an append is written then."""
    if "meta" not in key and "topics" not in key:
        await bus.create_topic(TOPIC, 2)
    client.set(prefix + key, "theirs")

    async def use() -> None:
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("x", 1), entry("y", 0, key="k")])

    with pytest.raises(UsageError, match=f"{prefix}{key}' is a string") as caught:
        await use()
    assert "key_prefix" in str(caught.value)
    assert client.get(prefix + key) == b"theirs"
    assert not client.exists(f"{prefix}{TOPIC}:1")


async def test_a_stream_in_the_way_of_reading_is_named(
    bus: RedisBus, prefix: str, client: Any
) -> None:
    await bus.create_topic(TOPIC, 2)
    assert await bus.poll(TOPIC, {0: 0, 1: 0}, PLENTY, 0) == {}
    client.rpush(f"{prefix}{TOPIC}:1", "theirs")
    for call in (bus.poll(TOPIC, {0: 0, 1: 0}, PLENTY, 0), bus.bounds(TOPIC, 1)):
        with pytest.raises(UsageError, match=f"{prefix}{TOPIC}:1' is a list"):
            await call


async def test_a_topic_of_a_later_format_is_refused(
    bus: RedisBus, prefix: str, client: Any
) -> None:
    await bus.create_topic(TOPIC, 1)
    client.hset(f"{prefix}{TOPIC}:meta", "format", "2")
    with pytest.raises(UsageError, match="format 2"):
        await bus.find_topic(TOPIC)


# ---- ids -----------------------------------------------------------------------------------


async def test_a_clock_that_has_gone_back_does_not_use_up_a_millisecond(
    bus: RedisBus, prefix: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server then numbers on in the last one, of which a position knows 2^20."""
    await bus.create_topic(TOPIC, 1)
    ahead = (int(time.time()) + 600) * 1_000
    client.xadd(prefix + TOPIC, {"data": "theirs"}, id=f"{ahead}-{SEQUENCES - 3}")
    for i in range(3):
        await bus.append(TOPIC, [entry(f"{i}{c}", key=f"{i}{c}") for c in "ab"])
    records = await read_all(bus)
    assert texts(records) == ["theirs", "0a", "0b", "1a", "1b", "2a", "2b"]
    assert [r.offset for r in records] == sorted({r.offset for r in records})
    assert await received(bus) == 7
    # a key is kept as long as its record, whatever the clock says, and will say
    later = SimpleNamespace(time=lambda: time.time() + 300, monotonic=time.monotonic)
    monkeypatch.setattr(_redis_upkeep, "time", later)
    await bus.trim(TOPIC, 0, records[1].offset, 1 << 62, PLENTY)
    assert (await bus.bounds(TOPIC, 0)).first == records[1].offset
    await bus.append(TOPIC, [entry("again", key="0a")])
    assert texts(await read_all(bus)) == ["0a", "0b", "1a", "1b", "2a", "2b"]


async def test_readers_move_on_from_a_crowded_millisecond(
    bus: RedisBus, prefix: str, client: Any
) -> None:
    """Where others alone write, and the clock has gone back."""
    await bus.create_topic(TOPIC, 1)
    ahead = (int(time.time()) + 600) * 1_000
    client.xadd(prefix + TOPIC, {"data": "a"}, id=f"{ahead}-{SEQUENCES // 2 + 1}")
    assert texts(await read_all(bus)) == ["a"]
    assert client.xadd(prefix + TOPIC, {"data": "b"}) == f"{ahead + 1}-1".encode()
    records = await read_all(bus)
    assert texts(records) == ["a", "b"]
    assert await received(bus) == 2


@pytest.mark.parametrize("place", [f"1-{SEQUENCES}", "1795264127844000000-0"])
async def test_an_id_that_is_no_time_is_named(
    bus: RedisBus, prefix: str, client: Any, place: str
) -> None:
    """It has no position; passing it by would be a loss, reading it for ever a flood."""
    await bus.create_topic(TOPIC, 1)
    client.xadd(prefix + TOPIC, {"data": "theirs"}, id=place)
    with pytest.raises(UsageError, match=place):
        await bus.poll(TOPIC, {0: 0}, PLENTY, 0)
    if place.startswith("1-"):
        return
    with pytest.raises(UsageError, match=place):
        await bus.append(TOPIC, [entry("x")])
    assert client.xlen(prefix + TOPIC) == 1


# ---- several readers and groups of one client ----------------------------------------------


async def test_readers_of_one_client_do_not_disturb_one_another(
    bus: RedisBus, redis_server: Server, prefix: str
) -> None:
    """A micro-batcher and an archiver in one process read alike, at places of their own."""
    await bus.create_topic(TOPIC, 1)
    async with opened(redis_server.uri, prefix) as writer:
        read: dict[int, list[str]] = {0: [], 1: [], 2: []}

        async def follow(number: int) -> None:
            position = 0
            while len(read[number]) < 60:
                found = await bus.poll(TOPIC, {0: position}, 100 * (number + 1), 5)
                read[number] += texts(found[0])
                position = found[0][-1].offset + 1
                await asyncio.sleep(0.001 * number)

        with capture_logs() as logs:
            readers = [asyncio.create_task(follow(number)) for number in read]
            for i in range(30):
                await writer.append(TOPIC, [entry(f"{i}{c}", count=3) for c in "ab"])
            async with asyncio.timeout(20):
                await asyncio.gather(*readers)
        assert logs == []  # nothing was taken for lost
    wanted = [f"{i}{c}" for i in range(30) for c in "ab"]
    assert list(read.values()) == [wanted] * 3


async def test_steady_reading_and_writing_are_one_command_each(
    bus: RedisBus, redis_server: Server, prefix: str, client: Any
) -> None:
    await bus.create_topic(TOPIC, 2)
    await bus.assignment(TOPIC, "g", "m")
    positions = {0: 0, 1: 0}

    async def once() -> None:
        await bus.append(TOPIC, [entry("a"), entry("b", 1)])
        for p, records in (await bus.poll(TOPIC, positions, PLENTY, 1)).items():
            positions[p] = records[-1].offset + 1

    await once()
    client.config_resetstat()
    for _ in range(20):
        await once()
    stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}
    assert (calls["xread"], calls["evalsha"]) == (20, 20)
    assert calls.get("eval", 0) == 0
    assert calls["hget"] <= 40 + 2  # of the scripts, and to see that the log is still the same


async def test_large_entries_after_small_ones_do_not_come_all_at_once(
    bus: RedisBus, client: Any
) -> None:
    """What is asked of the server is bounded by what came before, however small that was."""
    await bus.create_topic(TOPIC, 1)
    for _ in range(50):
        await bus.append(TOPIC, [entry("mark", count=0)])
    position = (await read_all(bus))[-1].offset + 1
    assert await bus.poll(TOPIC, {0: position}, 1 << 20, 0) == {}
    await bus.append(TOPIC, [entry("mark")])
    position = (await bus.poll(TOPIC, {0: position}, 1 << 20, 0))[0][-1].offset + 1
    for _ in range(20):
        await bus.append(TOPIC, [entry("x" * 50_000) for _ in range(10)])
    before = client.info("stats")["total_net_output_bytes"]
    assert len((await bus.poll(TOPIC, {0: position}, 1 << 18, 0))[0]) <= 6
    assert client.info("stats")["total_net_output_bytes"] - before < 2_000_000


async def test_acknowledging_a_topic_that_is_gone_leaves_nothing_behind(
    bus: RedisBus, redis_server: Server, prefix: str, client: Any
) -> None:
    await bus.create_topic(TOPIC, 2)
    async with opened(redis_server.uri, prefix) as other:
        await other.drop_topic(TOPIC)
    await bus.acknowledge(TOPIC, "g", "m", {0: Place(0, 0), 1: Place(1, 1)})
    await bus.leave(TOPIC, "g", "m")
    assert client.keys(f"{prefix}*") == []
