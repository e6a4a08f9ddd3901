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
from market_data_core.records import Bounds, Entry
from market_data_core.testing._bus_writing import (
    PLENTY,
    TOPIC,
    BusWritingSuite,
    OpenBus,
    entry,
    read_all,
    texts,
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
        assert await bus.poll(TOPIC, {0: 1, 1: 0}, PLENTY, 0) == {}
        began = time.monotonic()
        assert await bus.poll(TOPIC, {0: 1, 1: 0}, PLENTY, 0.1) == {}
        assert time.monotonic() - began >= 0.09
        assert list(await bus.poll(TOPIC, {0: 0, 1: 0}, PLENTY, _NEVER_S)) == [0]
        assert await bus.poll(TOPIC, {}, PLENTY, 0) == {}

    @pytest.mark.parametrize("writer", ["itself", "another"])
    async def test_a_waiting_reader_is_woken(self, open_bus: OpenBus, writer: str) -> None:
        """By an append of its own client, and by one of another client."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        source = bus if writer == "itself" else open_bus()
        for i in range(3):
            waiting = asyncio.create_task(bus.poll(TOPIC, {0: 0, 1: i}, PLENTY, _NEVER_S))
            await asyncio.wait({waiting}, timeout=0.02)
            assert not waiting.done()
            await source.append(TOPIC, [entry(str(i), 1)])
            async with asyncio.timeout(_PATIENCE_S):
                assert texts((await waiting)[1]) == [str(i)]

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
        assert {p: [r.offset for r in records] for p, records in tiny.items()} == {0: [0], 1: [0]}
        rounds = 0
        while found := await bus.poll(TOPIC, positions, 30_000, 0):
            for p, records in found.items():
                assert [r.offset for r in records] == list(
                    range(positions[p], positions[p] + len(records))
                )
                positions[p] += len(records)
            rounds += 1
        assert positions == {0: 300, 1: 3, 2: 0}
        assert rounds >= 10

    async def test_a_position_outside_the_log_is_an_error(self, open_bus: OpenBus) -> None:
        """Beyond the end; before the beginning see the tests of `trim`."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a"), entry("b", 1)])
        for positions in ({0: 2}, {0: 1, 1: 7}):
            with pytest.raises(LogLostError):
                await bus.poll(TOPIC, positions, PLENTY, 0)

    async def test_checksums_are_of_single_records(self, open_bus: OpenBus) -> None:
        """None where there is no record."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a"), entry("b"), entry("c", 1)])
        found = [await bus.checksum(TOPIC, *at) for at in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
        assert found == [zlib.crc32(b"a"), zlib.crc32(b"b"), None, zlib.crc32(b"c"), None]

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
        cut = (await read_all(bus))[4].append_ts
        for before, older_than_ns, first in ((0, cut, 0), (7, 0, 0), (3, cut, 3), (7, cut, 4)):
            await bus.trim(TOPIC, 0, before, older_than_ns, PLENTY)
            assert await other.bounds(TOPIC, 0) == Bounds(first, 7, 7, 0)
        assert texts(await read_all(other, 0, 4)) == ["new0", "new1", "new2"]
        assert texts(await bus.scan(TOPIC, 0, "p", 0, 9)) == ["new0", "new1", "new2"]
        assert [await bus.checksum(TOPIC, 0, at) is None for at in (3, 4)] == [True, False]
        for client in (bus, other):
            with pytest.raises(LogLostError):
                await client.poll(TOPIC, {0: 3, 1: 0}, PLENTY, 0)
        assert texts(await read_all(bus, 1)) == ["old"]

    async def test_a_topic_may_be_trimmed_to_nothing(self, open_bus: OpenBus) -> None:
        """It goes on where it was."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a", source=5), entry("b", count=4)])
        await bus.trim(TOPIC, 0, 2, 1 << 62, PLENTY)
        assert await bus.bounds(TOPIC, 0) == Bounds(2, 2, 5, 5)
        assert await bus.poll(TOPIC, {0: 2}, 1, 0) == {}
        with pytest.raises(LogLostError):
            await bus.poll(TOPIC, {0: 1}, 1, 0)
        await bus.append(TOPIC, [entry("c")])
        (record,) = await read_all(open_bus(), 0, 2)
        assert (record.offset, record.received, record.payload) == (2, 5, b"c")

    async def test_a_large_topic_is_trimmed(self, open_bus: OpenBus) -> None:
        """From its oldest record on, as often as it is called, up to `before`."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        for _ in range(4):
            await bus.append(TOPIC, [entry("x" * 100_000) for _ in range(10)])
        await bus.trim(TOPIC, 0, 30, 0, PLENTY)
        assert (await bus.bounds(TOPIC, 0)).first == 0
        for _ in range(60):
            await bus.trim(TOPIC, 0, 30, 0, 500_000)
        assert await bus.bounds(TOPIC, 0) == Bounds(30, 40, 40, 0)
        for _ in range(60):
            await bus.trim(TOPIC, 0, 40, 0, 500_000)
        assert 33 <= (await bus.bounds(TOPIC, 0)).first <= 39

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
        assert await again.bounds(TOPIC, 0) == Bounds(0, 3, 4, 3)

    async def test_an_unused_bus_can_be_closed(self, open_bus: OpenBus) -> None:
        """And what is closed says so instead of losing what it is given."""
        await open_bus().close()
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.close()
        with pytest.raises((MdpError, RuntimeError)):
            await bus.append(TOPIC, [entry("x")])
        assert (await open_bus().bounds(TOPIC, 0)).next == 0
