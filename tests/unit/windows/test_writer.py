"""The way of a group into a real store whose answers get lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from tests.property._harness import coordinated

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import (
    Claim,
    CommitResult,
    Group,
    PartitionKey,
    PartitionStatus,
)
from market_data_core.deadletters import decode_letters
from market_data_core.errors import FencedError, TransientError
from market_data_core.events import make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Record
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.observe import Observer
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
