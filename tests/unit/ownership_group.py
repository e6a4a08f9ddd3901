"""A group of workers that share a topic's partitions, each doing what its ownership tells it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tests.property._memory import MemoryStore
from tests.property._memory_bus import MemoryBus

from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Claim, PartitionKey
from market_data_core.errors import TransientError
from market_data_core.records import TopicInfo
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
