"""What others remove from our streams is noticed, once, and then reading goes on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.integration.bus.redis_kit import (
    PLENTY,
    TOPIC,
    entry,
    needs_7,
    opened,
    read_all,
    received,
    texts,
)
from tests.servers.redis import Server

from market_data_core.errors import LogHoleError, LogLostError
from market_data_core.records import Record
from market_data_pipeline.bus._redis_entries import id_of
from market_data_pipeline.bus.redis import RedisBus


async def five(bus: RedisBus) -> list[Record]:
    """A topic with five records of two events each."""
    await bus.create_topic(TOPIC, 1)
    for name in "abcde":
        await bus.append(TOPIC, [entry(name, count=2)])
    return await read_all(bus)


async def read_with_losses(bus: RedisBus, position: int) -> tuple[list[str], int]:
    """What is read from a position on, and how often something was said to be lost."""
    read: list[str] = []
    losses = 0
    while True:
        try:
            found = await bus.poll(TOPIC, {0: position}, 1, 0)
        except LogLostError:
            losses += 1
            assert losses < 5
            continue
        if not found:
            return read, losses
        read += texts(found[0])
        position = found[0][-1].offset + 1


async def test_a_hole_in_the_middle(redis_server: Server) -> None:
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus, opened(redis_server.uri, prefix) as other:
        records = await five(other)
        first = (await bus.poll(TOPIC, {0: 0}, 1, 0))[0]
        assert texts(first) == ["a"]
        with redis_server.client() as client:
            assert client.xdel(prefix + TOPIC, id_of(records[2].offset)) == 1
        assert await read_with_losses(bus, first[-1].offset + 1) == (["b", "d", "e"], 1)
        assert await received(bus) == 10
        assert await bus.received(TOPIC, 0, records[3].offset) == 6
        # one poll that meets it in the middle gives what is before it first
        again = records[0].offset + 1
        async with opened(redis_server.uri, prefix) as late:
            found = await late.poll(TOPIC, {0: again}, PLENTY, 0)
            assert texts(found[0]) == ["b"]
            with pytest.raises(LogLostError, match="2 events before"):
                await late.poll(TOPIC, {0: found[0][-1].offset + 1}, PLENTY, 0)
            rest = await late.poll(TOPIC, {0: found[0][-1].offset + 1}, PLENTY, 0)
            assert texts(rest[0]) == ["d", "e"]


async def test_who_begins_anew_because_of_a_hole_gets_past_it(redis_server: Server) -> None:
    """A micro-batcher reads again from before it."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus, opened(redis_server.uri, prefix) as other:
        records = await five(other)
        position = (await bus.poll(TOPIC, {0: 0}, 1, 0))[0][-1].offset + 1
        with redis_server.client() as client:
            client.xdel(prefix + TOPIC, id_of(records[3].offset))
        assert await read_with_losses(bus, position) == (["b", "c", "e"], 1)
        assert await read_with_losses(bus, records[0].offset) == (["a", "b", "c", "e"], 0)


@pytest.mark.parametrize("before", ["ours", "theirs", "gone"])
async def test_a_hole_right_where_a_new_reader_begins(redis_server: Server, before: str) -> None:
    """It shows by the entry before, or by the last of ours before theirs; else nobody can tell."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        records = await five(bus)
        with redis_server.client() as client:
            key = prefix + TOPIC
            if before == "theirs":
                for data in ("x", "y", "z"):
                    client.xadd(key, {"data": data})
            position = (await read_all(bus))[-1].offset + 1
            await bus.append(TOPIC, [entry("f", count=3), entry("g", count=4), entry("h")])
            client.xdel(key, *(id_of(r.offset) for r in (await read_all(bus, 0, position))[:2]))
            if before == "gone":
                client.xdel(key, id_of(records[-1].offset))
        async with opened(redis_server.uri, prefix) as fresh:
            if before != "gone":
                with pytest.raises(LogHoleError, match="7 events before") as hole:
                    await fresh.poll(TOPIC, {0: position}, PLENTY, 0)
                assert hole.value.events == 7
            assert await read_with_losses(fresh, position) == (["h"], 0)
        async with opened(redis_server.uri, prefix) as behind:
            assert await read_with_losses(behind, (await bus.bounds(TOPIC, 0)).next) == ([], 0)


async def test_a_new_reader_where_nothing_is_missing(redis_server: Server) -> None:
    """Wherever it begins: behind records of ours, of others, of large ones, or at what is kept."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        await five(bus)
        with redis_server.client() as client:
            for number in range(1_500):
                client.xadd(prefix + TOPIC, {"data": "x"})
                if number in (10, 400):
                    await bus.append(TOPIC, [entry("y" * 100_000, count=9)])
        await bus.append(TOPIC, [entry("z", count=2)])
        records = await read_all(bus)
        await bus.trim(TOPIC, 0, records[2].offset, 1 << 62, PLENTY)
        for place in [*records[2:30], *records[400:420], *records[-3:]]:
            async with opened(redis_server.uri, prefix) as fresh:
                found = await fresh.poll(TOPIC, {0: place.offset}, 10_000, 0)
                assert found[0][0] == place
                last = await fresh.poll(TOPIC, {0: records[-1].offset}, 1, 0)
                assert texts(last[0]) == ["z"]


