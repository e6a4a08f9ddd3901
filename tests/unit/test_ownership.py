"""Who owns which partitions: even shares, or what the bus says, and never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.unit.ownership_group import ENOUGH_S, GROUP, LEASE_NS, TOPIC, Bus, Group, Store

from market_data_core.clock import ManualClock
from market_data_pipeline import ownership
from market_data_pipeline.ownership import Change


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
