"""Who owns which partitions: even shares, or what the bus says, and never two at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from tests.property._memory import MemoryStore
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Claim, PartitionKey
from market_data_core.errors import TransientError
from market_data_core.records import TopicInfo
from market_data_pipeline import ownership
from market_data_pipeline.ownership import Change, Ownership

T = TypeVar("T")
TOPIC, GROUP = "mdp.events", "g"
LEASE_NS = 6_000_000  # a sign of life every millisecond
ENOUGH_S = 10.0


class Store(MemoryStore):
    """A store that can be away, or hang."""

    def __init__(self, clock: ManualClock) -> None:
        MemoryStore.__init__(self, clock)
        self.answers, self.away = asyncio.Event(), False
        self.answers.set()
        self.claims, self.claiming = asyncio.Event(), 0
        self.claims.set()
        self.beats = Counter[str]()

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        self.beats[member] += 1
        await self.answers.wait()
        return await MemoryStore.heartbeat(self, group, topic, member, lease_ns, owned)

    async def claim(self, key: PartitionKey, member: str, lease_ns: int) -> Claim | None:
        self.claiming += not self.claims.is_set()
        await self.claims.wait()
        return await MemoryStore.claim(self, key, member, lease_ns)

    async def leave(self, group: str, topic: str, member: str) -> None:
        if self.away:
            raise TransientError("the store is away")
        await MemoryStore.leave(self, group, topic, member)


class Bus(MemoryBus):
    """A bus that remembers who left."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.left: list[str] = []

    async def leave(self, topic: str, group: str, member: str) -> None:
        self.left.append(member)
        await super().leave(topic, group, member)


async def once(call: Callable[[], Awaitable[T]], /) -> T:
    """A call that is expected to succeed."""
    return await call()


@dataclass
class Group:
    """A topic, and members that do what their ownership tells them."""

    bus: Bus
    store: Store
    clock: ManualClock
    info: TopicInfo
    lease_ns: int = LEASE_NS
    members: dict[str, Ownership] = field(default_factory=dict)
    owned: dict[str, dict[int, Claim]] = field(default_factory=dict)

    def join(self, *names: str) -> None:
        for name in names:
            self.members[name] = Ownership(
                self.bus, self.store, self.info, GROUP, name, self.lease_ns, self.clock, once
            )
            self.owned[name] = {}

    async def leave(self, name: str) -> None:
        await self.members.pop(name).leave()
        del self.owned[name]

    def die(self, name: str) -> None:
        """No sign of life comes any more."""
        del self.members[name]

    async def step(self, name: str) -> Change:
        change = await self.members[name].change(self.owned[name])
        for number in change.surplus:
            await self.members[name].release(self.owned[name].pop(number))
        for claim in change.claims:
            self.owned[name][claim.key.partition] = claim
        numbers = [n for member in self.members for n in self.owned[member]]
        assert len(numbers) == len(set(numbers)), "owned twice"
        return change

    async def beat(self, name: str) -> list[Change]:
        """The member gives a sign of life, and does what follows from it."""
        changes, begun = [await self.step(name)], self.store.beats[name]
        while self.store.beats[name] < begun + 2:  # the answer to the first is known then
            await asyncio.sleep(0.0005)
            changes.append(await self.step(name))
        return changes

    @asynccontextmanager
    async def at_work(self, name: str) -> AsyncIterator[None]:
        """The member computes meanwhile."""
        done = asyncio.Event()
        working = asyncio.create_task(self.members[name].at_work(done.wait))
        await asyncio.sleep(0)
        yield
        done.set()
        await working

    async def beats_by_itself(self, name: str) -> None:
        """Wait until a sign of life that the member has sent since has been heard."""
        begun = self.store.beats[name]
        async with asyncio.timeout(ENOUGH_S):
            while self.store.beats[name] < begun + 2:
                await asyncio.sleep(0.0005)

    async def begin_to_beat(self, name: str) -> int:
        """The member sends a sign of life; how many it has sent."""
        begun = self.store.beats[name]
        async with asyncio.timeout(ENOUGH_S):
            while self.store.beats[name] == begun:
                await self.step(name)
                await asyncio.sleep(0.0005)
        return self.store.beats[name]

    async def beats(self, times: int) -> None:
        for _ in range(times):
            for name in self.members:
                await self.beat(name)

    async def settled(self) -> list[int]:
        """How many partitions each member owns once nothing changes any more."""
        before: list[frozenset[int]] = []
        async with asyncio.timeout(ENOUGH_S):
            while (now := [frozenset(self.owned[name]) for name in self.members]) != before:
                before = now
                await self.beats(3)
        return [len(numbers) for numbers in now]


