"""Several feeds do not hurt one another, and all of them obey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from tests.unit.routing.test_rate import event

from market_data_core.contracts.provider import BarProvider, FeedState, Item, Subscription
from market_data_core.errors import TransientError, UsageError
from market_data_core.events import Tick
from market_data_pipeline import MockProvider, ProviderRouter, RateCoordinator
from market_data_pipeline.routing import router as module
from market_data_pipeline.routing.backoff import Backoff
from market_data_pipeline.routing.router import Routed
from mds_client.models import Bar

ALL = Subscription()
ENOUGH_S = 10.0
AWAY, BACK = FeedState("away"), FeedState("back")


def ticks(symbol: str, count: int) -> list[Tick]:
    return [Tick(symbol, n, 1.0, 1.0, n) for n in range(count)]


class Feed:
    """Yields what is put in; an exception is raised."""

    def __init__(self, name: str, *items: Item | Exception) -> None:
        self.name = name
        self.asked = 0
        self.closed = 0
        self._items: asyncio.Queue[Item | Exception] = asyncio.Queue()
        for item in items:
            self.put(item)

    def put(self, item: Item | Exception) -> None:
        self._items.put_nowait(item)

    async def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        try:
            assert subscription == ALL
            while True:
                self.asked += 1
                item = await self._items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed += 1


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "pause_s", lambda *_: 0.0)


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def taken(stream: AsyncIterator[Any], count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(ENOUGH_S):
        while len(found) < count:
            found.append(await anext(stream))
    return found


# ---- one feed --------------------------------------------------------------------------------


async def test_a_feed_that_breaks_is_begun_again() -> None:
    mock = MockProvider("mock", ticks("SPY", 5), fail_after=2)
    router = ProviderRouter([mock])
    assert router.health()["mock"].state == "new"
    items = [item async for item in router.feed("mock")]
    a, b, c, d, e = ticks("SPY", 5)
    assert items == [a, b, AWAY, c, d, AWAY, e]
    health = router.health()["mock"]
    assert (health.state, health.restarts) == ("ended", 2)
    assert "broken after 2 items" in health.error


@pytest.mark.parametrize("error", [TransientError("gone"), ValueError("a bug")])
async def test_health_tells_of_a_feed_that_is_away(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "pause_s", lambda *_: 3_600.0)
    feed = Feed("one", *ticks("SPY", 1), error)
    router = ProviderRouter({"kind": feed})
    async with aclosing(router.feed("kind")) as stream:
        assert await taken(stream, 1) == ticks("SPY", 1)
        assert router.health()["kind"].state == "running"
        assert await taken(stream, 1) == [AWAY]
        health = router.health()["kind"]
        assert (health.state, health.error) == ("away", str(error))
    assert feed.closed == 1


async def test_what_can_never_work_is_raised_at_once() -> None:
    router = ProviderRouter([Feed("one", UsageError("wrong key"))])
    with pytest.raises(UsageError, match="wrong key"):
        await taken(router.feed("one"), 1)
    assert router.health()["one"].state == "failed"


async def test_a_feed_is_served_from_its_first_item_on(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[float] = []

    def pause_s(_: Backoff, served_s: float) -> float:
        served.append(served_s)
        return 0.0

    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(Backoff, "pause_s", pause_s)
    monkeypatch.setattr(module, "monotonic", lambda: float(next(now)))
    gone = TransientError("gone")
    feed = Feed("one", gone, *ticks("SPY", 3), gone, BACK, gone)
    async with aclosing(ProviderRouter([feed]).feed("one")) as stream:
        await taken(stream, 7)
    assert served == [0.0, 100.0, 0.0]


async def test_a_held_feed_says_so_and_is_asked_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SAID_AGAIN_S", 0.001)
    rate = RateCoordinator()
    feed = Feed("one", *ticks("SPY", 3))
    router = ProviderRouter([feed], rate)
    a, b, c = ticks("SPY", 3)
    async with aclosing(router.feed("one")) as stream:
        assert await taken(stream, 1) == [a]
        await rate.on_feedback(event("hard"))
        # one was taken already; the pause is said, and said again before it is an hour old
        assert await taken(stream, 3) == [AWAY, AWAY, AWAY]
        assert feed.asked == 1
        assert router.health()["one"].state == "held"
        await rate.on_feedback(event("ok", at_s=1))
        async with asyncio.timeout(ENOUGH_S):
            while (state := await anext(stream)) == AWAY:
                pass
        assert state == BACK
        assert await taken(stream, 2) == [b, c]


async def test_no_feed_is_begun_while_everything_stands_still() -> None:
    rate = RateCoordinator()
    await rate.on_feedback(event("hard"))
    feed = Feed("one", *ticks("SPY", 1))
    async with aclosing(ProviderRouter([feed], rate).feed("one")) as stream:
        assert await taken(stream, 1) == [AWAY]
        waiting = asyncio.ensure_future(taken(stream, 1))
        await settled()
        assert feed.asked == 0
        await rate.on_feedback(event("ok", at_s=1))
        assert await waiting == ticks("SPY", 1)  # it was not there before, so it is not back


async def test_a_feed_that_was_away_when_it_was_held_is_not_back_on_release() -> None:
    rate = RateCoordinator()
    feed = Feed("one", *ticks("SPY", 1), AWAY)
    async with aclosing(ProviderRouter([feed], rate).feed("one")) as stream:
        await taken(stream, 2)
        await rate.on_feedback(event("hard"))
        waiting = asyncio.ensure_future(taken(stream, 2))
        await settled()
        await rate.on_feedback(event("ok", at_s=1))
        await settled()
        assert not waiting.done()
        feed.put(BACK)
        assert await waiting == [AWAY, BACK]


# ---- several ---------------------------------------------------------------------------------


async def test_items_of_several_come_in_turns_with_their_names() -> None:
    feeds = [Feed("busy", *ticks("A", 100)), Feed("quiet", *ticks("B", 2))]
    async with aclosing(ProviderRouter(feeds).stream(ALL)) as stream:
        found = await taken(stream, 102)
    assert [r.item for r in found if r.provider == "busy"] == ticks("A", 100)
    assert [r.item for r in found if r.provider == "quiet"] == ticks("B", 2)
    assert {r.provider for r in found[:2]} == {"busy", "quiet"}
    assert all(isinstance(r, Routed) for r in found)


async def test_one_that_breaks_takes_no_other_down() -> None:
    broken = Feed("broken", ValueError("a bug"), TransientError("gone"), *ticks("A", 1))
    well = Feed("well", *ticks("B", 3))
    async with aclosing(ProviderRouter([broken, well]).stream(ALL)) as stream:
        found = await taken(stream, 6)
    assert [r.item for r in found if r.provider == "well"] == ticks("B", 3)
    assert [r.item for r in found if r.provider == "broken"] == [AWAY, AWAY, *ticks("A", 1)]


async def test_it_ends_with_its_last_feed() -> None:
    mocks = [MockProvider("a", ticks("A", 3)), MockProvider("b", ticks("B", 1))]
    found = [r async for r in ProviderRouter(mocks).stream(ALL)]
    assert len(found) == 4


async def test_a_usage_error_ends_it_though_others_never_stop() -> None:
    endless = MockProvider("endless")
    wrong = Feed("wrong", *ticks("A", 2), UsageError("wrong key"))
    found: list[Routed] = []

    async def read() -> None:
        async for routed in ProviderRouter([endless, wrong]).stream(ALL):
            found.append(routed)  # noqa: PERF401  (a comprehension would lose them)

    with pytest.raises(UsageError, match="wrong key"):
        await asyncio.wait_for(read(), ENOUGH_S)
    assert [r.item for r in found if r.provider == "wrong"] == ticks("A", 2)


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_MAX", 4)
    feed = Feed("one", *ticks("A", 100))
    async with aclosing(ProviderRouter([feed]).stream(ALL)) as stream:
        await taken(stream, 1)
        await settled()
        assert feed.asked <= 6
        assert [r.item for r in await taken(stream, 99)] == ticks("A", 100)[1:]


async def test_leaving_closes_every_feed() -> None:
    feeds = [Feed("a", *ticks("A", 1)), Feed("b", *ticks("B", 1))]
    async with ProviderRouter(feeds) as router:
        stream = router.stream(ALL)
        await taken(stream, 2)
        assert [feed.closed for feed in feeds] == [0, 0]
    assert [feed.closed for feed in feeds] == [1, 1]
    assert [health.state for health in router.health().values()] == ["ended", "ended"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_ends_what_another_task_reads() -> None:
    feed = Feed("a", *ticks("A", 1))
    router = ProviderRouter([feed])
    found: list[Routed] = []

    async def read() -> None:
        async for routed in router.stream(ALL):
            found.append(routed)  # noqa: PERF401  (a comprehension would lose them)

    reading = asyncio.create_task(read())
    await settled()
    await router.close()
    await asyncio.wait_for(reading, ENOUGH_S)
    assert [routed.item for routed in found] == ticks("A", 1)
    assert feed.closed == 1


async def test_all_of_them_obey() -> None:
    rate = RateCoordinator()
    feeds = [Feed("a", *ticks("A", 9)), Feed("b", *ticks("B", 9))]
    await rate.on_feedback(event("hard"))
    async with aclosing(ProviderRouter(feeds, rate).stream(ALL)) as stream:
        assert {r.item for r in await taken(stream, 2)} == {AWAY}
        assert [feed.asked for feed in feeds] == [0, 0]
        await rate.on_feedback(event("ok", at_s=1))
        assert len(await taken(stream, 18)) == 18


# ---- bars ------------------------------------------------------------------------------------


def bar(provider: str, symbol: str) -> Bar:
    return Bar(provider=provider, symbol=symbol, open=1, high=1, low=1, close=1, volume=1)


async def test_bars_of_several_are_merged_and_begun_again() -> None:
    one: BarProvider[Bar] = MockProvider("one", bars=[bar("one", "A")] * 3, fail_after=2)
    two = MockProvider("two", bars=[bar("two", "A"), bar("two", "B")])
    found = [b async for b in ProviderRouter([one, two]).stream_bars(["A"])]
    assert sorted(b.provider for b in found) == ["one"] * 3 + ["two"]


async def test_a_provider_without_bars_is_refused() -> None:
    with pytest.raises(UsageError, match="'one' has no stream_bars"):
        await taken(ProviderRouter([Feed("one")]).stream_bars(["A"]), 1)


@pytest.mark.parametrize(
    ("providers", "message"),
    [([Feed("x"), Feed("x")], "two providers are named 'x'"), ([], "at least one")],
)
async def test_what_cannot_be_routed_is_refused(providers: Sequence[Feed], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProviderRouter(providers)


async def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown provider 'syntetic'.*'synthetic'"):
        ProviderRouter([Feed("synthetic")]).feed("syntetic")
