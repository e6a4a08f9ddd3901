"""What others write with XADD: into the plain name of a topic, and into its partitions."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.integration.bus.redis_kit import (
    PLENTY,
    TOPIC,
    entry,
    event,
    needs_7,
    opened,
    read_all,
    received,
    texts,
)
from tests.servers.redis import Server

from market_data_core.errors import LogLostError, RejectedError, TransientError
from market_data_core.events import EventBatch, Rejected, StreamEvent, make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Mark, Record
from market_data_pipeline.bus import _redis_scripts as scripts
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.redis import RedisBus

SYMBOLS = ("SPY", "AAPL", "MSFT", "QQQ", "IBM", "GE")
OTHER = next(s for s in SYMBOLS if partition_of(s, 4) != 0)
HERE = next(s for s in (*SYMBOLS, "A", "B", "C", "D", "E", "F") if partition_of(s, 4) == 0)
OPAQUE = b"\xff\x00not an event"


class Shared:
    """A topic under a prefix of its own, and what others do to it."""

    def __init__(self, server: Server) -> None:
        self.uri, self.prefix = server.uri, server.new_prefix()
        self.client = server.client()

    def add(self, data: str | bytes, partition: int | None = None) -> None:
        """XADD to the plain name, or to a partition's stream."""
        key = f"{self.prefix}{TOPIC}" + ("" if partition is None else f":{partition}")
        self.client.xadd(key, {"data": data})

    @property
    def inbox(self) -> int:
        """How many entries wait in the inbox."""
        return int(self.client.xlen(f"{self.prefix}{TOPIC}"))


@pytest.fixture
def shared(redis_server: Server) -> Any:
    one = Shared(redis_server)
    yield one
    one.client.close()


@pytest.fixture
async def bus(shared: Shared) -> AsyncIterator[RedisBus]:
    async with opened(shared.uri, shared.prefix) as one:
        yield one


def item_of(record: Record) -> EventBatch | Mark | Rejected | StreamEvent | None:
    """What a record holds; None if it cannot be read."""
    try:
        return codec.decode(record.payload)
    except RejectedError:
        return None


def ids_of(records: list[Record]) -> Counter[tuple[str, str, int]]:
    """Provider, symbol and seq of every event, and how often it is there."""
    found: Counter[tuple[str, str, int]] = Counter()
    for item in map(item_of, records):
        if isinstance(item, EventBatch):
            names = [item.symbols[code] for code in item.codes.tolist()]
            found.update(
                (item.provider, *row) for row in zip(names, item.seq.tolist(), strict=True)
            )
        elif isinstance(item, StreamEvent):
            found[item.provider, item.symbol, item.seq] += 1
    return found


def whole(read: list[list[Record]]) -> Counter[tuple[str, str, int]]:
    """The events of all partitions, each of which is in its own."""
    for number, records in enumerate(read):
        assert {partition_of(s, len(read)) for _, s, _ in ids_of(records)} <= {number}
    return sum((ids_of(records) for records in read), Counter())


async def relayed(bus: RedisBus, partitions: int = 4) -> list[list[Record]]:
    """What stands in each partition, once the worker that reads them has emptied the inbox."""
    await bus.assignment(TOPIC, "g", "m")
    positions = {p: (await bus.bounds(TOPIC, p)).first for p in range(partitions)}
    read: list[list[Record]] = [[] for _ in positions]
    while found := await bus.poll(TOPIC, positions, PLENTY, 0):
        for number, records in found.items():
            read[number] += records
            positions[number] = records[-1].offset + 1
    return read


# ---- a topic of one partition --------------------------------------------------------------


