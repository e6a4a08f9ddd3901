"""A worker whose bars take long to evaluate keeps what it owns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.property._memory import Life
from tests.property._signals_world import BARS, LEASE_NS, Bar, World, until

from market_data_pipeline import metrics
from market_data_pipeline.signals.evaluator import Evaluator

pytestmark = pytest.mark.timeout(60)


async def test_long_work_is_not_taken_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    working, done = asyncio.Event(), asyncio.Event()
    evaluate = Evaluator.evaluate

    async def slowly(self: Evaluator, *what: Any) -> Any:
        working.set()
        await done.wait()
        return await evaluate(self, *what)

    async def heard() -> bool:
        rows = await world.store.status("g-infer", BARS)
        return {row.owner for row in rows} == {"m1"} and all(
            row.heartbeat == world.clock.now_ns() for row in rows
        )

    monkeypatch.setattr(Evaluator, "evaluate", slowly)
    await world.write([Bar("B", slot, 100.0) for slot in range(3)])
    stop = asyncio.Event()
    first = asyncio.create_task(world.worker(Life()).run(stop))
    await working.wait()
    for _ in range(3):
        world.clock.advance(LEASE_NS * 3 // 4)
        await until(heard)
    second = asyncio.create_task(world.worker(Life()).run(stop))
    lag = metrics.STREAM_CONSUMER_LAG_MS.labels(BARS, "g-infer", "m2")
    lag.set(5.0)
    await until(lambda: nothing_unread(lag))
    assert {row.owner for row in await world.store.status("g-infer", BARS)} == {"m1"}
    done.set()
    await until(world.done)
    stop.set()
    await asyncio.gather(first, second)


async def nothing_unread(lag: Any) -> bool:
    """Whether the gauge of a worker that owns nothing says so."""
    return float(lag._value.get()) == 0.0
