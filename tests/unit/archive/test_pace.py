"""Events are handed out when they are due, whatever they come in."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.unit.archive.conftest import batch

from market_data_core.contracts.provider import Item
from market_data_core.events import EventBatch, Rejected
from market_data_pipeline.pace import Pace

TRADES = batch(*(("A", float(i), i, 1.0) for i in range(6)))


class Time:
    """A clock that moves only where somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio, "wait_for", self.wait_for)

    async def wait_for(self, work: object, seconds: float) -> None:
        work.close()  # type: ignore[attr-defined]
        self.now += seconds
        raise TimeoutError


async def _run(pace: Pace, item: Item, clock: Time | None = None) -> list[tuple[float, list[int]]]:
    found = []
    async for part in pace.parts(item, asyncio.Event()):
        assert isinstance(part, EventBatch)
        found.append((round(clock.now, 3) if clock else 0.0, part.seq.tolist()))
    return found


async def test_events_are_due_by_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    found = await _run(Pace(2.0), TRADES, clock)
    assert found == [(0.5 * i, [i]) for i in range(6)]


async def test_what_is_due_together_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    found = await _run(Pace(300.0), TRADES, clock)
    assert [seqs for _, seqs in found] == [[0, 1, 2, 3], [4, 5]]


async def test_what_was_carried_before_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    pace = Pace(1.0, skip=8)
    assert await _run(pace, TRADES, clock) == [(0.0, [0, 1, 2, 3, 4, 5])]
    assert not pace.holds
    assert await _run(pace, TRADES, clock) == [
        (0.0, [0, 1]), (0.0, [2]), (1.0, [3]), (2.0, [4]), (3.0, [5]),
    ]  # fmt: skip
    assert pace.holds


async def test_without_speed_everything_passes() -> None:
    assert await _run(Pace(None), TRADES) == [(0.0, [0, 1, 2, 3, 4, 5])]
    assert not Pace(None).holds
    rejected = Rejected("malformed", "", b"")
    assert [p async for p in Pace(1.0).parts(rejected, asyncio.Event())] == [rejected]


async def test_who_is_stopped_does_not_wait() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    began = time.monotonic()
    found = [p async for p in Pace(1e-3).parts(TRADES, stop)]
    assert len(found) == 1
    assert time.monotonic() - began < 30
