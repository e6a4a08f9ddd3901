"""Servers that are full, cannot save, or refuse otherwise: what passes is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.bus.redis_kit import (
    PLENTY,
    TOPIC,
    data_of,
    entry,
    opened,
    read_all,
    received,
    texts,
)
from tests.servers.redis import Server

from market_data_core.errors import TransientError, UsageError
from market_data_core.records import Entry
from market_data_pipeline.bus.redis import RedisBus


async def test_a_server_that_is_full(server: Server) -> None:
    """Backpressure: nothing is written, reading and trimming go on, and then so does writing."""
    async with opened(server.uri) as bus, opened(server.uri) as fresh:
        await bus.create_topic(TOPIC, 2)
        rows = [entry("x" * 100_000, i % 2, key=f"{i}") for i in range(20)]
        await bus.append(TOPIC, rows)
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"])
            late = [entry("late"), entry("late", 1, key="late"), entry("late", 1)]
            for _ in range(3):
                with pytest.raises(TransientError, match="maxmemory"):
                    await bus.append(TOPIC, late)
            assert await fresh.create_topic(TOPIC, 2)
            for partition in (0, 1):
                assert len(await read_all(fresh, partition)) == 10
                end = (await fresh.bounds(TOPIC, partition)).next
                await fresh.trim(TOPIC, partition, end, 1 << 62, PLENTY)
            client.config_set("maxmemory", 0)
        await bus.append(TOPIC, late)
        assert [texts(await read_all(bus, p)) for p in (0, 1)] == [["late"], ["late", "late"]]
        assert [await received(bus, p) for p in (0, 1)] == [11, 12]


async def test_a_server_that_cannot_save(server: Server) -> None:
    async with opened(server.uri) as bus:
        await bus.create_topic(TOPIC, 1)
        folder = data_of(server)
        with server.client() as client:
            client.config_set("save", "3600 1")
            client.config_set("stop-writes-on-bgsave-error", "yes")
            (folder / client.config_get("dbfilename")["dbfilename"]).mkdir()
            client.bgsave()
            while client.info("persistence")["rdb_bgsave_in_progress"]:
                await asyncio.sleep(0.01)
            entries = [entry("x")]
            with pytest.raises(TransientError, match="MISCONF"):
                await bus.append(TOPIC, entries)
            client.config_set("save", "")  # or it would not end
        await bus.append(TOPIC, entries)
        assert texts(await read_all(bus)) == ["x"]


WRAPPED = "ERR Error running script (call to f_00): @user_script:12: @user_script: 12: "
REFUSALS: list[tuple[str, type[Exception]]] = [
    ("LOADING Redis is loading the dataset in memory", TransientError),
    ("READONLY You can't write against a read only replica.", TransientError),
    (WRAPPED + "-READONLY You can't write against a read only replica.", TransientError),
    (WRAPPED + "-OOM command not allowed when used memory > 'maxmemory'.", TransientError),
    ("OOM command not allowed when used memory > 'maxmemory'.", TransientError),
    ("MISCONF Redis is configured to save RDB snapshots", TransientError),
    ("MASTERDOWN Link with MASTER is down", TransientError),
    ("NOREPLICAS Not enough good replicas to write.", TransientError),
    ("BUSY Redis is busy running a script.", TransientError),
    ("UNBLOCKED force unblock from blocking operation, instance state changed", TransientError),
    ("CLUSTERDOWN The cluster is down", TransientError),
    ("ERR max number of clients reached", TransientError),
    ("BUSYGROUP Consumer Group name already exists", UsageError),
    ("MOVED 3999 127.0.0.1:6381", UsageError),
    ("ERR unknown command 'EVALSHA'", UsageError),
    ("NOAUTH Authentication required.", UsageError),
]


@pytest.mark.parametrize(("refusal", "kind"), REFUSALS, ids=[r[0][-40:] for r in REFUSALS])
@pytest.mark.parametrize("replicas", [0, 1])
async def test_what_a_server_says_is_passing_or_is_not(
    refusal: str, kind: type[Exception], replicas: int
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            for _ in range(data.count(b"*")):
                known = b"CLIENT" in data or b"SELECT" in data
                writer.write(b"+OK\r\n" if known else f"-{refusal}\r\n".encode())
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, opened(f"redis://127.0.0.1:{port}/0", replicas=replicas) as bus:
        with pytest.raises(kind):
            await bus.find_topic(TOPIC)
        with pytest.raises(kind):
            await bus._link.several([("XLEN", "a"), ("XLEN", "b")])


async def test_a_replica_takes_no_events(server: Server, redis_server: Server) -> None:
    """As after a failover, for as long as the old address is used."""
    async with opened(server.uri) as bus:
        await bus.create_topic(TOPIC, 1)
        entries: list[Entry] = [entry("x")]
        with server.client() as client:
            client.config_set("appendonly", "no")  # or it would not end before that is written
            client.replicaof("127.0.0.1", redis_server.port)
            with pytest.raises(TransientError):
                await bus.append(TOPIC, entries)
            client.replicaof("NO", "ONE")


async def test_a_closed_bus_says_so(redis_server: Server) -> None:
    async with opened(redis_server.uri) as bus:
        pass
    calls: list[Any] = [bus.append(TOPIC, []), bus.poll(TOPIC, {}, 1, 0), bus.topics()]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            await call
    assert isinstance(bus, RedisBus)


async def test_a_topic_that_was_away_for_a_moment_has_taken_nothing(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two servers of which one does not know it yet: nobody is told that it has."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        await bus.create_topic(TOPIC, 1)
        entries, run = [entry("a")], bus._link.run
        meta = f"{prefix}{TOPIC}:meta"

        async def elsewhere(script: str, keys: list[str], *arguments: Any) -> Any:
            return await run(script, [f"{meta}:elsewhere", *keys[1:]], *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(bus._link, "run", elsewhere)
            with pytest.raises(TransientError, match="nothing was appended"):
                await bus.append(TOPIC, entries)
        await bus.append(TOPIC, entries)
        assert texts(await read_all(bus)) == ["a"]