async def test_the_only_partition_takes_what_comes(bus: RedisBus, shared: Shared) -> None:
    """Single events are records like any other, among our own, and counted."""
    await bus.create_topic(TOPIC, 1)
    payloads: list[str | bytes] = [event(seq=1), event(seq=2), "{", OPAQUE]
    for payload in payloads:
        shared.add(payload)
        await bus.append(TOPIC, [entry("ours", count=10), entry("mark", count=0)])
    shared.client.xadd(f"{shared.prefix}{TOPIC}", {"colour": "red", "size": "3"})
    shared.client.xadd(f"{shared.prefix}{TOPIC}", {"note": "first", "data": event(seq=3)})
    records = await read_all(bus)
    assert [r.payload for r in records if r.payload not in (b"ours", b"mark")] == [
        *(p.encode() if isinstance(p, str) else p for p in payloads),
        b"colour red size 3", event(seq=3).encode(),
    ]  # fmt: skip
    total = 0
    for record in records:
        assert await bus.received(TOPIC, 0, record.offset) == total
        total += record.count
    assert total == await received(bus) == 6 + 4 * 10
    assert ids_of(records) == {("them", "SPY", n): 1 for n in (1, 2, 3)}


async def test_a_message_holds_one_event_and_nothing_else(bus: RedisBus, shared: Shared) -> None:
    """The server counts it as one: columns and marks of others are set aside, bytes and all."""
    await bus.create_topic(TOPIC, 1)
    batch = make_batch("them", ["SPY"] * 3, [10**18] * 3, [1, 2, 3], [1.0] * 3, [1.0] * 3)
    mark = codec.encode_mark(Mark(kind="end", count=7))
    payloads = [codec.encode_columns(batch), mark]
    for payload in payloads:
        shared.add(payload)
    records = await read_all(bus)
    found = [codec.decode(record.payload) for record in records]
    assert [item.original for item in found if isinstance(item, Rejected)] == payloads
    assert [record.count for record in records] == [1, 1]
    assert [await bus.checksum(TOPIC, 0, r.offset) for r in records] == [
        record.checksum for record in records
    ]


@pytest.mark.parametrize("m", ["", "US", "1|2", "a|b|c|d|e", "1|x|p|0|0"])
async def test_fields_of_others_are_not_taken_for_ours(
    bus: RedisBus, shared: Shared, m: str
) -> None:
    await bus.create_topic(TOPIC, 1)
    shared.client.xadd(f"{shared.prefix}{TOPIC}", {"data": event(second=1), "m": m})
    await bus.append(TOPIC, [entry("ours", count=2)])
    records = await read_all(bus)
    assert [(r.payload, r.count) for r in records] == [(event(second=1).encode(), 1), (b"ours", 2)]
    assert await received(bus) == 3
    assert await bus.received(TOPIC, 0, records[0].offset) == 0
    assert texts(await bus.scan(TOPIC, 0, "them", 0, 1 << 62)) == [event(second=1)]


async def test_messages_are_found_by_provider_and_time(bus: RedisBus, shared: Shared) -> None:
    await bus.create_topic(TOPIC, 1)
    for payload in (event(second=1), OPAQUE, event(second=30), event(second=40, provider="q")):
        shared.add(payload)
    start = codec.decode(event(second=30).encode())
    assert isinstance(start, StreamEvent)
    ts = 1_761_314_550 * 10**9
    assert texts(await bus.scan(TOPIC, 0, "them", ts, ts + 10**9)) == [event(second=30)]
    assert texts(await bus.scan(TOPIC, 0, "q", 0, 1 << 62)) == [event(second=40, provider="q")]


# ---- the inbox of a topic with several -----------------------------------------------------


