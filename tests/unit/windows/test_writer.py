"""The way of a group into a real store whose answers get lost, and onto a bus that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.property._harness import coordinated
from tests.property._memory_bus import MemoryBus

from market_data_core.bars import VALUE_COLUMNS, BarBatch
from market_data_core.clock import ManualClock
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import (
    Claim,
    CommitResult,
    Group,
    Message,
    OutboxItem,
    PartitionKey,
    PartitionStatus,
)
from market_data_core.deadletters import decode_letters
from market_data_core.errors import FencedError, LogLostError, MdpError, TransientError, UsageError
from market_data_core.events import make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.observe import Observer
from market_data_pipeline.timeline import Timeline
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.writer import GroupWriter
from market_data_store.backends.sqlite import SqliteStore

S = 10**9
T = 1_700_000_000 * S
KEYS = [PartitionKey("g", "mdp.events", number) for number in (0, 1)]


class Deaf(SqliteStore):
    """Commits, but the answer does not come; then it cannot be asked for a while."""

    commits = 0
    unheard = 1
    silent = 0

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        self.commits += 1
        result = await super().commit(groups, published, guard)
        if self.commits <= self.unheard:
            raise TransientError("the connection broke after the commit")
        return result

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        if self.silent:
            self.silent -= 1
            raise TransientError("not yet")
        return await super().status(group, topic)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Deaf]:
    opened = Deaf(tmp_path / "store.db", clock=ManualClock(T))
    await opened.migrate()
    yield opened
    await opened.close()


@pytest.fixture
async def writer(store: Deaf, tmp_path: Path) -> AsyncIterator[GroupWriter]:
    bus = EmbeddedBus(tmp_path / "bus", clock=ManualClock(T))
    async with coordinated(store) as commits:
        yield GroupWriter(bus, store, commits, Observer("mdp.events", "g", "us", False, 0), None, 2)
    await bus.close()


async def partition(store: Deaf, number: int = 0) -> Partition:
    """Two closed windows of one event and of two; the volume of the latter is infinite."""
    claim = await store.claim(KEYS[number], "us", S)
    assert claim is not None
    topics = Topics("mdp.events", 2, "", "mdp.dlq")
    symbol = next(name for name in "ABCDEFGH" if partition_of(name, 2) == number)
    part = Partition(claim, Checkpoint(log_id="log"), WindowSpec((S,), 0, 0), topics, codec, None)
    ts = [T, T + S, T + S + 1, T + 3 * S]
    batch = make_batch("p", [symbol] * 4, ts, range(4), [1.0] * 4, [1.0, 1.7e308, 1.7e308, 1.0])
    payload = codec.encode_columns(batch)
    part.take([Record(number, 0, payload, T, 4)], T)
    part.collect("p")
    return part


EXPECTED = Counts(received=4, stored=1, open=1, dead_lettered=2)


@pytest.mark.parametrize("silent", [0, 2])
async def test_rows_refused_by_a_commit_whose_answer_was_lost_are_known(
    store: Deaf, writer: GroupWriter, silent: int
) -> None:
    store.silent = silent
    part = await partition(store)
    group = part.group()
    result = await writer.commit([group])
    assert store.commits == 1
    part.committed(group, result.bad[0])
    assert part.checkpoint.counts == EXPECTED
    assert result.counts.bad == 1
    (letter,) = decode_letters(result.outbox[0].message.payload)
    assert (letter.reason, letter.events) == ("unwritable", 2)

    part.dirty = True  # the next group goes on with the same counts
    following = part.group()
    assert following.checkpoint.counts == EXPECTED
    result = await writer.commit([following])
    assert result.bad == {}
    (row,) = await store.status()
    checkpoint = decode_checkpoint(row.checkpoint or b"")
    assert (checkpoint.counts, checkpoint.bad) == (EXPECTED, [])


async def test_an_answer_that_came_says_the_same(store: Deaf, writer: GroupWriter) -> None:
    store.unheard = 0
    part = await partition(store)
    group = part.group()
    result = await writer.commit([group])
    assert [(bad.batch, bad.row) for bad in result.bad[0]] == [(0, 1)]
    part.committed(group, result.bad[0])
    assert part.checkpoint.counts == EXPECTED


async def test_a_partition_taken_over_since_does_not_hide_that_the_others_were_committed(
    store: Deaf, writer: GroupWriter
) -> None:
    parts = [await partition(store, number) for number in (0, 1)]
    groups = [part.group() for part in parts]
    committed = store.commit

    async def taken_over(
        groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        try:
            return await committed(groups, published, guard)
        finally:
            await store.claim(KEYS[0], "them", -S)

    store.commit = taken_over  # type: ignore[method-assign]
    result = await writer.commit(groups)
    assert store.commits == 1
    assert list(result.bad) == [1]
    assert {item.partition for item in result.outbox} == {1}


async def test_what_was_not_committed_is_tried_again(store: Deaf, writer: GroupWriter) -> None:
    part = await partition(store)
    group = part.group()
    await store.claim(KEYS[0], "them", -S)
    with pytest.raises(FencedError):
        await writer.commit([group])


# ---- topics that somebody removes ------------------------------------------------------------


def letter(key: str) -> OutboxItem:
    """A message of letters, decided in the second partition."""
    return OutboxItem(1, 1, Message("mdp.dlq", key, b"letter", 1, partition=0))


def bar(key: str, symbol: str = "SPY") -> OutboxItem:
    """A message of one bar, decided in the partition of its symbol."""
    columns: dict[str, Any] = {name: np.array([1.0]) for name in VALUE_COLUMNS}
    columns["trade_count"] = np.array([1])
    codes, ts = np.zeros(1, np.int32), np.array([T])
    batch = BarBatch("p", "1s", "final", (symbol,), codes, ts, **columns)
    number = partition_of(symbol, 2)
    return OutboxItem(2, number, Message("mdp.bars", key, batch.encode(1), 1, provider="p"))


class Watched(MemoryBus):
    """A client that notices what others have done to a topic, as those of real buses do."""

    def __init__(self) -> None:
        super().__init__(ManualClock(T))
        self._lost: set[str] = set()

    async def drop_topic(self, name: str) -> None:
        await super().drop_topic(name)
        self._lost.add(name)

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        if topic in self._lost:
            self._lost.remove(topic)
            raise LogLostError(topic)
        await super().append(topic, entries)


@dataclass
class Place:
    """A bus as the writer sees it, and as somebody else does."""

    bus: Bus
    other: Bus
    writer: GroupWriter

    async def counts(self, topic: str) -> list[int]:
        """Records in each partition."""
        info = await self.other.find_topic(topic)
        assert info
        polled = await self.other.poll(topic, dict.fromkeys(range(info.partitions), 0), 1 << 20, 0)
        return [len(polled.get(number, ())) for number in range(info.partitions)]


@pytest.fixture(params=["embedded", "memory"])
async def place(
    request: pytest.FixtureRequest, store: Deaf, tmp_path: Path
) -> AsyncIterator[Place]:
    bus: Bus = Watched()
    other = bus
    if request.param == "embedded":
        bus, other = (EmbeddedBus(tmp_path / "bus", clock=ManualClock(T)) for _ in range(2))
    await bus.create_topic("mdp.dlq", 1)
    await bus.create_topic("mdp.bars", 2)
    async with coordinated(store) as commits:
        observer = Observer("mdp.events", "g", "us", False, 0)
        timeline = Timeline.alone("mdp.events", 2)
        yield Place(bus, other, GroupWriter(bus, store, commits, observer, None, 2, timeline))
    await bus.close()
    await other.close()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("made", [bar, letter])
async def test_a_topic_that_was_removed_is_made_as_it_was(
    place: Place, known: bool, made: Callable[[str], OutboxItem]
) -> None:
    topic = made("").message.destination
    before = await place.bus.find_topic(topic)
    if known:
        await place.writer.publish([made("a")])
    await place.other.drop_topic(topic)
    await place.writer.publish([made("b")])
    after = await place.other.find_topic(topic)
    assert before
    assert after
    assert (after.partitions, after.log_id == before.log_id) == (before.partitions, False)
    assert sum(await place.counts(topic)) == 1


@pytest.mark.parametrize("partitions", [1, 2, 5])
async def test_a_topic_that_was_replaced_gets_what_belongs_where(
    place: Place, partitions: int
) -> None:
    symbols = "ABCDEFGH"
    await place.writer.publish([bar("a")])
    await place.other.drop_topic("mdp.bars")
    await place.other.create_topic("mdp.bars", partitions)
    await place.writer.publish([bar(symbol, symbol) for symbol in symbols])
    wanted = Counter(partition_of(symbol, partitions) for symbol in symbols)
    assert await place.counts("mdp.bars") == [wanted[n] for n in range(partitions)]


async def test_the_same_entries_are_appended_again_while_the_bus_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which a bus knows what it has begun."""
    append, tried = place.bus.append, list[Sequence[Entry]]()

    async def away(topic: str, entries: Sequence[Entry]) -> None:
        tried.append(entries)
        if len(tried) < 3:
            raise TransientError("away")
        await append(topic, entries)

    monkeypatch.setattr(place.bus, "append", away)
    await place.writer.publish([letter("a")])
    assert len(tried) == 3
    assert tried[0] is tried[1] is tried[2]


async def test_a_topic_of_events_that_was_removed_is_not_made_by_who_forwards(
    place: Place,
) -> None:
    forwarded = OutboxItem(1, 1, Message("mdp.events", "k", b"x", 1, partition=0))
    await place.bus.create_topic("mdp.events", 2)
    await place.writer.publish([forwarded])
    await place.other.drop_topic("mdp.events")
    with pytest.raises(MdpError, match=r"'mdp\.events'"):
        await place.writer.publish([replace(forwarded, id=2)])
    assert await place.other.find_topic("mdp.events") is None


async def test_what_a_topic_refuses_as_it_is_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(topic: str, entries: Sequence[Entry]) -> None:
        raise UsageError("too large")

    monkeypatch.setattr(place.bus, "append", refuse)
    with pytest.raises(UsageError, match="too large"):
        await place.writer.publish([letter("a")])
