"""Feedback decides how much may be read, and a share of a rate is that share."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from market_data_core.feedback import FeedbackEvent, FeedbackLevel
from market_data_pipeline.routing.rate import FOREVER, Pace, RateCoordinator
from market_data_store.coordinator import FeedbackBus

T0 = datetime(2025, 10, 24, 14, 2, tzinfo=UTC)
ENOUGH_S = 10.0


def event(
    level: FeedbackLevel, who: str = "a", at_s: float = 0.0, *, rows: int = 7, source: str = "s"
) -> FeedbackEvent:
    return FeedbackEvent(
        coordinator_id=who,
        source=source,
        level=level,
        queue_size=rows,
        capacity=10,
        ts=T0 + timedelta(seconds=at_s),
    )


class Seconds:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def level(rate: RateCoordinator) -> str:
    """The level; a call, since the type checker takes an attribute for unchanged."""
    return rate.level


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


# ---- levels ----------------------------------------------------------------------------------


async def test_the_worst_of_all_coordinators_decides() -> None:
    rate = RateCoordinator()
    assert (level(rate), rate.scale("p")) == ("ok", 1.0)
    await rate.on_feedback(event("soft", "a"))
    assert (level(rate), rate.scale("p")) == ("soft", 0.5)
    await rate.on_feedback(event("hard", "b"))
    assert (level(rate), rate.scale("p")) == ("hard", 0.0)
    await rate.on_feedback(event("ok", "a", 1))
    assert level(rate) == "hard"
    await rate.on_feedback(event("ok", "b", 1))
    assert (level(rate), rate.scale("p")) == ("ok", 1.0)


async def test_an_event_that_was_overtaken_is_left_out() -> None:
    rate = RateCoordinator()
    await rate.on_feedback(event("ok", at_s=2))
    await rate.on_feedback(event("hard", at_s=1))
    assert level(rate) == "ok"
    await rate.on_feedback(event("soft", at_s=2))  # not older
    assert level(rate) == "soft"


async def test_a_level_that_is_not_repeated_expires() -> None:
    clock = Seconds()
    rate = RateCoordinator(stale_s=10.0, clock=clock)
    await rate.on_feedback(event("hard", "dead"))
    await rate.on_feedback(event("soft", "alive"))
    clock.now += 9.0
    await rate.on_feedback(event("soft", "alive", 9))
    assert level(rate) == "hard"
    clock.now += 1.0
    with capture_logs() as logs:
        assert level(rate) == "soft"
    expired = [line for line in logs if line["event"] == "feedback expired"]
    assert [line["coordinator"] for line in expired] == ["dead"]
    clock.now += 9.0
    assert (level(rate), rate.scale("p")) == ("ok", 1.0)


async def test_a_clock_that_was_set_back_heals_when_the_old_event_expires() -> None:
    clock = Seconds()
    rate = RateCoordinator(stale_s=10.0, clock=clock)
    await rate.on_feedback(event("ok", at_s=3600))
    await rate.on_feedback(event("hard", at_s=0))
    assert level(rate) == "ok"
    clock.now += 10.0
    await rate.on_feedback(event("hard", at_s=10))
    assert level(rate) == "hard"


async def test_it_expires_though_nobody_looks() -> None:
    rate = RateCoordinator(stale_s=0.02)
    rate.scale("unseen")
    await rate.on_feedback(event("hard", source="unseen_source"))
    assert metric("pipeline_rate_scale_factor", provider="unseen") == 0.0
    async with asyncio.timeout(ENOUGH_S):
        while metric("pipeline_rate_scale_factor", provider="unseen") != 1.0:
            await asyncio.sleep(0.001)
    assert metric("pipeline_feedback_queue_depth", source="unseen_source") == 0.0


async def test_coordinators_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data_pipeline.routing.rate._COORDINATORS_MAX", 2)
    rate = RateCoordinator()
    await rate.on_feedback(event("hard", "first"))
    await rate.on_feedback(event("soft", "second"))
    await rate.on_feedback(event("hard", "first", 1))
    await rate.on_feedback(event("ok", "third"))
    assert level(rate) == "hard"
    await rate.on_feedback(event("ok", "fourth"))
    assert level(rate) == "ok"


async def test_metrics_follow() -> None:
    rate = RateCoordinator()
    rate.scale("kind")
    count = metric("pipeline_feedback_processing_latency_ms_count") or 0
    await rate.on_feedback(event("soft", "a", rows=5, source="depths"))
    await rate.on_feedback(event("soft", "b", rows=9, source="depths"))
    assert metric("pipeline_rate_scale_factor", provider="kind") == 0.5
    assert metric("pipeline_backpressure_state", provider="kind") == 1.0
    assert metric("pipeline_feedback_queue_depth", source="depths") == 9.0
    await rate.on_feedback(event("hard", "a", 1, rows=5, source="depths"))
    assert metric("pipeline_backpressure_state", provider="kind") == 2.0
    rate.scale("later")
    assert metric("pipeline_backpressure_state", provider="later") == 2.0
    assert metric("pipeline_feedback_processing_latency_ms_count") == count + 3


async def test_it_subscribes_to_feedback_within_a_process() -> None:
    rate, bus = RateCoordinator(), FeedbackBus()
    bus.subscribe(rate.on_feedback)
    bus.publish(event("hard"))
    await bus.close()
    assert level(rate) == "hard"


# ---- holding back ----------------------------------------------------------------------------


async def test_nothing_is_awaited_while_all_is_well() -> None:
    rate = RateCoordinator()
    await rate.on_feedback(event("ok"))
    coroutine = rate.acquire("p", 1_000_000)
    with pytest.raises(StopIteration):  # it ran to its end without giving way to others
        coroutine.send(None)


async def test_hard_holds_until_it_is_over() -> None:
    rate = RateCoordinator()
    await rate.on_feedback(event("hard"))
    assert not rate.take("p")
    held = [asyncio.create_task(rate.acquire(name)) for name in ("p", "q")]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    await rate.on_feedback(event("ok", at_s=1))
    await asyncio.wait_for(asyncio.gather(*held), ENOUGH_S)


async def test_hard_that_is_not_repeated_lets_go_of_those_it_holds() -> None:
    rate = RateCoordinator(stale_s=0.02)
    await rate.on_feedback(event("hard"))
    await asyncio.wait_for(rate.wait("p"), ENOUGH_S)
    assert level(rate) == "ok"


async def test_soft_that_ends_lets_go_at_once() -> None:
    clock = Seconds()
    rate = RateCoordinator(clock=clock)
    for _ in range(3):
        rate.take("p", 1_000)
        clock.now += 1.0
    await rate.on_feedback(event("soft"))
    held = asyncio.create_task(rate.acquire("p", 1_000_000))  # for half an hour
    for _ in range(20):
        await asyncio.sleep(0)
    assert not held.done()
    await rate.on_feedback(event("ok", at_s=1))
    await asyncio.wait_for(held, ENOUGH_S)


def taken_within(pace: Pace, seconds: float, begin: float, scale: float, each: int) -> int:
    """Events taken of a feed that always has more, which takes a hundredth of a second an item."""
    now, end, taken = begin, begin + seconds, 0
    while now < end:
        pause_s = pace.pause_s(now, scale)
        if pause_s:
            now += pause_s
            continue
        if not pace.take(each, now, scale):
            assert pace.pause_s(now, scale) > 0
        taken += each
        now += 0.01
    return taken


@pytest.mark.parametrize("each", [1, 7, 1_000])
def test_soft_lets_half_of_the_rate_through(each: int) -> None:
    pace = Pace()
    usual = taken_within(pace, 60.0, 0.0, 1.0, each)
    assert usual == pytest.approx(6_000 * each, rel=0.01)
    half = taken_within(pace, 60.0, 60.0, 0.5, each)
    assert half == pytest.approx(usual / 2, rel=0.05)
    assert taken_within(pace, 60.0, 120.0, 1.0, each) == pytest.approx(usual, rel=0.01)


def test_pauses_come_once_a_second_and_not_after_every_event() -> None:
    pace = Pace()
    taken_within(pace, 10.0, 0.0, 1.0, 1)  # 100 a second
    pauses, now = 0, 10.0
    while now < 20.0:
        pauses += not pace.take(1, now, 0.5)
        now += 0.01 + pace.pause_s(now + 0.01, 0.5)
    assert 4 <= pauses <= 11


def test_the_usual_rate_follows_what_was_lately() -> None:
    pace = Pace()
    taken_within(pace, 60.0, 0.0, 1.0, 100)
    taken_within(pace, 60.0, 60.0, 1.0, 1)
    assert taken_within(pace, 60.0, 120.0, 0.5, 1) == pytest.approx(3_000, rel=0.05)


def test_standing_still_earns_no_tokens_and_spoils_no_rate() -> None:
    pace = Pace()
    taken_within(pace, 60.0, 0.0, 1.0, 1)
    assert pace.pause_s(60.0, 0.0) == FOREVER
    assert pace.pause_s(3_600.0, 0.0) == FOREVER
    taken_within(pace, 1.5, 3_600.0, 1.0, 1)
    assert taken_within(pace, 60.0, 3_601.5, 0.5, 1) == pytest.approx(3_000, rel=0.05)
    assert not pace.take(1, 3_662.0, 0.0)
    assert pace.pause_s(3_662.0, 0.0) == FOREVER
    assert taken_within(pace, 0.5, 7_200.0, 0.5, 1) <= 1


def test_a_slow_feed_is_left_alone() -> None:
    pace = Pace()
    now = 0.0
    for _ in range(60):  # one event in two seconds
        assert pace.take(1, now, 1.0)
        now += 2.0
    for _ in range(60):
        pace.take(1, now, 0.5)
        now += 2.0
        assert pace.pause_s(now, 0.5) == 0.0


def test_a_feed_that_begins_under_soft_is_measured_first() -> None:
    pace = Pace()
    assert pace.pause_s(0.0, 0.5) == 0.0
    assert taken_within(pace, 1.0, 0.0, 0.5, 1) == pytest.approx(100, abs=1)
    assert taken_within(pace, 60.0, 1.01, 0.5, 1) == pytest.approx(3_000, rel=0.05)
