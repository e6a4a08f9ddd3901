"""A feed that breaks is begun again, ever more slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from market_data_core.contracts.provider import FeedState, Item, Subscription
from market_data_core.errors import TransientError
from market_data_core.events import Tick
from market_data_pipeline import pump
from market_data_pipeline.producer import Producer
from market_data_pipeline.pump import Backoff, Pump

TICK = Tick("SPY", 0, 1.0, 1.0, 0)


def test_pauses_double_up_to_a_bound_and_are_drawn() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(0.0) for _ in range(12)]
    limits = [min(0.2 * 2**n, 30.0) for n in range(12)]
    assert all(lim / 2 <= p <= lim for p, lim in zip(pauses, limits, strict=True))
    assert limits[-1] == 30.0
    assert len({Backoff().pause_s(0.0) for _ in range(20)}) > 1


def test_only_a_good_minute_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.pause_s(0.0)
    assert backoff.pause_s(59.0) >= 15.0
    assert backoff.pause_s(60.0) <= 0.2
    assert 0.2 <= backoff.pause_s(0.0) <= 0.4


class Broken:
    """A feed of which every connection yields some items and breaks."""

    name = "broken"

    def __init__(self, *lives: list[Item]) -> None:
        self._lives = list(lives)

    async def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        assert subscription == Subscription()
        if not self._lives:
            return
        for item in self._lives.pop(0):
            yield item
        raise TransientError("gone")


class Quiet:
    """A producer that keeps nothing."""

    full = False

    def add(self, item: Item) -> None:
        assert item is TICK

    async def flush(self) -> None:
        return

    async def pause(self) -> None:
        return


async def test_a_feed_is_served_from_its_first_item_on(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[float] = []

    def pause_s(self: Backoff, served_s: float) -> float:
        served.append(served_s)
        return 0.0

    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(Backoff, "pause_s", pause_s)
    monkeypatch.setattr(pump, "monotonic", lambda: float(next(now)))
    feed = Broken([], [TICK, TICK, TICK], [FeedState("back")])
    producer = cast("Producer", Quiet())
    await asyncio.wait_for(
        Pump(cast("Any", feed), producer, 60.0, lambda _: None)._read(Subscription()), 5
    )
    assert served == [0.0, 100.0, 0.0]
