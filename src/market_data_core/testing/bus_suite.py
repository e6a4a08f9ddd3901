"""What every bus must do: one class of tests, to be run over each backend.

A backend's test module inherits the class and says how its bus is opened::

    class TestReplica(BusSuite):
        @pytest.fixture
        async def open_bus(self, tmp_path):
            ...
            yield open_one      # each call: another client of the same storage, empty at first
            ...                 # close them all

The tests are coroutines (pytest-asyncio in its ``auto`` mode). A ``conftest.py`` that calls
``pytest.register_assert_rewrite("market_data_core.testing")`` makes their failures show values.
"""
# ruff: noqa: S101  (asserting is what this module is for)

from __future__ import annotations

import asyncio
import time
import zlib

import pytest

from market_data_core.errors import LogLostError, MdpError
from market_data_core.records import Bounds, Entry, Place
from market_data_core.testing._bus_writing import (
    PLENTY,
    TOPIC,
    BusWritingSuite,
    OpenBus,
    entry,
    read_all,
    rise,
    texts,
    totals,
)

__all__ = ["BusSuite", "OpenBus"]

_PATIENCE_S = 20.0
"""Longer than any poll that is woken needs, shorter than the timeout it is called with."""
_NEVER_S = 600.0


class BusSuite(BusWritingSuite):
    """The contract of :class:`market_data_core.contracts.bus.Bus`, test by test."""

    # ---- reading ---------------------------------------------------------------------------

    async def test_an_empty_answer_means_the_end(self, open_bus: OpenBus) -> None:
        """At once without a timeout, else after waiting for it."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a")])
        ends = {p: (await bus.bounds(TOPIC, p)).next for p in (0, 1)}
        assert await bus.poll(TOPIC, ends, PLENTY, 0) == {}
        began = time.monotonic()
        assert await bus.poll(TOPIC, ends, PLENTY, 0.1) == {}
        assert time.monotonic() - began >= 0.09
        assert list(await bus.poll(TOPIC, {0: 0, 1: 0}, PLENTY, _NEVER_S)) == [0]
        assert await bus.poll(TOPIC, {}, PLENTY, 0) == {}

    @pytest.mark.parametrize("writer", ["itself", "another"])
    async def test_a_waiting_reader_is_woken(self, open_bus: OpenBus, writer: str) -> None:
        """By an append of its own client, and by one of another client."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        source = bus if writer == "itself" else open_bus()
        position = 0
        for i in range(3):
            waiting = asyncio.create_task(bus.poll(TOPIC, {0: 0, 1: position}, PLENTY, _NEVER_S))
            await asyncio.wait({waiting}, timeout=0.02)
            assert not waiting.done()
            await source.append(TOPIC, [entry(str(i), 1)])
            async with asyncio.timeout(_PATIENCE_S):
                records = (await waiting)[1]
            assert texts(records) == [str(i)]
            position = records[0].offset + 1

    async def test_several_readers_wait_at_once(self, open_bus: OpenBus) -> None:
        """One that is woken does not keep the news from the others."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        polls = [asyncio.create_task(bus.poll(TOPIC, {0: 0}, 1, _NEVER_S)) for _ in range(5)]
        await asyncio.wait(polls, timeout=0.02)
        await bus.append(TOPIC, [entry("x")])
        async with asyncio.timeout(_PATIENCE_S):
            assert [texts(found[0]) for found in await asyncio.gather(*polls)] == [["x"]] * 5

    async def test_a_busy_partition_does_not_starve_the_others(self, open_bus: OpenBus) -> None:
        """The bytes asked for are shared out; one record comes however few they are."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 3)
        busy = [entry("b" * 1000) for _ in range(300)]
        await bus.append(TOPIC, [*busy, *(entry("q", 1) for _ in range(3))])
        positions = {0: 0, 1: 0, 2: 0}
        found = await bus.poll(TOPIC, positions, 30_000, 0)
        assert sorted(found) == [0, 1]
        assert len(found[1]) == 3
        assert 1 <= len(found[0]) <= 11
        tiny = await bus.poll(TOPIC, positions, 1, 0)
        assert {p: [r.offset for r in records] for p, records in tiny.items()} == {
            p: [found[p][0].offset] for p in (0, 1)
        }
        rounds, read = 0, {0: 0, 1: 0}
        while found := await bus.poll(TOPIC, positions, 30_000, 0):
            for p, records in found.items():
                assert records[0].offset >= positions[p]
                assert rise(records)
                positions[p] = records[-1].offset + 1
                read[p] += len(records)
            rounds += 1
        assert read == {0: 300, 1: 3}
        assert rounds >= 10

    async def test_a_position_outside_the_log_is_an_error(self, open_bus: OpenBus) -> None:
        """Beyond the end; before the beginning see the tests of `trim`."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a"), entry("b", 1)])
        ends = {p: (await bus.bounds(TOPIC, p)).next for p in (0, 1)}
        for positions in ({0: ends[0] + 1}, {0: ends[0], 1: ends[1] + 7}):
            for client in (bus, open_bus()):
                with pytest.raises(LogLostError):
                    await client.poll(TOPIC, positions, PLENTY, 0)

    async def test_checksums_are_of_single_records(self, open_bus: OpenBus) -> None:
        """None where there is no record."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a"), entry("b"), entry("c", 1)])
        first, second = [r.offset for r in await read_all(bus)]
        (third,) = [r.offset for r in await read_all(bus, 1)]
        places = ((0, first), (0, second), (0, second + 1), (1, third), (1, third + 1))
        found = [await bus.checksum(TOPIC, *place) for place in places]
        assert found == [zlib.crc32(b"a"), zlib.crc32(b"b"), None, zlib.crc32(b"c"), None]

    async def test_positions_by_time_of_appending(self, open_bus: OpenBus) -> None:
        """The first record of that time or later; the end if there is none."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        assert await bus.position_at(TOPIC, 0, 0) == (await bus.bounds(TOPIC, 0)).next
        for text in "abc":
            await bus.append(TOPIC, [entry(text)])
            await asyncio.sleep(0.003)  # a backend may count in milliseconds
        records = await read_all(bus)
        for client in (bus, open_bus()):
            for record in records:
                at = await client.position_at(TOPIC, 0, record.append_ts)
                assert texts(await read_all(client, 0, at))[0] == record.payload.decode()
            end = await client.position_at(TOPIC, 0, records[-1].append_ts + 10**9)
            assert end == records[-1].offset + 1
            assert texts(await read_all(client, 0, await client.position_at(TOPIC, 0, 0))) == [
                "a", "b", "c",
            ]  # fmt: skip

    async def test_scanning_by_provider_and_time(self, open_bus: OpenBus) -> None:
        """Every record that may hold such an event, in order; `to_ts` is exclusive; no marks."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        spans = {"a": (10, 20), "b": (15, 40), "c": (30, 30), "d": (-5, 12)}
        entries = [Entry(0, n.encode(), 1, "p", *span) for n, span in spans.items()]
        other = Entry(0, b"other", 1, "q", 10, 40)
        several = Entry(0, b"several", 2, "", 18, 35)
        mark = Entry(0, b"mark", 0, "p", 10, 40)
        elsewhere = Entry(1, b"elsewhere", 1, "p", 10, 40)
        await bus.append(TOPIC, [*entries, other, several, mark, elsewhere])

        async def scan(provider: str, from_ts: int, to_ts: int) -> list[str]:
            return texts(await bus.scan(TOPIC, 0, provider, from_ts, to_ts))

        assert await scan("p", -(1 << 62), 1 << 62) == ["a", "b", "c", "d", "several"]
        assert await scan("p", 20, 30) == ["a", "b", "several"]
        assert await scan("p", 21, 30) == ["b", "several"]
        assert await scan("p", 36, 41) == ["b"]
        assert await scan("p", -10, 10) == ["d"]
        assert await scan("p", 41, 100) == []
        assert await scan("q", 0, 18) == ["other"]
        assert await scan("nobody", 0, 18) == []

    # ---- trimming, closing -----------------------------------------------------------------

    async def test_old_records_are_trimmed(self, open_bus: OpenBus) -> None:
        """Those appended before a time, never from `before` on; positions and counts stay."""
        bus, other = open_bus(), open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("old", 1), *(entry(f"old{i}") for i in range(4))])
        await asyncio.sleep(0.003)  # a backend may count in milliseconds
        await bus.append(TOPIC, [entry(f"new{i}") for i in range(3)])
        records = await read_all(bus)
        cut, places = records[4].append_ts, [record.offset for record in records]
        bounds = await bus.bounds(TOPIC, 0)
        trims = ((bounds.first, cut, 0), (bounds.next, 0, 0), (places[3], cut, 3))
        for before, older_than_ns, gone in (*trims, (bounds.next, cut, 4)):
            await bus.trim(TOPIC, 0, before, older_than_ns, PLENTY)
            now = await other.bounds(TOPIC, 0)
            assert now.next == bounds.next
            assert now.first <= places[gone]
            assert texts(await read_all(other)) == texts(records)[gone:]
        assert texts(await bus.scan(TOPIC, 0, "p", 0, 9)) == ["new0", "new1", "new2"]
        assert [await bus.checksum(TOPIC, 0, places[i]) is None for i in (3, 4)] == [True, False]
        assert await bus.received(TOPIC, 0, places[4]) in (4, None)
        for client in (bus, other, open_bus()):
            with pytest.raises(LogLostError):
                await client.poll(TOPIC, {0: places[3], 1: 0}, PLENTY, 0)
        assert texts(await read_all(bus, 1)) == ["old"]

    async def test_a_topic_may_be_trimmed_to_nothing(self, open_bus: OpenBus) -> None:
        """It goes on where it was."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a"), entry("b", count=4)])
        last = (await read_all(bus))[-1].offset
        await bus.trim(TOPIC, 0, last + 1, 1 << 62, PLENTY)
        bounds = await bus.bounds(TOPIC, 0)
        assert bounds == Bounds(last + 1, last + 1)
        assert await bus.poll(TOPIC, {0: last + 1}, 1, 0) == {}
        with pytest.raises(LogLostError):
            await open_bus().poll(TOPIC, {0: last}, 1, 0)
        await bus.append(TOPIC, [entry("c")])
        (record,) = await read_all(open_bus(), 0, last + 1)
        assert record.payload == b"c"
        assert record.offset > last
        assert await bus.received(TOPIC, 0, record.offset) in (5, None)

    async def test_a_large_topic_is_trimmed(self, open_bus: OpenBus) -> None:
        """From its oldest record on, as often as it is called, up to `before`."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        for _ in range(4):
            await bus.append(TOPIC, [entry("x" * 100_000) for _ in range(10)])
        places = [record.offset for record in await read_all(bus)]
        end = (await bus.bounds(TOPIC, 0)).next
        assert await bus.trim(TOPIC, 0, places[30], 0, PLENTY) is False
        assert (await bus.bounds(TOPIC, 0)).first <= places[0]
        told = [await bus.trim(TOPIC, 0, places[30], 0, 500_000) for _ in range(60)]
        assert (told[0], told[-1]) == (False, True)  # more may go; no more may, and it is too much
        assert (await bus.bounds(TOPIC, 0)).next == end
        assert [record.offset for record in await read_all(bus)] == places[30:]
        told = [await bus.trim(TOPIC, 0, end, 0, 500_000) for _ in range(60)]
        assert told[-1] is False
        assert 33 <= 40 - len(await read_all(bus)) <= 39

    async def test_everything_is_there_after_reopening(self, open_bus: OpenBus) -> None:
        """Closing twice is closing; it does not disturb other clients."""
        bus, other = open_bus(), open_bus()
        made = await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a", count=2, source=3), entry("b", 1), entry("c")])
        kept = [await read_all(bus, p) for p in (0, 1)]
        await bus.close()
        await bus.close()
        await other.append(TOPIC, [entry("d")])
        await other.close()
        again = open_bus()
        assert await again.find_topic(TOPIC) == made
        records = await read_all(again)
        assert [records[:2], await read_all(again, 1)] == kept
        assert texts(records) == ["a", "c", "d"]
        assert await totals(again) == (4, 3)

    async def test_an_unused_bus_can_be_closed(self, open_bus: OpenBus) -> None:
        """And what is closed says so instead of losing what it is given."""
        await open_bus().close()
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.close()
        with pytest.raises((MdpError, RuntimeError)):
            await bus.append(TOPIC, [entry("x")])
        assert await read_all(open_bus()) == []

    # ---- groups ----------------------------------------------------------------------------

    async def test_a_group_can_be_told_of_and_left(self, open_bus: OpenBus) -> None:
        """Whether the bus has a protocol of its own or not; telling twice is telling once."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a"), entry("b")])
        async with asyncio.timeout(_PATIENCE_S):
            while (mine := await bus.assignment(TOPIC, "g", "m")) is not None and not mine:
                await bus.poll(TOPIC, {}, PLENTY, 0.05)
        records = (await bus.poll(TOPIC, {0: 0}, PLENTY, 1))[0]
        assert texts(records) == ["a", "b"]
        place = Place(records[1].offset, records[1].offset + 1)
        for _ in range(2):
            await bus.acknowledge(TOPIC, "g", "m", {0: place})
        for _ in range(2):
            await bus.leave(TOPIC, "g", "m")