async def test_two_readers_are_each_told_of_a_hole(redis_server: Server) -> None:
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus, opened(redis_server.uri, prefix) as other:
        records = await five(other)
        ahead, behind = records[1].offset, records[0].offset
        for start in (ahead, behind):
            await bus.poll(TOPIC, {0: start}, 1, 0)
        with redis_server.client() as client:
            client.xdel(prefix + TOPIC, id_of(records[3].offset))
        assert await read_with_losses(bus, ahead + 1) == (["c", "e"], 1)
        assert await read_with_losses(bus, behind + 1) == (["b", "c", "e"], 1)


async def test_the_beginning_cut_off(redis_server: Server) -> None:
    """XTRIM, or a producer's XADD with MAXLEN."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        records = await five(bus)
        with redis_server.client() as client:
            client.xtrim(prefix + TOPIC, maxlen=2, approximate=False)
        bounds = await bus.bounds(TOPIC, 0)
        assert records[2].offset < bounds.first <= records[3].offset
        async with opened(redis_server.uri, prefix) as fresh:
            with pytest.raises(LogLostError, match="holds"):
                await fresh.poll(TOPIC, {0: records[2].offset}, PLENTY, 0)
            assert texts(await read_all(fresh)) == ["d", "e"]
            assert await received(fresh) == 10
        # trimming on our own, and later, is no loss
        await bus.append(TOPIC, [entry("f")])
        await bus.trim(TOPIC, 0, records[4].offset, 1 << 62, PLENTY)
        assert (await bus.bounds(TOPIC, 0)).first == records[4].offset
        assert await read_with_losses(bus, records[4].offset) == (["e", "f"], 0)
        between = records[4].offset + 1
        await bus.trim(TOPIC, 0, between, 1 << 62, PLENTY)
        assert (await bus.bounds(TOPIC, 0)).first == between
        assert await read_with_losses(bus, between) == (["f"], 0)


@pytest.mark.parametrize("remake", [False, True])
async def test_a_stream_that_was_removed(redis_server: Server, remake: bool) -> None:
    """What it held is lost; what comes is read and counted on."""
    needs_7(redis_server)
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus, opened(redis_server.uri, prefix) as slow:
        records = await five(bus)
        end = records[-1].offset + 1
        seen = (await slow.poll(TOPIC, {0: 0}, 1, 0))[0][-1].offset + 1
        with redis_server.client() as client:
            client.xadd(prefix + TOPIC, {"data": "theirs"})
            assert texts(await read_all(bus, 0, end)) == ["theirs"]
            await bus.append(TOPIC, [entry("f", count=3)])
            end = (await read_all(bus))[-1].offset + 1
            client.delete(prefix + TOPIC)
            if remake:
                await asyncio.sleep(0.003)  # ids of others begin anew with the time
                client.xadd(prefix + TOPIC, {"data": "theirs too"})
        await bus.append(TOPIC, [entry("g", count=4)])
        theirs = ["theirs too"] if remake else []
        assert await read_with_losses(bus, end) == ([*theirs, "g"], 0)
        assert await received(bus) == 10 + 1 + 3 + 4 + len(theirs)
        # with nothing of ours in between, nobody can tell before the next record of ours
        assert await read_with_losses(slow, seen) == ([*theirs, "g"], 1)
        async with opened(redis_server.uri, prefix) as fresh:
            with pytest.raises(LogLostError):
                await fresh.poll(TOPIC, {0: records[2].offset}, PLENTY, 0)
            assert texts(await read_all(fresh)) == [*theirs, "g"]


async def test_new_entries_come_behind_those_of_a_stream_that_was_removed(
    redis_server: Server,
) -> None:
    """Even if the clock has gone back meanwhile: who has read the old ones has to see them."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        await bus.create_topic(TOPIC, 1)
        ahead = (int(time.time()) + 600) * 1_000
        with redis_server.client() as client:
            client.xadd(prefix + TOPIC, {"data": "theirs"}, id=f"{ahead}-7")
            await bus.append(TOPIC, [entry("a")])
            end = (await read_all(bus))[-1].offset + 1
            client.delete(prefix + TOPIC)
        assert (await bus.bounds(TOPIC, 0)).next == end
        await bus.append(TOPIC, [entry("b"), entry("c")])
        assert await read_with_losses(bus, end) == (["b", "c"], 0)
        assert await received(bus) == 4


