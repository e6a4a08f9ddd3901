"""What every store must do about ownership, positions and the outbox; part of the store suite."""
# ruff: noqa: S101  (asserting is what this module is for)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from market_data_core.bars import BarBatch, BarState
from market_data_core.clock import Clock, ManualClock
from market_data_core.contracts.store import (
    BadRow,
    Claim,
    Gap,
    Message,
    OutboxItem,
    PartitionKey,
    Store,
)
from market_data_core.errors import FencedError
from market_data_core.signals import Signal

OpenStore = Callable[[Clock], Store]
"""Opens one more client of the same, at first empty, database."""
Query = Callable[[str], list[Any]]
"""Reads the database with plain SQL, past the store: rows as tuples."""
Row = tuple[str, int, float, int]
"""Of a bar: symbol, start in s after T0, close, trade count (-1: not known)."""

S = 10**9
T0 = 1_761_314_520 * S
GROUP, TOPIC = "suite", "suite.events"
LEASE = 3 * S
_MESSAGE = Message("dead.letters", "key/1", b"\0payload", 3, 5, "p", -7, 9)


@dataclass
class FakeGroup:
    """A unit of work that says what it was asked.

    Attributes:
        finished: the bad rows of each call of :meth:`finish`.
    """

    claim: Claim
    bars: Sequence[BarBatch] = ()
    bars_topic: str = ""
    gaps: Sequence[Gap] = ()
    checkpoint: bytes = b"checkpoint"
    messages: Sequence[Message] = ()
    signals: Sequence[Signal] = ()
    tells_all: bool = False
    finished: list[list[BadRow]] = field(default_factory=list)

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:
        """What was set, whatever could not be written."""
        self.finished.append(list(bad))
        return self.checkpoint, self.messages

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:
        """None: nobody asks."""
        assert checkpoint == self.checkpoint
        return ()

    def next(self, **changes: Any) -> FakeGroup:
        """The group that follows this one, once it has been committed."""
        claim = replace(self.claim, sequence=self.claim.sequence + 1)
        return FakeGroup(claim, **changes)


def key(partition: int = 0, group: str = GROUP, topic: str = TOPIC) -> PartitionKey:
    """A partition of the suite's topic."""
    return PartitionKey(group, topic, partition)


def batch(
    *rows: Row, state: BarState = "final", provider: str = "p", interval: str = "1s"
) -> BarBatch:
    """Bars of `rows`; open, high and low are the close, the volume is twice that."""
    symbols = tuple(dict.fromkeys(symbol for symbol, *_ in rows))
    close = np.array([row[2] for row in rows], np.float64)
    return BarBatch(
        provider,
        interval,
        state,
        symbols,
        np.array([symbols.index(row[0]) for row in rows], np.uint16),
        np.array([T0 + row[1] * S for row in rows], np.int64),
        *(close,) * 4,
        close * 2,
        close,
        np.array([row[3] for row in rows], np.int64),
    )


async def opened(open_store: OpenStore, clock: Clock | None = None) -> Store:
    """A client of the migrated database."""
    store = open_store(clock or ManualClock(T0))
    await store.migrate()
    return store


async def claimed(store: Store, partition: int = 0, member: str = "a") -> Claim:
    """A partition that was free, taken."""
    claim = await store.claim(key(partition), member, LEASE)
    assert claim is not None
    return claim


async def everything(store: Store) -> tuple[Any, ...]:
    """All that a commit could have changed, to be compared."""
    outbox = [await store.outbox(GROUP, TOPIC, p) for p in (0, 1)]
    return (await store.bars()).rows(), await store.status(), outbox