async def test_the_inbox_is_sorted_into_partitions(bus: RedisBus, shared: Shared) -> None:
    """Whatever a reader of the bus can read, in whatever form."""
    await bus.create_topic(TOPIC, 4)
    for n, symbol in enumerate(SYMBOLS):
        shared.add(event(symbol, n))
        shared.add(msgspec.msgpack.encode(json.loads(event(symbol, 100 + n))))
        shared.add(event(symbol, 200 + n, kind="bar", interval="1m"))
        batch = make_batch("cols", list(SYMBOLS), [10**18] * 6, [n] * 6, [1.0] * 6, [2.0] * 6)
        shared.add(codec.encode_columns(batch))
    odd = [OPAQUE, b"{}", event(OTHER, o=1e999).encode(), event(HERE, h=-1.0).encode()]
    odd.append(event(OTHER, ver=9).encode())
    for payload in odd:
        shared.add(payload)
    mark = codec.encode_mark(Mark(kind="end", count=7))
    shared.add(mark)
    read = await relayed(bus)
    good = {("them", s, k + n): 1 for n, s in enumerate(SYMBOLS) for k in (0, 100, 200)}
    good |= {("cols", s, n): 1 for s in SYMBOLS for n in range(6)}
    broken = {key: n for key, n in whole(read).items() if key not in good}
    assert whole(read) == good | broken
    left = [record for record in read[0] if record.count == 1 and record.payload in odd]
    assert sorted(record.payload for record in left) == sorted(odd)
    refused = [item for item in map(item_of, read[0]) if isinstance(item, Rejected)]
    assert [item.original for item in refused] == [mark]
    assert sum(r.count for records in read for r in records) == 18 + 36 + 6
    assert sum([(await received(bus, p)) or 0 for p in range(4)]) == 60
    assert shared.inbox == 0


async def test_only_a_worker_empties_the_inbox(bus: RedisBus, shared: Shared) -> None:
    """Who only looks, or reads other partitions, leaves it as it is."""
    await bus.create_topic(TOPIC, 4)
    shared.add(event())
    assert await bus.poll(TOPIC, dict.fromkeys(range(4), 0), PLENTY, 0) == {}
    await bus.assignment(TOPIC, "g", "m")
    assert await bus.poll(TOPIC, {1: 0, 2: 0, 3: 0}, PLENTY, 0) == {}
    assert shared.inbox == 1
    await bus.poll(TOPIC, {0: 0}, PLENTY, 0)
    assert shared.inbox == 0
    shared.add(event(seq=2))
    await bus.leave(TOPIC, "g", "m")
    await bus.poll(TOPIC, {0: 0}, PLENTY, 0)
    assert shared.inbox == 1


async def test_a_busy_inbox_does_not_hold_a_poll_up(bus: RedisBus, shared: Shared) -> None:
    """A worker whose partitions nothing comes for gives signs of life."""
    await bus.create_topic(TOPIC, 4)
    await bus.assignment(TOPIC, "g", "m")
    going = True

    async def flood() -> None:
        n = 0
        while going:
            for _ in range(50):
                shared.add(event(OTHER, n := n + 1))
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(5):
        assert await bus.poll(TOPIC, {0: 0}, PLENTY, 0.2) == {}
    going = False
    await flooding


async def test_two_workers_at_once(shared: Shared) -> None:
    """As while a partition changes hands: each message is in one place, once."""
    count, done = 2_000, asyncio.Event()
    async with opened(shared.uri, shared.prefix) as a, opened(shared.uri, shared.prefix) as b:
        await a.create_topic(TOPIC, 4)

        async def work(bus: RedisBus) -> None:
            await bus.assignment(TOPIC, "g", "m")
            while not done.is_set() or shared.inbox:
                await bus.poll(TOPIC, {0: 0}, 1, 0.01)

        workers = [asyncio.create_task(work(bus)) for bus in (a, b)]
        for n in range(count):
            shared.add(event(SYMBOLS[n % 6], n))
            if n % 50 == 0:
                await asyncio.sleep(0)
        done.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*workers)
        read = [await read_all(a, p) for p in range(4)]
        assert whole(read) == {("them", SYMBOLS[n % 6], n): 1 for n in range(count)}
        assert sum([(await received(a, p)) or 0 for p in range(4)]) == count


