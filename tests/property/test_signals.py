"""Signals are a function of the stored bars, whatever crashes, however bars come and are shared."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.property._memory import Life
from tests.property._signals_world import (
    OTHER_RULES,
    PARTITIONS,
    RULES,
    World,
    bars_of,
    expected,
    until,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(1, 150),
    sorted_by=st.sampled_from(["time", "nearly", "nothing"]),
    cuts=st.lists(st.integers(0, 150), max_size=8),
    lives=st.lists(st.integers(0, 60), max_size=8),
    workers=st.integers(1, 3),
    poll_bytes=st.sampled_from([1, 700, 100_000]),
    changes=st.lists(st.sampled_from([RULES, OTHER_RULES]), max_size=8),
    losses=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), *[st.integers(0, 12)] * 2)),
    slow=st.sets(st.integers(0, 8)),
)
def test_signals_are_a_function_of_the_latest_bars(
    seed: int,
    number: int,
    sorted_by: str,
    cuts: list[int],
    lives: list[int],
    workers: int,
    poll_bytes: int,
    changes: list[str],
    losses: list[tuple[int, int, int]],
    slow: set[int],
) -> None:
    """Late and restated bars, restarts, crashes at any call, and several workers change nothing.

    Nor does a log that has lost records, or gets them late. Where rules have changed in between,
    each bar is held to those of its time.
    """
    bars = bars_of(seed, number, sorted_by)

    async def check() -> None:
        with TemporaryDirectory() as folder:
            world = World(Path(folder))
            await world.open()
            borders = sorted({0, *(min(cut, len(bars)) for cut in cuts), len(bars)})
            dying, rules, following = list(lives), RULES, list(changes)
            for turn, (begin, end) in enumerate(pairwise(borders)):
                await world.write(bars[begin:end], turn in slow)
                some = [Life(dying.pop()) if dying else Life() for _ in range(workers)]
                rules = following.pop() if following else rules
                for partition, first, count in losses if await world.begun() else ():
                    world.bus.cut(partition, first, first + count)
                await world.infer(some, poll_bytes, rules)
            await world.write([])
            await world.infer([Life()], rules=rules)
            await world.infer([Life()], rules=rules)
            active, published = await world.active(), await world.published()
            assert active == await expected(bars, await world.editions())
            assert published.keys() == active.keys()
            await world.store.close()

    asyncio.run(check())


def test_a_partition_that_comes_back() -> None:
    """What a worker knew of a partition is of no use after another one has had it."""

    async def check(folder: str) -> None:
        world = World(Path(folder))
        await world.open()
        bars = bars_of(7, 60, "time")
        first, middle, last = bars[:20], bars[20:40], bars[40:]
        stays, stop = world.worker(Life()), asyncio.Event()
        staying = asyncio.create_task(stays.run(stop))
        await world.write(first)
        await until(world.done)
        leaving, gone = world.worker(Life()), asyncio.Event()
        visiting = asyncio.create_task(leaving.run(gone))
        await until(lambda: world.owned(2))
        await world.write(middle)
        await until(world.done)
        gone.set()
        await visiting
        await until(lambda: world.owned(1))
        await world.write(last)
        await until(world.done)
        stop.set()
        await staying
        await world.infer([Life()])  # what it has not looked at of the index any more
        assert await world.active() == await expected(bars)
        await world.store.close()

    with TemporaryDirectory() as folder:
        asyncio.run(check(folder))