class StoreOwningSuite:
    """Schema, members, claims, commits and the outbox."""

    async def test_migrating_is_safe_at_any_time(self, open_store: OpenStore) -> None:
        """At once from many clients, and again over what is stored."""
        stores = [open_store(ManualClock(T0)) for _ in range(5)]
        assert 0 not in [await store.schema_behind() for store in stores]  # each has seen nothing
        await asyncio.gather(*(store.migrate() for store in stores))
        group = FakeGroup(await claimed(stores[0]), [batch(("A", 0, 1.0, 1))])
        await stores[1].commit([group], [])
        before = await everything(stores[2])
        await asyncio.gather(*(store.migrate() for store in stores))
        assert await everything(await opened(open_store)) == before
        assert len(before[0]) == 1

    async def test_how_far_the_schema_is_behind_is_told_without_a_change(
        self, open_store: OpenStore
    ) -> None:
        """All steps before the first migration, none after it."""
        store, other = open_store(ManualClock(T0)), open_store(ManualClock(T0))
        behind = await store.schema_behind()
        assert behind > 0
        assert await store.schema_behind() == await other.schema_behind() == behind
        await store.migrate()
        assert await store.schema_behind() == await other.schema_behind() == 0

    # ---- members and claims ----------------------------------------------------------------

    async def test_members_live_as_long_as_they_tell(self, open_store: OpenStore) -> None:
        """Each sees the others of its group and topic, until a lease without a sign of life."""
        clock = ManualClock(T0)
        store, other = await opened(open_store, clock), await opened(open_store, clock)
        assert await store.heartbeat(GROUP, TOPIC, "b", LEASE, {}) == ["b"]
        clock.advance(2 * S)
        assert await other.heartbeat(GROUP, TOPIC, "a'; --", LEASE, {}) == ["a'; --", "b"]
        assert await other.heartbeat(GROUP, "other", "c", LEASE, {}) == ["c"]
        assert await other.heartbeat("other", TOPIC, "d", LEASE, {}) == ["d"]
        clock.advance(LEASE - 2 * S - 1)
        assert await other.heartbeat(GROUP, TOPIC, "a'; --", LEASE, {}) == ["a'; --", "b"]
        clock.advance(2)
        assert await other.heartbeat(GROUP, TOPIC, "a'; --", LEASE, {}) == ["a'; --"]
        assert await store.heartbeat(GROUP, TOPIC, "b", LEASE, {}) == ["a'; --", "b"]

    async def test_a_partition_has_one_owner(self, open_store: OpenStore) -> None:
        """Of many that ask at once, one gets it; the others wait for its lease to run out."""
        clock = ManualClock(T0)
        stores = [await opened(open_store, clock) for _ in range(4)]
        claims = await asyncio.gather(
            *(s.claim(key(), f"m{i}{n}", LEASE) for i, s in enumerate(stores) for n in (0, 1))
        )
        (claim,) = [c for c in claims if c]
        assert (claim.key, claim.sequence, claim.checkpoint) == (key(), 0, None)
        clock.advance(LEASE - 1)
        assert await stores[0].claim(key(), "x", LEASE) is None
        assert await stores[0].claim(key(1), "x", LEASE) is not None
        assert await stores[0].claim(key(0, "other"), "x", LEASE) is not None
        clock.advance(2)
        stolen = await stores[0].claim(key(), "x", LEASE)
        assert stolen is not None
        assert stolen.token > claim.token

    async def test_an_owner_keeps_what_it_tells_of(self, open_store: OpenStore) -> None:
        """Only its own partitions, and only with their tokens."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        kept, forgotten, wrong, others = [await claimed(store, p) for p in range(4)]
        clock.advance(2 * S)
        owned = {0: kept.token, 2: wrong.token + 1}
        await store.heartbeat(GROUP, TOPIC, "a", LEASE, owned)
        await store.heartbeat(GROUP, TOPIC, "b", LEASE, {3: others.token})
        clock.advance(2 * S)
        taken = [await store.claim(key(p), "b", LEASE) for p in range(4)]
        assert [t is not None for t in taken] == [False, True, True, True]
        rows = await store.status(GROUP, TOPIC)
        assert [(r.owner, r.heartbeat - T0) for r in rows] == [
            ("a", 2 * S),
            *[("b", 4 * S)] * 3,
        ]
        assert rows[1].token > forgotten.token

    async def test_a_member_that_starts_again_fences_itself(self, open_store: OpenStore) -> None:
        """The same name claims without waiting, under a higher token."""
        store = await opened(open_store)
        old = await claimed(store)
        new = await claimed(store)
        assert new.token > old.token
        with pytest.raises(FencedError):
            await store.commit([FakeGroup(old)], [])
        await store.commit([FakeGroup(new)], [])

    async def test_released_is_free(self, open_store: OpenStore) -> None:
        """At once; but not for who has lost it already."""
        store = await opened(open_store)
        first = await claimed(store, member="a")
        await store.release(first)
        second = await claimed(store, member="b")
        assert second.token > first.token
        await store.release(first)
        assert await store.claim(key(), "c", LEASE) is None

    async def test_who_leaves_frees_its_own(self, open_store: OpenStore) -> None:
        """Its partitions of that group and topic, and its membership."""
        store = await opened(open_store)
        for partition, member in ((0, "a"), (1, "a"), (2, "b")):
            await claimed(store, partition, member)
            await store.heartbeat(GROUP, TOPIC, member, LEASE, {})
        assert await store.claim(key(0, topic="other"), "a", LEASE) is not None
        await store.leave(GROUP, TOPIC, "a")
        assert await store.heartbeat(GROUP, TOPIC, "c", LEASE, {}) == ["b", "c"]
        taken = [await store.claim(key(p), "c", LEASE) for p in range(3)]
        assert [t is not None for t in taken] == [True, True, False]
        assert await store.claim(key(0, topic="other"), "c", LEASE) is None

    async def test_status_and_forgetting(self, open_store: OpenStore) -> None:
        """Rows by group, topic and partition; what was forgotten begins again, fenced off."""
        store = await opened(open_store)
        assert await store.status() == []
        keys = [key(1), key(0), key(0, topic="other"), key(0, "other")]
        claims = [await store.claim(k, "a", LEASE) for k in keys]
        assert [c for c in claims if c is None] == []
        ordered = sorted(keys, key=lambda k: (k.group, k.topic, k.partition))
        assert [r.key for r in await store.status()] == ordered
        assert [r.key for r in await store.status(GROUP)] == ordered[1:]
        assert [r.key for r in await store.status(GROUP, TOPIC)] == [key(0), key(1)]
        assert [r.key for r in await store.status(topic="other")] == [keys[2]]
        assert await store.status("no", "such") == []
        await store.forget(GROUP, TOPIC)
        await store.forget("no", "such")
        assert [r.key for r in await store.status()] == [keys[3], keys[2]]
        again = await claimed(store, 1)
        assert (again.sequence, again.checkpoint) == (0, None)
        assert claims[0] is not None
        assert again.token > claims[0].token  # a process that slept through it cannot write
        with pytest.raises(FencedError):
            await store.commit([FakeGroup(claims[0])], [])

    # ---- commits ---------------------------------------------------------------------------

    async def test_a_commit_moves_the_position(self, open_store: OpenStore) -> None:
        """Sequence and checkpoint are the next owner's; committing is a sign of life."""
        clock = ManualClock(T0)
        store = await opened(open_store, clock)
        group = FakeGroup(await claimed(store), checkpoint=b"\0\xff1")
        clock.advance(2 * S)
        result = await store.commit([group], [])
        assert (result.outbox, result.bad, group.finished) == ([], {}, [[]])
        await store.commit([group.next(checkpoint=b"2")], [])
        (row,) = await store.status()
        assert (row.sequence, row.checkpoint, row.owner) == (2, b"2", "a")
        clock.advance(2 * S)
        assert await store.claim(key(), "b", LEASE) is None
        clock.advance(2 * S)
        taken = await store.claim(key(), "b", LEASE)
        assert taken is not None
        assert (taken.sequence, taken.checkpoint) == (2, b"2")

    @pytest.mark.parametrize("reason", ["token", "sequence", "ahead", "guard", "forgotten"])
    async def test_who_lost_ownership_writes_nothing(
        self, open_store: OpenStore, reason: str
    ) -> None:
        """Not even the groups that stood beside the one that was lost."""
        store, other = await opened(open_store), await opened(open_store)
        held, lost = await claimed(store, 0), await claimed(store, 1)
        published = (await store.commit([FakeGroup(held, messages=[_MESSAGE])], [])).outbox
        held = replace(held, sequence=1)
        guard = None
        if reason == "token":
            await claimed(other, 1)
        elif reason == "sequence":
            await other.commit([FakeGroup(lost)], [])
        elif reason == "ahead":
            lost = replace(lost, sequence=1)
        elif reason == "forgotten":
            lost = Claim(key(7), 1, 0, None)
        else:
            guard, lost = lost, await claimed(other, 1)
        before = await everything(store)
        groups = [
            FakeGroup(
                claim,
                [batch(("A", 0, 1.0, 1))],
                "bars",
                [Gap("p", "*", 0, 1, "c", "")],
                messages=[_MESSAGE],
            )
            for claim in (held, lost)
        ]
        with pytest.raises(FencedError) as caught:
            await store.commit(groups, [item.id for item in published], guard)
        assert caught.value.partition == (7 if reason == "forgotten" else 1)
        assert await everything(other) == before
        await store.commit(groups[:1], [item.id for item in published])

    async def test_a_guard_that_holds_allows_the_commit(self, open_store: OpenStore) -> None:
        """It need not be among the groups, and its own position does not move."""
        store = await opened(open_store)
        guard, held = await claimed(store, 0), await claimed(store, 1)
        await store.commit([FakeGroup(held)], [], guard)
        await store.commit([], [], guard)
        assert [row.sequence for row in await store.status()] == [0, 1]

    async def test_of_two_equal_commits_one_wins(self, open_store: OpenStore) -> None:
        """However the two are interleaved."""
        stores = [await opened(open_store) for _ in range(4)]
        claim = await claimed(stores[0])
        groups = [FakeGroup(claim, [batch(("A", n, 1.0, 1))]) for n in range(4)]
        done = await asyncio.gather(
            *(s.commit([g], []) for s, g in zip(stores, groups, strict=True)),
            return_exceptions=True,
        )
        assert sorted(type(d).__name__ for d in done) == ["CommitResult", *["FencedError"] * 3]
        assert len(await stores[0].bars()) == 1
        assert (await stores[0].status())[0].sequence == 1

    # ---- outbox ----------------------------------------------------------------------------

    async def test_the_outbox_keeps_messages_until_published(self, open_store: OpenStore) -> None:
        """They are committed with what decided them, in order, whole, and for the next owner."""
        store = await opened(open_store)
        second = Message("other; topic", "key/2'", b"")
        first = [FakeGroup(await claimed(store, p)) for p in (0, 1)]
        first[0].messages, first[1].messages = [_MESSAGE, second], [_MESSAGE]
        items = (await store.commit(first, [])).outbox
        assert [(i.partition, i.message) for i in items] == [
            (0, _MESSAGE),
            (0, second),
            (1, _MESSAGE),
        ]
        other = await opened(open_store)
        assert await other.outbox(GROUP, TOPIC, 0) == items[:2]
        assert await other.outbox(GROUP, TOPIC, 1) == items[2:]
        assert await other.outbox("other", TOPIC, 0) == []
        assert await other.outbox(GROUP, "other", 0) == []
        await store.commit([first[0].next(messages=[second])], [items[0].id, items[2].id])
        left: list[OutboxItem] = await other.outbox(GROUP, TOPIC, 0)
        assert [i.message for i in left] == [second, second]
        assert left[0] == items[1]
        assert left[1].id not in {i.id for i in items}
        assert await other.outbox(GROUP, TOPIC, 1) == []
        await store.commit([], [i.id for i in left])
        assert await other.outbox(GROUP, TOPIC, 0) == []