async def test_everything_cut_off(redis_server: Server) -> None:
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        records = await five(bus)
        with redis_server.client() as client:
            client.xtrim(prefix + TOPIC, maxlen=0, approximate=False)
        end = records[-1].offset + 1
        bounds = await bus.bounds(TOPIC, 0)
        assert (bounds.first, bounds.next) == (end, end)
        assert await read_with_losses(bus, end) == ([], 0)
        await bus.append(TOPIC, [entry("f")])
        assert await read_with_losses(bus, end) == (["f"], 0)
        assert await received(bus) == 11


async def test_a_topic_that_was_made_anew_while_it_is_read(redis_server: Server) -> None:
    """Whatever comes in it, it is another log."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus, opened(redis_server.uri, prefix) as other:
        records = await five(bus)
        await other.drop_topic(TOPIC)
        await other.create_topic(TOPIC, 1)
        await other.append(TOPIC, [entry("x")])
        deadline = time.monotonic() + 10

        async def follow() -> None:
            position = records[-1].offset + 1
            while time.monotonic() < deadline:
                for found in (await bus.poll(TOPIC, {0: position}, PLENTY, 0.05)).values():
                    position = found[-1].offset + 1
                await other.append(TOPIC, [entry("y")])

        with pytest.raises(LogLostError, match="replaced"):
            await follow()
        with pytest.raises(LogLostError):
            await bus.poll(TOPIC, {0: records[-1].offset + (1 << 60)}, PLENTY, 0)


async def test_known_keys_go_with_their_records_and_not_before(redis_server: Server) -> None:
    """Of any partition: a record that is kept somewhere has its key known."""
    prefix = redis_server.new_prefix()
    with redis_server.client() as client:
        old = (int(time.time()) - 100) * 1_000

        def age(stream: str, key: str, place: int) -> None:
            """Make an entry and its key as if they were written long ago."""
            client.xadd(f"{prefix}{stream}", {"data": key, "m": "0|1||0|0"}, id=f"{place}-0")
            client.zadd(f"{prefix}{TOPIC}:keys", {key: place // 1_000})

        async with opened(redis_server.uri, prefix) as bus:
            await bus.create_topic(TOPIC, 2)
            for i in range(4):
                age(f"{TOPIC}:0", f"a{i}", old + i * 10_000)
            age(f"{TOPIC}:1", "b", old + 15_000)
            keys: Any = lambda: {k.decode() for k in client.zrange(f"{prefix}{TOPIC}:keys", 0, -1)}  # noqa: E731
            end = (await bus.bounds(TOPIC, 0)).next
        late = {"a2", "a3", "b"}
        for partition in (0, 1):
            async with opened(redis_server.uri, prefix) as bus:
                await bus.trim(TOPIC, partition, end, 1 << 62, PLENTY)
            assert keys() == late  # of those of one second, all stay as long as one does
        async with opened(redis_server.uri, prefix) as bus:
            await bus.append(TOPIC, [entry("new", key="new")])
            (record,) = await read_all(bus)
            await bus.trim(TOPIC, 0, record.offset, 1 << 62, PLENTY)
            assert keys() == {"new"}