@pytest.mark.parametrize("outcome", ["never sent", "never heard of"])
async def test_a_worker_that_dies_while_it_relays(
    bus: RedisBus, shared: Shared, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """There is one step, and it is taken or not: the next worker finds out which."""
    await bus.create_topic(TOPIC, 4)
    await bus.assignment(TOPIC, "g", "m")
    for n, symbol in enumerate(SYMBOLS):
        shared.add(event(symbol, n))
    run = bus._link.run

    async def dies(script: str, *request: Any) -> Any:
        if script != scripts.RELAY:
            return await run(script, *request)
        if outcome == "never heard of":
            await run(script, *request)
        msg = "dead"
        raise TransientError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(bus._link, "run", dies)
        with pytest.raises(TransientError):
            await bus.poll(TOPIC, {0: 0}, PLENTY, 0)
    shared.add(event("SPY", 77))
    async with opened(shared.uri, shared.prefix) as heir:
        for survivor in (heir, bus):
            read = await relayed(survivor)
            wanted = {("them", s, n): 1 for n, s in enumerate(SYMBOLS)} | {("them", "SPY", 77): 1}
            assert whole(read) == wanted
    assert shared.inbox == 0


async def test_ids_of_their_own_do_not_matter_in_the_inbox(bus: RedisBus, shared: Shared) -> None:
    """A message there has no position of its own: nanoseconds and all are fine."""
    await bus.create_topic(TOPIC, 4)
    key = f"{shared.prefix}{TOPIC}"
    for n, place in enumerate(("5-99999999", "1761314550000000000-0", "1761314550000000000-1")):
        shared.client.xadd(key, {"data": event(seq=n)}, id=place)
        read = await relayed(bus)
    assert whole(read) == {("them", "SPY", n): 1 for n in range(3)}


async def test_messages_that_a_producer_has_cut_off_are_told_of(
    bus: RedisBus, shared: Shared, redis_server: Server
) -> None:
    """XADD with MAXLEN takes away what nobody has read yet."""
    needs_7(redis_server)
    await bus.create_topic(TOPIC, 4)
    await bus.assignment(TOPIC, "g", "m")
    for n in range(20):
        shared.client.xadd(
            f"{shared.prefix}{TOPIC}", {"data": event(seq=n)}, maxlen=5, approximate=False
        )
    with capture_logs() as logs:
        read = await relayed(bus)
        assert sum(r.count for records in read for r in records) == 5
        shared.add(event(seq=50))
        await relayed(bus)
    assert [(one["messages"], one["log_level"]) for one in logs] == [(15, "error")]


# ---- partitions, directly ------------------------------------------------------------------


async def test_messages_among_our_own_in_a_partition(bus: RedisBus, shared: Shared) -> None:
    """Counts are exact, before every record and at the end; nothing is taken for lost."""
    await bus.create_topic(TOPIC, 2)
    total, n = 0, 0
    for round_ in range(30):
        for _ in range(round_ % 3):
            shared.add(event(seq=(n := n + 1)), 1)
            total += 1
        await bus.append(TOPIC, [entry("ours", 1, count=round_), entry("more", 1, count=2)])
        total += round_ + 2
    reader, before = await read_all(bus, 1), 0
    for record in reader:
        assert await bus.received(TOPIC, 1, record.offset) == before
        before += record.count
    assert before == total == await received(bus, 1)
    await bus.trim(TOPIC, 1, reader[20].offset, 1 << 62, PLENTY)
    assert await received(bus, 1) == total
    shared.add(event(seq=1_000), 1)
    assert await received(bus, 1) == total + 1
    assert await bus.received(TOPIC, 1, reader[20].offset) == sum(r.count for r in reader[:20])
    places = [r.offset for r in reader[20:]]
    assert [r.offset for r in await read_all(bus, 1)][:-1] == places
    with pytest.raises(LogLostError):
        await bus.poll(TOPIC, {1: reader[3].offset}, PLENTY, 0)
