"""The breaker alone, and what it does for a coordinator."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.errors import TransientError, UsageError
from market_data_store.coordinator import CircuitBreaker, RetryPolicy

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def breaker(clock: Time) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=3, recovery_timeout=60.0, monotonic=clock)


def _state(breaker: CircuitBreaker) -> str:
    return breaker.state


def _fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.record_failure()


def test_it_opens_after_failures_in_a_row(breaker: CircuitBreaker) -> None:
    _fail(breaker, 2)
    breaker.record_success()
    _fail(breaker, 2)
    assert _state(breaker) == "closed"
    assert breaker.allow()
    breaker.record_failure()
    assert _state(breaker) == "open"
    assert not breaker.allow()


def test_half_open_lets_exactly_one_through(breaker: CircuitBreaker, clock: Time) -> None:
    _fail(breaker, 3)
    clock.now = 59.9
    assert not breaker.allow()
    clock.now = 60.0
    assert _state(breaker) == "half_open"
    assert [breaker.allow() for _ in range(5)] == [True, False, False, False, False]
    breaker.record_failure()
    assert _state(breaker) == "open"
    clock.now = 119.9
    assert not breaker.allow()
    clock.now = 120.0
    assert breaker.allow()
    breaker.record_success()
    assert _state(breaker) == "closed"
    assert [breaker.allow(), breaker.allow()] == [True, True]


def test_a_try_that_said_nothing_lets_another_try(breaker: CircuitBreaker) -> None:
    breaker.trip()
    breaker.half_open()
    assert breaker.allow()
    assert not breaker.allow()
    breaker.release()
    assert breaker.allow()


def test_listeners_hear_of_every_change(breaker: CircuitBreaker) -> None:
    heard: list[str] = []
    stop = breaker.listen(heard.append)
    _fail(breaker, 4)
    breaker.half_open()
    breaker.record_success()
    breaker.record_success()
    stop()
    breaker.trip()
    assert heard == ["open", "half_open", "closed"]


@pytest.mark.parametrize(
    "options", [{"failure_threshold": 0}, {"recovery_timeout": -1}, {"probe_interval": 0}]
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="CircuitBreaker"):
        CircuitBreaker(**options)


async def test_waiting_ends_when_the_time_has_come() -> None:
    breaker = CircuitBreaker(recovery_timeout=0.01)
    breaker.trip()
    await asyncio.wait_for(breaker.admit(), 5)
    assert _state(breaker) == "half_open"


class Store:
    """A store that can be down, whose `ping` tells."""

    def __init__(self, sink: ControlledSink) -> None:
        self.sink = sink
        self.down = True
        self.concurrent = 0
        self.at_half_open: list[int] = []
        self.pings = 0
        self.hang = False

    async def write(self, batch: list[Any]) -> None:
        if self.down:
            raise TransientError
        await self.sink.write(batch)

    async def ping(self) -> None:
        self.pings += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.down:
            raise OSError


async def _until_open(coordinator: Any) -> None:
    while coordinator.health().circuit_state != "open":
        await asyncio.sleep(0)


async def test_an_open_breaker_leaves_the_store_alone(make: Make, sink: ControlledSink) -> None:
    def fail(batch: list[Any]) -> None:
        raise TransientError

    sink.fail = fail
    coordinator = make(circuit_breaker=CircuitBreaker(), batch_size=1, drain_timeout=0)
    async with coordinator:
        await coordinator.submit_many(range(20))
        await _until_open(coordinator)
        entered = sink.entered
        await asyncio.sleep(0.05)
        assert sink.entered == entered
    assert entered <= 8  # five failures, and what was under way
    assert coordinator.health().dead_lettered == 20


async def test_the_probe_ends_an_outage_long_before_the_timeout(
    make: Make, sink: ControlledSink
) -> None:
    store = Store(sink)
    breaker = CircuitBreaker(recovery_timeout=60.0, probe_interval=0.01)
    async with make(store, circuit_breaker=breaker) as coordinator:
        await coordinator.submit_many(range(10))
        await _until_open(coordinator)
        while store.pings < 3:
            await asyncio.sleep(0)
        assert coordinator.health().circuit_state == "open"
        store.down = False
        back = time.monotonic()
        await coordinator.flush()
        assert time.monotonic() - back < 2
    assert sorted(sink.items) == list(range(10))


async def test_by_default_writing_goes_on_within_two_seconds(
    make: Make, sink: ControlledSink
) -> None:
    store = Store(sink)
    async with make(
        store, circuit_breaker=CircuitBreaker(), retry_policy=RetryPolicy()
    ) as coordinator:
        await coordinator.submit("x")
        await _until_open(coordinator)
        store.down = False
        back = time.monotonic()
        await coordinator.flush()
        assert time.monotonic() - back < 2


async def test_a_store_that_is_half_back_is_tried_by_one_at_a_time(
    make: Make, sink: ControlledSink
) -> None:
    concurrent = 0
    seen: list[int] = []
    tries = 0
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=0.005)

    class HalfBack:
        async def write(self, batch: list[int]) -> None:
            nonlocal concurrent, tries
            state = breaker.state
            concurrent += 1
            if state == "half_open":
                tries += 1
                seen.append(concurrent)
            try:
                await asyncio.sleep(0)
                if tries < 4:
                    raise TransientError
                sink.batches.append(batch)
            finally:
                concurrent -= 1

    coordinator = make(HalfBack(), circuit_breaker=breaker, batch_size=1, workers=8)
    breaker.trip()
    async with coordinator:
        await coordinator.submit_many(range(30))
        await coordinator.flush()
    assert sorted(sink.items) == list(range(30))
    assert seen[:4] == [1, 1, 1, 1]


async def test_a_probe_that_hangs_does_not_stop_the_clock(make: Make, sink: ControlledSink) -> None:
    store = Store(sink)
    store.hang = True
    breaker = CircuitBreaker(recovery_timeout=0.05, probe_interval=0.001)
    async with make(store, circuit_breaker=breaker) as coordinator:
        await coordinator.submit("x")
        await _until_open(coordinator)
        store.down = False
        await coordinator.flush()
    assert sink.items == ["x"]


async def test_an_answer_that_refuses_rows_closes_the_breaker(
    make: Make, sink: ControlledSink
) -> None:
    class Refusal(Exception):
        sqlstate = "23505"

    def refuse(batch: list[Any]) -> None:
        raise Refusal

    sink.fail = refuse
    breaker = CircuitBreaker(recovery_timeout=0.001)
    breaker.trip()
    async with make(circuit_breaker=breaker) as coordinator:
        await coordinator.submit("bad")
        await coordinator.flush()
        assert coordinator.health().circuit_state == "closed"
        assert coordinator.health().dead_lettered == 1
