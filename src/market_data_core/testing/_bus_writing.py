"""What every bus must do about topics and appending; part of the bus suite."""
# ruff: noqa: S101  (asserting is what this module is for)

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest

from market_data_core.contracts.bus import Bus
from market_data_core.errors import LogLostError, TransientError, UsageError
from market_data_core.records import Entry, Record, TopicInfo

OpenBus = Callable[[], Bus]
"""Opens one more client of the same storage."""

TOPIC = "suite.events"
PLENTY = 1 << 30
"""More bytes than any test writes."""
_WAIT_S = 30.0
_HOSTILE = (
    "", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", "a b", "a\nb", "a\n", "a\0b", "-rf",
    "%s", "é", "a;DROP TABLE log", "'", '"', "*", "a" * 201,
)  # fmt: skip


def entry(
    payload: str,
    partition: int = 0,
    count: int = 1,
    provider: str = "p",
    source: int = 0,
    key: str = "",
) -> Entry:
    """An entry that holds `payload` as text and events at time 1."""
    return Entry(partition, payload.encode(), count, provider, 1, 1, source, key)


async def read_all(bus: Bus, partition: int = 0, position: int | None = None) -> list[Record]:
    """Everything from `position` (None: the first) to the partition's end, in small bites."""
    if position is None:
        position = (await bus.bounds(TOPIC, partition)).first
    records: list[Record] = []
    while True:
        found = await bus.poll(TOPIC, {partition: position}, 4096, 0)
        if not found:
            return records
        records += found[partition]
        position = records[-1].offset + 1


def texts(records: list[Record]) -> list[str]:
    """The payloads as text."""
    return [record.payload.decode() for record in records]


async def totals(bus: Bus, partition: int = 0) -> tuple[int | None, int]:
    """Events that the partition has received, and its source position."""
    end = (await bus.bounds(TOPIC, partition)).next
    received = await bus.received(TOPIC, partition, end)
    return received, await bus.source(TOPIC, partition)


def rise(records: list[Record]) -> bool:
    """Whether every offset is greater than the one before."""
    offsets = [record.offset for record in records]
    return offsets == sorted(set(offsets))


async def refused(*calls: object) -> None:
    """Each awaitable of `calls` raises UsageError."""
    for call in calls:
        with pytest.raises(UsageError):
            await call  # type: ignore[misc]


async def _patient(call: Callable[[], Awaitable[None]]) -> None:
    """The outcome of a call that is made again while the log is away."""
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                return await call()
            except TransientError:
                await asyncio.sleep(0.01)


