"""Servers that stop or forget, and answers that never come."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.bus.redis_kit import (
    PLENTY,
    TOPIC,
    data_of,
    entry,
    needs_7,
    opened,
    patient,
    read_all,
    received,
    texts,
)
from tests.servers.proxy import Proxy
from tests.servers.redis import Server

from market_data_core.errors import LogLostError, TransientError, UsageError
from market_data_pipeline.windows.checkpoint import Checkpoint
from market_data_pipeline.windows.recovery import loss, recover

# ---- answers that are lost -----------------------------------------------------------------


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    one = Proxy(redis_server.port)
    yield one
    one.close()


async def test_an_append_whose_answer_was_lost_is_not_made_twice(
    redis_server: Server, proxy: Proxy
) -> None:
    """The caller calls again with the same sequence; other appends go on meanwhile."""
    uri = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=1"
    async with opened(uri, redis_server.new_prefix()) as bus:
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("first")])
        entries = [entry("a", count=5), entry("b", 1)]
        proxy.split("down")
        with pytest.raises(TransientError):
            await bus.append(TOPIC, entries)
        proxy.heal()
        await patient(lambda: bus.append(TOPIC, [entry("c")]))
        await bus.append(TOPIC, entries)
        await bus.append(TOPIC, [entry("d")])
        assert texts(await read_all(bus)) == ["first", "a", "c", "d"]
        assert texts(await read_all(bus, 1)) == ["b"]
        assert await received(bus) == 8
        # equal entries in another sequence are others, and so are those of a later call
        same = [entry("same")]
        await bus.append(TOPIC, same)
        await bus.append(TOPIC, list(same))
        await bus.append(TOPIC, same)
        assert texts(await read_all(bus))[-3:] == ["same"] * 3


async def test_a_request_that_comes_long_after_its_repetition_has_no_effect(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may keep what its sender has given up."""
    async with opened(redis_server.uri, redis_server.new_prefix()) as bus:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("first")])
        entries, late = [entry("late")], []

        async def held(*request: Any) -> None:
            late.append(request)
            msg = "no answer"
            raise TransientError(msg)

        with monkeypatch.context() as patched:
            patched.setattr(bus._link, "run", held)
            with pytest.raises(TransientError):
                await bus.append(TOPIC, entries)
        await bus.append(TOPIC, entries)
        for i in range(5):
            await bus.append(TOPIC, [entry(str(i))])
        (request,) = late
        assert await bus._link.run(*request) == 0
        assert texts(await read_all(bus)) == ["first", "late", *"01234"]


async def test_tokens_do_not_pile_up(redis_server: Server) -> None:
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        await bus.create_topic(TOPIC, 1)
        for i in range(50):
            await asyncio.gather(*(bus.append(TOPIC, [entry(f"{i}{c}")]) for c in "abc"))
        with redis_server.client() as client:
            (key,) = client.keys(f"{prefix}{TOPIC}:writers:*")
            assert client.hlen(key) < 10
        assert len(await read_all(bus)) == 150


async def test_numbers_of_appends_outlive_the_topic(redis_server: Server) -> None:
    """A topic that is made anew takes what its writer has to say."""
    prefix = redis_server.new_prefix()
    async with opened(redis_server.uri, prefix) as bus:
        for _ in range(2):
            await bus.create_topic(TOPIC, 1)
            for i in range(3):
                await bus.append(TOPIC, [entry(str(i))])
            assert texts(await read_all(bus)) == ["0", "1", "2"]
            await bus.drop_topic(TOPIC)


# ---- servers that come back ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_that_starts_again_in_the_middle_of_the_work(
    server: Server, end: str
) -> None:
    """Nothing is lost, nothing comes twice."""
    count = 150
    async with opened(server.uri) as bus, opened(server.uri) as other:
        await bus.create_topic(TOPIC, 2)
        read: list[str] = []

        async def write() -> None:
            for i in range(count):
                entries = [entry(f"{i}a"), entry(f"{i}b", 1), entry(f"{i}c")]
                await patient(lambda e=entries: bus.append(TOPIC, e))  # type: ignore[misc]
                await asyncio.sleep(0.002)

        async def follow() -> None:
            positions = {0: 0, 1: 0}
            while len(read) < 3 * count:
                found = await patient(lambda: other.poll(TOPIC, positions, PLENTY, 1))
                for partition, records in found.items():
                    read.extend(texts(records))
                    positions[partition] = records[-1].offset + 1

        tasks = [asyncio.create_task(write()), asyncio.create_task(follow())]
        for _ in range(3):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(getattr(server, end))
            await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert sorted(read) == sorted(f"{i}{c}" for i in range(count) for c in "abc")
        assert [t for t in read if t[-1] != "b"] == [f"{i}{c}" for i in range(count) for c in "ac"]
        assert [await received(bus, p) for p in (0, 1)] == [2 * count, count]