@pytest.fixture
async def make() -> AsyncIterator[Callable[[int], Awaitable[Group]]]:
    made: list[Group] = []

    async def group(partitions: int) -> Group:
        clock = ManualClock(10**18)
        bus = Bus(clock)
        made.append(Group(bus, Store(clock), clock, await bus.create_topic(TOPIC, partitions)))
        return made[-1]

    yield group
    for one in made:
        one.store.answers.set()
        one.store.claims.set()
        for name in list(one.members):
            await one.leave(name)


Make = Callable[[int], Awaitable[Group]]


# ---- shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 2, 7, 8])
async def test_shares_are_even_whoever_joins_and_leaves(make: Make, partitions: int) -> None:
    group = await make(partitions)

    async def even() -> None:
        shares = await group.settled()
        assert sum(shares) == partitions
        assert max(shares) - min(shares) <= 1

    for name in "abcde":
        group.join(name)
        await even()
    for name in "bde":
        await group.leave(name)
        await even()
    group.join("f", "g")
    await even()


async def test_nobody_gives_up_more_than_newcomers_need(make: Make) -> None:
    group = await make(6)
    group.join("a", "b")
    await group.settled()
    before = {name: set(group.owned[name]) for name in "ab"}
    group.join("c")
    await group.settled()
    assert all(set(group.owned[name]) < before[name] for name in "ab")


async def test_a_silent_owner_keeps_its_partitions_until_its_lease_is_over(make: Make) -> None:
    group = await make(4)
    group.join("a", "b")
    await group.settled()
    dead = group.owned["a"]
    group.die("a")
    group.clock.advance(LEASE_NS)
    await group.beats(5)
    assert set(group.owned["b"]).isdisjoint(dead)
    group.clock.advance(1)
    assert await group.settled() == [4]
    for number, claim in dead.items():
        assert group.owned["b"][number].token > claim.token


