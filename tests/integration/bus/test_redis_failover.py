"""Replicas and Sentinel: who has an append when it counts, and who takes over."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.integration.bus.redis_kit import (
    PLENTY,
    TOPIC,
    entry,
    opened,
    patient,
    read_all,
    received,
    texts,
    until,
)
from tests.servers.redis import MISSING, Server, binary, running

from market_data_core.errors import TransientError
from market_data_pipeline.bus import _redis_writing

PASSWORD = "f4ilover"  # noqa: S105  (of servers that live for one test)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_writing, "_WAIT_MS", 200)


@contextmanager
def pair(*options: str, password: str = "") -> Iterator[tuple[Server, Server]]:
    """A server and a replica of it that is in step."""
    if binary() is None:
        pytest.skip(MISSING)
    if password:
        options = (*options, "--requirepass", password, "--masterauth", password)
    with ExitStack() as stack:
        usual = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        first = stack.enter_context(running(*usual, *options))
        assert first
        # a replica that writes its first append-only file does not end when asked to
        of = ("--replicaof", "127.0.0.1", str(first.port), "--appendonly", "no")
        second = stack.enter_context(running(*usual, *options, *of))
        assert second
        with second.client(password=password or None) as client:
            deadline = time.monotonic() + 20
            while client.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < deadline, second.log
                time.sleep(0.02)
        yield first, second


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with pair() as found:
        yield found


async def test_an_append_counts_when_replicas_have_it(servers: tuple[Server, Server]) -> None:
    first, second = servers
    async with opened(first.uri, replicas=1) as bus:
        await bus.create_topic(TOPIC, 1)
        first_one = [entry("a", key="k")]
        await patient(lambda: bus.append(TOPIC, first_one))
        with second.client() as client:
            assert client.xlen(TOPIC) == 1
        async with opened(first.uri, replicas=2) as strict:
            entries = [entry("b")]
            for _ in range(2):  # the second time it is there, and still only one has it
                with pytest.raises(TransientError, match=r"[01] of 2 replicas.*redis\.replicas"):
                    await strict.append(TOPIC, entries)
        assert texts(await read_all(bus)) == ["a", "b"]


async def test_a_repeated_append_waits_for_the_replica_too(
    servers: tuple[Server, Server],
) -> None:
    """On whatever connection it comes: a replica that stands still has not got it."""
    first, second = servers
    async with opened(first.uri, replicas=1) as bus:
        await bus.create_topic(TOPIC, 1)
        first_one = [entry("a")]
        await patient(lambda: bus.append(TOPIC, first_one))
        second.send(signal.SIGSTOP)
        entries = [entry("b")]
        for _ in range(2):
            with pytest.raises(TransientError, match="0 of 1 replicas"):
                await bus.append(TOPIC, entries)
            await bus._link.client.connection_pool.disconnect()
        second.send(signal.SIGCONT)
        await patient(lambda: bus.append(TOPIC, entries))
        assert texts(await read_all(bus)) == ["a", "b"]
        with second.client() as client:
            assert client.xlen(TOPIC) == 2


async def test_what_a_replica_says_when_written_to(servers: tuple[Server, Server]) -> None:
    first, second = servers
    async with opened(first.uri) as bus, opened(second.uri) as wrong:
        await bus.create_topic(TOPIC, 1)
        with second.client() as client:
            await until(lambda: client.exists(f"{TOPIC}:meta"))
        with pytest.raises(TransientError):
            await wrong.append(TOPIC, [entry("a")])


@contextmanager
def sentinel(folder: Path, first: Server, password: str = "") -> Iterator[int]:
    """A Sentinel that watches one server; its port."""
    program = binary()
    assert program
    with ExitStack() as stack:
        probe = stack.enter_context(running())
        assert probe
        port = probe.port
    lines = [
        f"port {port}", "bind 127.0.0.1", f"dir {folder}",
        f"sentinel monitor main 127.0.0.1 {first.port} 1",
        "sentinel down-after-milliseconds main 300", "sentinel failover-timeout main 2000",
    ]  # fmt: skip
    if password:
        lines += [f"sentinel auth-pass main {password}", f"requirepass {password}-s"]
    (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), str(folder / "sentinel.conf"), "--sentinel"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("password", ["", PASSWORD])
async def test_sentinel_names_the_server_that_takes_over(tmp_path: Path, password: str) -> None:
    """Appends and polls go on; what the replica had is read once."""
    count, user = 300, f":{password}@" if password else ""
    with pair(password=password) as (first, _), sentinel(tmp_path, first, password) as port:
        more = f"?sentinel_password={password}-s" if password else ""
        uri = f"redis+sentinel://{user}localhost:1,127.0.0.1:{port}/main/0{more}"
        async with opened(uri, replicas=1) as bus, opened(uri) as other, opened(uri) as third:
            await patient(lambda: bus.create_topic(TOPIC, 1))
            read: list[str] = []

            async def write() -> None:
                for i in range(count):
                    if i == 50:
                        await asyncio.to_thread(first.kill)
                        bus._writer._replicas = 0  # nobody is left who could
                    entries = [entry(f"{i}a"), entry(f"{i}b")]
                    await patient(lambda e=entries: bus.append(TOPIC, e))  # type: ignore[misc]

            async def follow() -> None:
                position = 0
                while len(read) < 2 * count:
                    found = await patient(
                        lambda: other.poll(TOPIC, {0: position}, PLENTY, 1)  # noqa: B023
                    )
                    for records in found.values():
                        read.extend(texts(records))
                        position = records[-1].offset + 1

            async with asyncio.timeout(40):
                await asyncio.gather(write(), follow())
            assert read == [f"{i}{c}" for i in range(count) for c in "ab"]
            assert await patient(lambda: received(third)) == 2 * count


async def test_sentinels_that_do_not_answer() -> None:
    async with opened("redis+sentinel://:t0psecret@127.0.0.1:1/main/0") as bus:
        with pytest.raises(TransientError, match="No master found for 'main'") as caught:
            await bus.find_topic(TOPIC)
    assert "t0psecret" not in str(caught.value)