class Forgetful:
    """A server that goes back to what it was at some time."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder / "then"

    def remember(self) -> None:
        shutil.copytree(data_of(self._server) / "appendonlydir", self._folder)

    def forget(self) -> None:
        data = data_of(self._server)
        self._server.kill()
        shutil.rmtree(data / "appendonlydir")
        shutil.copytree(self._folder, data / "appendonlydir")
        self._server.start()


async def test_a_reader_goes_on_after_the_tail_was_lost(server: Server, tmp_path: Path) -> None:
    """It keeps what it has read, reads what comes, and an operator is told."""
    needs_7(server)
    past = Forgetful(server, tmp_path)
    async with opened(server.uri) as bus, opened(server.uri) as writer:
        await bus.create_topic(TOPIC, 1)
        await writer.append(TOPIC, [entry("a"), entry("b")])
        past.remember()
        await writer.append(TOPIC, [entry("c"), entry("d")])
        records = await read_all(bus)
        assert texts(records) == ["a", "b", "c", "d"]
        past.forget()
        position = records[-1].offset + 1
        with capture_logs() as logs:
            await patient(lambda: writer.append(TOPIC, [entry("e")]))
            found = await patient(lambda: bus.poll(TOPIC, {0: position}, PLENTY, 5))
            assert texts(found[0]) == ["e"]
            assert await bus.poll(TOPIC, {0: found[0][-1].offset + 1}, PLENTY, 0) == {}
        (told,) = [one for one in logs if one["log_level"] == "error"]
        assert "has lost its latest records" in told["event"]
        assert told["events"] == 2
        assert texts(await read_all(bus, 0, records[0].offset)) == ["a", "b", "e"]


async def test_new_records_come_behind_those_that_were_lost(server: Server, tmp_path: Path) -> None:
    """Even if the clock of the server that has taken over is late."""
    needs_7(server)
    past = Forgetful(server, tmp_path)
    async with opened(server.uri) as bus:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a")])
        past.remember()
        with server.client() as client:
            end = int(client.xinfo_stream(TOPIC)["last-generated-id"].split(b"-")[0])
            client.xadd(TOPIC, {"data": "b"}, id=f"{end + 10_000_000}-0")
        position = (await read_all(bus))[-1].offset + 1
        past.forget()
        with capture_logs() as logs:
            assert await patient(lambda: bus.poll(TOPIC, {0: position}, PLENTY, 0)) == {}
        assert [one["log_level"] for one in logs].count("error") == 1
        await bus.append(TOPIC, [entry("c")])
        assert texts((await bus.poll(TOPIC, {0: position}, PLENTY, 0))[0]) == ["c"]


async def test_others_in_the_place_of_what_was_read_are_noticed(
    server: Server, tmp_path: Path
) -> None:
    needs_7(server)
    past = Forgetful(server, tmp_path)
    async with opened(server.uri) as bus:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a")])
        past.remember()
        with server.client() as client:
            end = int(client.xinfo_stream(TOPIC)["last-generated-id"].split(b"-")[0])
            client.xadd(TOPIC, {"data": "b"}, id=f"{end + 10_000_000}-0")
        position = (await read_all(bus))[-1].offset + 1
        past.forget()
        with server.client() as client:
            client.xadd(TOPIC, {"data": "c"})
        with pytest.raises(LogLostError, match="others have taken their places"):
            await patient(lambda: bus.poll(TOPIC, {0: position}, PLENTY, 0))


async def test_a_new_owner_notices_that_the_tail_was_lost(server: Server, tmp_path: Path) -> None:
    """By the record before what it has counted; it goes on from there."""
    needs_7(server)
    past = Forgetful(server, tmp_path)
    async with opened(server.uri) as bus:
        info = await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a", count=3)])
        past.remember()
        await bus.append(TOPIC, [entry("b", count=4)])
        records = await read_all(bus)
        counted = records[-1].offset + 1
        checkpoint = Checkpoint(
            log_id=info.log_id, resume=counted, counted=counted, checksum=records[-1].checksum
        )
        checkpoint.counts.received = checkpoint.counts.stored = 7
        assert await loss(bus, info, 0, checkpoint) == ""
        past.forget()
        for more in ([], [entry("c", count=5)]):
            if more:
                await bus.append(TOPIC, more)
            async with opened(server.uri) as fresh:
                assert await patient(lambda: loss(fresh, info, 0, checkpoint)) == "log_tail_lost"
                found = await recover(fresh, info, 0, checkpoint, 10**9)
                at = found.checkpoint.counted
                assert texts(await read_all(fresh, 0, at)) == [e.payload.decode() for e in more]
                assert found.checkpoint.counts.holds()


async def test_an_append_only_file_that_was_cut_short(server: Server) -> None:
    """The half of an append that its last bytes were is not there at all."""
    needs_7(server)
    async with opened(server.uri) as bus:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a"), entry("b")])
        await bus.append(TOPIC, [entry("c" * 1_000), entry("d" * 1_000, key="k")])
        folder = data_of(server) / "appendonlydir"
        server.kill()
        (file,) = folder.glob("*.incr.aof")
        data = file.read_bytes()
        file.write_bytes(data[: data.rindex(b"d" * 1_000) + 10])
        server.start()
        assert texts(await patient(lambda: read_all(bus))) == ["a", "b"]
        assert await received(bus) == 2
        await bus.append(TOPIC, [entry("e", key="k")])
        assert texts(await read_all(bus)) == ["a", "b", "e"]


async def test_a_server_that_was_emptied_while_in_use(server: Server) -> None:
    async with opened(server.uri) as bus, opened(server.uri) as waiting:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a")])
        position = (await read_all(waiting))[-1].offset + 1
        poll = asyncio.create_task(waiting.poll(TOPIC, {0: position}, PLENTY, 60))
        await asyncio.sleep(0.05)
        with server.client() as client:
            client.flushall()
        with pytest.raises(LogLostError, match=f"{TOPIC}' is gone while in use"):
            await bus.append(TOPIC, [entry("b")])
        async with asyncio.timeout(10):
            with pytest.raises(LogLostError, match="is gone"):
                await poll
        with pytest.raises(UsageError, match="there is no topic"):
            await bus.append(TOPIC, [entry("b")])