class BusWritingSuite:
    """Topics and appending.

    Attributes:
        atomic_appends: set to False for a backend without transactions.
    """

    atomic_appends: ClassVar[bool] = True

    # ---- topics ----------------------------------------------------------------------------

    async def test_a_topic_is_made_once_and_found_by_everybody(self, open_bus: OpenBus) -> None:
        """Creating again is finding; the log's identity is the same for every client."""
        bus, other = open_bus(), open_bus()
        made = await bus.create_topic(TOPIC, 3)
        assert (made.name, made.partitions) == (TOPIC, 3)
        assert made.log_id
        assert await bus.create_topic(TOPIC, 3) == made
        assert await other.create_topic(TOPIC, 3) == made
        assert await other.find_topic(TOPIC) == made
        assert await open_bus().find_topic(TOPIC) == made

    async def test_clients_that_create_at_once_get_one_topic(self, open_bus: OpenBus) -> None:
        """No race makes two logs of one topic."""
        clients = [open_bus() for _ in range(6)]
        made = await asyncio.gather(*(bus.create_topic(TOPIC, 2) for bus in clients))
        assert len(set(made)) == 1

    async def test_another_number_of_partitions_is_refused(self, open_bus: OpenBus) -> None:
        """The error names the topic and the number that it has."""
        bus = open_bus()
        made = await bus.create_topic(TOPIC, 3)
        for client in (bus, open_bus()):
            with pytest.raises(UsageError, match=rf"{TOPIC}.* 3 ") as caught:
                await client.create_topic(TOPIC, 4)
            assert "4" in str(caught.value)
        assert await bus.find_topic(TOPIC) == made

    async def test_topics_are_listed_by_name(self, open_bus: OpenBus) -> None:
        """All of them, whoever made them."""
        bus, other = open_bus(), open_bus()
        assert await bus.topics() == []
        made = {name: await bus.create_topic(name, 1) for name in ("b", "a.z", "a-1")}
        made["c_"] = await other.create_topic("c_", 2)
        expected: list[TopicInfo] = [made[name] for name in sorted(made)]
        assert await bus.topics() == expected
        assert await open_bus().topics() == expected

    async def test_a_topic_that_does_not_exist(self, open_bus: OpenBus) -> None:
        """It is not found, may be dropped, and comes into being only by `create_topic`."""
        bus = open_bus()
        assert await bus.find_topic(TOPIC) is None
        await bus.drop_topic(TOPIC)
        await refused(
            bus.append(TOPIC, [entry("x")]), bus.bounds(TOPIC, 0), bus.poll(TOPIC, {0: 0}, 1, 0)
        )
        assert await bus.topics() == []
        assert await open_bus().find_topic(TOPIC) is None

    async def test_a_dropped_topic_is_gone_for_everybody(self, open_bus: OpenBus) -> None:
        """A topic made anew under its name is another, empty log."""
        bus, other = open_bus(), open_bus()
        made = await bus.create_topic(TOPIC, 2)
        await other.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("x", key="k")])
        await bus.drop_topic(TOPIC)
        assert [await client.find_topic(TOPIC) for client in (bus, other)] == [None, None]
        assert await other.topics() == []
        again = await other.create_topic(TOPIC, 1)
        assert again.log_id != made.log_id
        assert await read_all(other) == []
        assert await totals(other) == (0, 0)
        await other.append(TOPIC, [entry("y", key="k")])
        assert texts(await read_all(other)) == ["y"]

    @pytest.mark.parametrize("left", [0, 2])
    async def test_a_topic_that_was_removed_under_a_writer(
        self, open_bus: OpenBus, left: int
    ) -> None:
        """Or has fewer partitions: a log that was lost, which is told once."""
        bus, other = open_bus(), open_bus()
        await bus.create_topic(TOPIC, 3)
        entries = [entry(text, p) for p, text in enumerate("abc")]
        await bus.append(TOPIC, entries)
        await other.drop_topic(TOPIC)
        if left:
            await other.create_topic(TOPIC, left)
        with pytest.raises(LogLostError):
            await _patient(lambda: bus.append(TOPIC, [entry("lost", 2)]))
        found = await bus.find_topic(TOPIC)
        assert (found.partitions if found else 0) == left
        await bus.create_topic(TOPIC, left or 3)
        again = [entry("d", 1, key="k"), entry("e", 1, key="k"), entry("f", 1)]
        await bus.append(TOPIC, again)
        assert texts(await read_all(bus, 1)) == texts(await read_all(other, 1)) == ["d", "f"]

    async def test_a_topic_that_was_replaced_is_told_of_however_it_was_found(
        self, open_bus: OpenBus
    ) -> None:
        """Whoever looks it up does not keep it from those who write and read; each hears once."""
        bus, other = open_bus(), open_bus()
        made = await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a")])
        await read_all(bus)
        await other.drop_topic(TOPIC)
        again = await other.create_topic(TOPIC, 2)
        assert await bus.find_topic(TOPIC) == again != made
        assert await bus.topics() == [again]
        with pytest.raises(LogLostError):
            await bus.append(TOPIC, [entry("b")])
        with pytest.raises(LogLostError):
            await bus.poll(TOPIC, {0: 0}, 1, 0)
        await bus.append(TOPIC, [entry("c")])
        assert await bus.find_topic(TOPIC) == again
        await bus.append(TOPIC, [entry("d")])
        assert texts(await read_all(bus)) == texts(await read_all(other)) == ["c", "d"]

    async def test_a_topic_that_was_replaced_under_a_reader(self, open_bus: OpenBus) -> None:
        """It is told, also while it waits; then the new one can be read."""
        bus, other = open_bus(), open_bus()
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("a"), entry("b")])
        position = (await read_all(bus))[-1].offset + 1
        waiting = asyncio.create_task(bus.poll(TOPIC, {0: position}, PLENTY, _WAIT_S))
        await asyncio.wait({waiting}, timeout=0.02)
        await other.drop_topic(TOPIC)
        again = await other.create_topic(TOPIC, 1)
        await other.append(TOPIC, [entry("c")])
        with pytest.raises(LogLostError):
            await waiting
        assert await bus.find_topic(TOPIC) == again
        assert texts(await read_all(bus)) == ["c"]

    @pytest.mark.parametrize("name", _HOSTILE, ids=repr)
    async def test_a_name_that_is_none_is_refused(self, open_bus: OpenBus, name: str) -> None:
        """Before anything outside the bus's own storage could be touched."""
        bus = open_bus()
        await refused(
            bus.create_topic(name, 1),
            bus.find_topic(name),
            bus.drop_topic(name),
            bus.append(name, [entry("x")]),
        )
        assert await bus.topics() == []

    # ---- appending -------------------------------------------------------------------------

    async def test_records_are_what_was_appended(self, open_bus: OpenBus) -> None:
        """Offsets rise, the order is kept, events are counted."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        before = time.time_ns()
        await bus.append(TOPIC, [])
        await bus.append(TOPIC, [entry("a", count=3), entry("b", 1), entry("c", count=0)])
        await bus.append(TOPIC, [entry("d", count=5), entry("", count=1)])
        records = await read_all(bus)
        assert rise(records)
        assert [(r.partition, r.payload, r.count) for r in records] == [
            (0, b"a", 3), (0, b"c", 0), (0, b"d", 5), (0, b"", 1),
        ]  # fmt: skip
        before_each = [await bus.received(TOPIC, 0, r.offset) for r in records]
        assert before_each == [0, 3, 3, 8]
        assert [r.checksum for r in records] == [zlib.crc32(r.payload) for r in records]
        margin = 60 * 10**9  # a server has a clock of its own
        assert all(before - margin < r.append_ts < time.time_ns() + margin for r in records)
        assert texts(await read_all(bus, 1)) == ["b"]
        bounds = await bus.bounds(TOPIC, 0)
        assert bounds.first <= records[0].offset
        assert bounds.next == records[-1].offset + 1
        assert [await totals(bus, p) for p in (0, 1)] == [(9, 0), (1, 0)]

    async def test_the_source_position_is_the_greatest(self, open_bus: OpenBus) -> None:
        """An older position that is sent again does not set it back."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a", source=7), entry("b", source=9)])
        await bus.append(TOPIC, [entry("c", source=8), entry("d", 1, source=2), entry("mark")])
        assert [await bus.source(TOPIC, p) for p in (0, 1)] == [9, 2]

    async def test_a_wrong_partition_is_refused(self, open_bus: OpenBus) -> None:
        """Nothing of such an append stays."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        for wrong in (-1, 2, 1 << 20):
            await refused(
                bus.append(TOPIC, [entry("a"), entry("b", wrong), entry("c", 1)]),
                bus.bounds(TOPIC, wrong),
                bus.poll(TOPIC, {wrong: 0}, 1, 0),
            )
        assert [await totals(bus, p) for p in (0, 1)] == [(0, 0)] * 2
        assert [await read_all(bus, p) for p in (0, 1)] == [[], []]

    async def test_readers_see_an_append_whole_or_not_at_all(self, open_bus: OpenBus) -> None:
        """Three entries at a time: whatever is read is a multiple of three."""
        if not self.atomic_appends:
            pytest.skip("the backend has no transactions")
        bus, other = open_bus(), open_bus()
        await bus.create_topic(TOPIC, 1)

        async def write() -> None:
            for i in range(60):
                await bus.append(TOPIC, [entry(f"{i}{part}") for part in "abc"])

        writing = asyncio.create_task(write())
        seen = []
        while not writing.done():
            seen.append(len(await read_all(other, 0, 0)))
            await asyncio.sleep(0.01)
        await writing
        assert [n for n in seen if n % 3] == []
        assert len(await read_all(other)) == 180

    async def test_an_entry_with_a_known_key_is_left_out(self, open_bus: OpenBus) -> None:
        """Once for each key, within an append, over several, from any client, after reopening."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("a", key="k1", count=2), entry("b", key="k1", count=2)])
        again = [entry("c", key="k1"), entry("d", key="k2"), entry("e", 1, key="k2"), entry("f")]
        await bus.append(TOPIC, again)
        other = open_bus()
        await other.append(TOPIC, [*again, entry("f")])
        await bus.close()
        await other.close()
        last = open_bus()
        await last.append(TOPIC, again[:3])
        records = await read_all(last)
        assert texts(records) == ["a", "d", "f", "f", "f"]
        assert rise(records)
        assert [await totals(last, p) for p in (0, 1)] == [(6, 0), (0, 0)]

    async def test_a_source_position_is_passed_once(self, open_bus: OpenBus) -> None:
        """A lane's producer that was overtaken adds nothing that is there already."""
        overtaken, bus = open_bus(), open_bus()
        await bus.create_topic(TOPIC, 2)
        steps = [
            [entry("a", source=2), entry("b", source=2), entry("c", 1, source=3)],
            [entry("d", source=5), entry("mark", count=0)],
        ]
        await overtaken.append(TOPIC, steps[0])
        for step in steps:
            await bus.append(TOPIC, step)
        await overtaken.append(TOPIC, steps[1][:1])
        assert texts(await read_all(bus)) == ["a", "b", "d", "mark"]
        assert texts(await read_all(bus, 1)) == ["c"]
        assert await totals(bus) == (3, 5)

    async def test_a_key_has_effect_once_even_at_once(self, open_bus: OpenBus) -> None:
        """Two clients publish the same messages at the same time."""
        clients = [open_bus(), open_bus()]
        await clients[0].create_topic(TOPIC, 1)

        async def publish(bus: Bus) -> None:
            for i in range(0, 60, 2):
                await bus.append(TOPIC, [entry(str(n), key=f"message/{n}") for n in (i, i + 1)])

        await asyncio.gather(*(publish(bus) for bus in clients))
        records = await read_all(clients[0])
        assert texts(records) == [str(i) for i in range(60)]
        assert await totals(clients[1]) == (60, 0)

    async def test_many_append_at_once(self, open_bus: OpenBus) -> None:
        """Nothing is lost, doubled, or put out of its client's order."""
        clients = [open_bus() for _ in range(4)]
        await clients[0].create_topic(TOPIC, 2)

        async def write(name: int, lane: int, bus: Bus) -> None:
            for i in range(20):
                text = f"{name}/{lane}/{i:03}"
                await bus.append(TOPIC, [entry(text, p) for p in (0, 1)])

        await asyncio.gather(
            *(write(n, lane, bus) for n, bus in enumerate(clients) for lane in (0, 1))
        )
        for partition in (0, 1):
            records = await read_all(open_bus(), partition)
            assert rise(records)
            assert await totals(clients[1], partition) == (160, 0)
            written = texts(records)
            for n in range(4):
                for lane in (0, 1):
                    own = [text for text in written if text.startswith(f"{n}/{lane}/")]
                    assert own == sorted(own)
                    assert len(own) == 20

    async def test_large_payloads(self, open_bus: OpenBus) -> None:
        """Ten megabytes of any bytes come back as they were."""
        bus = open_bus()
        await bus.create_topic(TOPIC, 1)
        large = bytes(range(256)) * 40_960
        await bus.append(TOPIC, [Entry(0, b"before"), Entry(0, large, 1), Entry(0, b"after")])
        for client in (bus, open_bus()):
            records = await read_all(client)
            assert [r.payload for r in records] == [b"before", large, b"after"]
            assert await client.checksum(TOPIC, 0, records[1].offset) == zlib.crc32(large)