async def test_signs_of_life_keep_a_lease_alive(make: Make) -> None:
    group = await make(2)
    group.join("a")
    await group.settled()
    for _ in range(4):
        group.clock.advance(LEASE_NS * 3 // 4)
        await group.beats(2)
    group.join("b")
    assert not any(change.claims for change in await group.beat("b"))  # nobody has let go yet


async def test_who_computes_for_long_keeps_what_it_owns(make: Make) -> None:
    group = await make(2)
    group.join("a")
    await group.settled()
    async with group.at_work("a"):  # and does not ask what is to change
        for _ in range(4):
            group.clock.advance(LEASE_NS * 3 // 4)
            await group.beats_by_itself("a")
        group.join("b")
        assert not any(change.claims for change in await group.beat("b"))
    assert [c.surplus for c in await group.beat("a") if c.surplus] == [[1]]


async def test_what_was_claimed_meanwhile_is_kept_too(make: Make) -> None:
    """Until the worker comes to take it up."""
    group = await make(4)
    group.join("a", "b")
    await group.settled()
    await group.leave("b")
    await group.begin_to_beat("a")
    async with group.at_work("a"):
        for _ in range(4):
            await group.beats_by_itself("a")
            group.clock.advance(LEASE_NS * 3 // 4)
    group.join("b")
    rows = await group.store.status(GROUP, TOPIC)
    assert [row.owner for row in rows] == ["a"] * 4
    assert not any(change.claims for change in await group.beat("b"))


async def test_who_is_always_at_work_still_asks_what_is_to_change(make: Make) -> None:
    """Signs of life beside the work are not those that tell of the others."""
    group = await make(2)
    group.join("a")
    await group.settled()
    group.join("b")
    await group.beat("b")
    changes: list[Change] = []
    async with asyncio.timeout(ENOUGH_S):
        while not any(change.surplus for change in changes):
            async with group.at_work("a"):
                await group.beats_by_itself("a")
            changes.append(await group.step("a"))
            assert len(changes) < 5


async def test_who_waits_gives_no_sign_of_life(make: Make) -> None:
    """What it waits for may be there for others."""
    group = await make(2)
    group.join("a")
    await group.settled()
    async with group.at_work("a"):
        pass
    begun = group.store.beats["a"]
    await asyncio.sleep(4 * LEASE_NS / 1e9)
    assert group.store.beats["a"] <= begun + 1


async def test_who_is_at_work_for_ever_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_WORK_MAX_S", 0.0)
    group = await make(2)
    group.join("a")
    await group.settled()
    async with group.at_work("a"):
        begun = group.store.beats["a"]
        await asyncio.sleep(4 * LEASE_NS / 1e9)
        assert group.store.beats["a"] <= begun + 1


async def test_who_leaves_frees_its_partitions_at_once(make: Make) -> None:
    group = await make(4)
    group.join("a", "b")
    await group.settled()
    await group.leave("a")
    assert await group.settled() == [4]
    assert group.bus.left == ["a"]


async def test_what_could_not_be_taken_up_is_free_at_once(make: Make) -> None:
    group = await make(4)
    group.join("a", "b")
    async with asyncio.timeout(ENOUGH_S):
        while not (await group.members["a"].change({})).claims:  # and none of them is taken up
            await asyncio.sleep(0.0005)
    await group.step("a")
    rows = await group.store.status(GROUP, TOPIC)
    assert {row.key.partition for row in rows if row.owner} == set(group.owned["a"])


# ---- a store that does not answer ------------------------------------------------------------


async def test_an_owner_does_not_wait_for_the_store(make: Make) -> None:
    group = await make(4)
    group.join("a", "b")
    await group.settled()
    group.store.answers.clear()
    begun = await group.begin_to_beat("a")
    for _ in range(20):
        assert await asyncio.wait_for(group.step("a"), ENOUGH_S) == Change()
        await asyncio.sleep(0.0005)
    assert group.store.beats["a"] == begun  # no second one is sent after it
    await group.leave("b")
    group.store.answers.set()
    assert await group.settled() == [4]


async def test_an_owner_does_not_wait_for_more_either(make: Make) -> None:
    """A store that goes away between a sign of life and a claim."""
    group = await make(4)
    group.join("a", "b")
    await group.settled()
    await group.leave("b")
    group.store.claims.clear()
    async with asyncio.timeout(ENOUGH_S):
        while not group.store.claiming:
            assert await group.step("a") == Change()
            await asyncio.sleep(0.0005)
    for _ in range(20):
        assert await asyncio.wait_for(group.step("a"), ENOUGH_S) == Change()
    assert len(group.owned["a"]) == 2
    group.store.claims.set()
    assert await group.settled() == [4]


async def test_who_owns_nothing_waits_for_the_store(make: Make) -> None:
    group = await make(2)
    group.join("a")
    group.store.answers.clear()
    waiting = asyncio.create_task(group.step("a"))
    await asyncio.wait({waiting}, timeout=0.02)
    assert not waiting.done()
    group.store.answers.set()
    assert len((await asyncio.wait_for(waiting, ENOUGH_S)).claims) == 2


async def test_leaving_while_the_store_hangs_or_is_away(make: Make) -> None:
    """The lease runs out instead; the bus is told all the same."""
    group = await make(2)
    group.join("a")
    await group.settled()
    group.store.answers.clear()
    await group.begin_to_beat("a")
    group.store.away = True
    await asyncio.wait_for(group.leave("a"), ENOUGH_S)
    assert group.bus.left == ["a"]


async def test_who_hears_nothing_from_the_store_lets_others_have_what_the_bus_gave_it(
    make: Make,
) -> None:
    """After two leases; the next answer makes it a member again."""
    group = await make(4)
    group.lease_ns = 30 * LEASE_NS
    group.bus.assigned = {"a": frozenset({0, 1, 2, 3})}
    group.join("a")
    await group.settled()
    group.store.answers.clear()
    await group.begin_to_beat("a")
    assert group.bus.left == []
    async with asyncio.timeout(ENOUGH_S):
        while not group.bus.left:  # though the worker may wait for something else, and not ask us
            await asyncio.sleep(0.0005)
    for _ in range(20):
        assert await group.step("a") == Change()
        await asyncio.sleep(0.0005)
    assert group.bus.left == ["a"]
    assert len(group.owned["a"]) == 4
    group.bus.assigned = {"a": frozenset({0, 1}), "b": frozenset({2, 3})}
    group.join("b")
    group.store.answers.set()
    assert await group.settled() == [2, 2]


# ---- a bus that assigns ----------------------------------------------------------------------


async def test_the_bus_may_assign_partitions(make: Make) -> None:
    """Unevenly, if it likes, and none to some."""
    group = await make(5)
    group.bus.assigned = {"a": frozenset({4}), "b": frozenset({0, 1, 2, 3})}
    group.join("a", "b", "c")
    assert await group.settled() == [1, 4, 0]
    assert set(group.owned["a"]) == {4}


async def test_what_the_bus_assigns_anew_waits_for_its_owner_to_let_go(make: Make) -> None:
    group = await make(4)
    group.bus.assigned = {"a": frozenset({0, 1}), "b": frozenset({2, 3})}
    group.join("a", "b")
    await group.settled()
    token = group.owned["a"][1].token
    group.bus.assigned = {"a": frozenset({0, 3}), "b": frozenset({1, 2})}
    assert not any(change.claims for change in await group.beat("b"))  # nobody has let go yet
    assert set(group.owned["b"]) == {2}
    assert [c.surplus for c in await group.beat("a") if c.surplus] == [[1]]
    assert await group.settled() == [2, 2]
    assert set(group.owned["b"]) == {1, 2}
    assert group.owned["b"][1].token > token
