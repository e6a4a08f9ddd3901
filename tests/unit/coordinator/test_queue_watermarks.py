"""The bounded queue: rows, watermarks, overflow, order, flushing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import UsageError
from market_data_store.coordinator import CoordinatorClosedError, QueueFullError
from market_data_store.coordinator.feedback import Pressure

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make


class Columns:
    """A batch of rows that is one item."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


async def _settle(times: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_everything_is_written_once_in_batches(make: Make, sink: ControlledSink) -> None:
    async with make(batch_size=10) as coordinator:
        for number in range(105):
            await coordinator.submit(number)
        await coordinator.flush()
        assert sorted(sink.items) == list(range(105))
    assert max(len(batch) for batch in sink.batches) == 10


async def test_a_partial_batch_is_written_after_the_flush_interval(
    make: Make, sink: ControlledSink
) -> None:
    async with make(batch_size=1000) as coordinator:
        await coordinator.submit("lonely")
        await sink.wait_until_called(1)  # nobody has asked for a flush


async def test_high_and_low_are_called_in_turn(make: Make, sink: ControlledSink) -> None:
    calls: list[str] = []

    async def low() -> None:
        calls.append("low")

    sink.open.clear()
    async with make(
        capacity=10,
        workers=1,
        batch_size=1,
        on_backpressure_high=lambda: calls.append("high"),
        on_backpressure_low=low,
    ) as coordinator:
        await coordinator.submit_many(range(8))  # one of them is in flight
        await _settle()
        assert calls == []
        await coordinator.submit_many(range(2))
        await _settle()
        assert calls == ["high"]
        sink.open.set()
        await coordinator.flush()
        await _settle()
        assert calls == ["high", "low"]


@given(st.lists(st.integers(0, 100), max_size=60))
def test_levels_have_hysteresis(rows: list[int]) -> None:
    pressure = Pressure(100, 0.8, 0.5)
    level, high = "ok", False
    for now in rows:
        pressure.update(now)
        if now >= 90:
            level = "hard"
        elif now < 20:
            level = "ok"
        elif now >= 50:
            level = "soft" if level == "ok" else level
        else:
            level = "soft" if level == "hard" else level
        high = now >= 80 or (high and now > 50)
        assert (pressure.level, pressure.high) == (level, high)
        assert pressure.lower < now < pressure.upper


async def test_full_blocks_until_there_is_room(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(capacity=4, workers=1, batch_size=2) as coordinator:
        await coordinator.submit_many(range(6))  # two in flight, four wait
        blocked = asyncio.ensure_future(coordinator.submit(6))
        await _settle()
        assert not blocked.done()
        assert coordinator.health().queue_size == 4
        sink.open.set()
        await blocked
    assert sink.items == list(range(7))


async def test_who_is_cancelled_while_blocked_has_submitted_nothing(
    make: Make, sink: ControlledSink
) -> None:
    sink.open.clear()
    async with make(capacity=1, workers=1, batch_size=1) as coordinator:
        await coordinator.submit_many(["in flight", "waits"])
        first = asyncio.ensure_future(coordinator.submit("cancelled"))
        second = asyncio.ensure_future(coordinator.submit("patient"))
        await _settle()
        first.cancel()
        sink.open.set()
        await second
        assert first.cancelled()
    assert sink.items == ["in flight", "waits", "patient"]


async def test_who_gives_up_waiting_lets_the_next_one_in(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(capacity=10, workers=1, batch_size=1) as coordinator:
        await coordinator.submit("in flight")
        await sink.wait_until_called(1)
        await coordinator.submit(Columns(8))
        large = asyncio.ensure_future(coordinator.submit(Columns(5)))
        small = asyncio.ensure_future(coordinator.submit("small"))
        await _settle()
        assert not small.done()  # it would pass the large one
        large.cancel()
        await asyncio.wait_for(small, 5)
        sink.open.set()


async def test_a_full_queue_does_not_wait_for_full_batches(
    make: Make, sink: ControlledSink
) -> None:
    async with make(capacity=4, batch_size=4, flush_interval=60, key=str) as coordinator:
        for number in range(40):
            await asyncio.wait_for(coordinator.submit(number), 5)
    assert sorted(sink.items) == list(range(40))


async def test_an_item_with_a_key_pushes_no_other_out(make: Make, sink: ControlledSink) -> None:
    def only(item: str) -> str | None:
        return item if item == "keyed" else None

    sink.open.clear()
    async with make(
        capacity=2, workers=1, batch_size=1, overflow="drop_oldest", key=only
    ) as coordinator:
        await coordinator.submit("in flight")
        await sink.wait_until_called(1)
        await coordinator.submit_many(["a", "b"])
        keyed = asyncio.ensure_future(coordinator.submit("keyed"))
        await _settle()
        assert not keyed.done()
        assert coordinator.health().dropped == 0
        sink.open.set()
        await keyed
    assert sorted(sink.items) == ["a", "b", "in flight", "keyed"]


async def test_drop_oldest_gives_each_dropped_item_away(make: Make, sink: ControlledSink) -> None:
    dropped: list[int] = []

    async def keep(item: int) -> None:
        dropped.append(item)

    sink.open.clear()
    async with make(
        capacity=3, workers=1, batch_size=1, overflow="drop", drop_callback=keep
    ) as coordinator:
        for number in range(8):
            await coordinator.submit(number)
        assert dropped == [1, 2, 3, 4]
        assert coordinator.health().dropped == 4
        sink.open.set()
    assert sink.items == [0, 5, 6, 7]


async def test_a_drop_callback_that_raises_or_hangs_hurts_nobody(
    make: Make, sink: ControlledSink
) -> None:
    async def bad(item: int) -> None:
        if item % 2:
            raise RuntimeError(item)
        await asyncio.Event().wait()

    sink.open.clear()
    async with make(
        capacity=1,
        workers=1,
        batch_size=1,
        overflow="drop_oldest",
        drop_callback=bad,
        callback_timeout=0.01,
    ) as coordinator:
        for number in range(4):
            await coordinator.submit(number)
        assert coordinator.health().callback_errors == 2
        sink.open.set()
    assert sink.items == [0, 3]


async def test_overflow_error_says_how_many_were_taken(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(capacity=4, workers=1, batch_size=2, overflow="error") as coordinator:
        with pytest.raises(QueueFullError, match="4 of 4 rows wait") as caught:
            await coordinator.submit_many(iter(range(100)))
        assert coordinator.health().refused == 1
        sink.open.set()
    assert sink.items == list(range(caught.value.accepted))
    assert caught.value.accepted == 6


async def test_capacity_counts_rows(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(capacity=100, workers=1, batch_size=50) as coordinator:
        await coordinator.submit(Columns(50))
        await sink.wait_until_called(1)
        await coordinator.submit(Columns(60))
        await coordinator.submit({"a": 1, "b": 2})
        assert coordinator.health().queue_size == 61
        blocked = asyncio.ensure_future(coordinator.submit(Columns(40)))
        await _settle()
        assert not blocked.done()
        sink.open.set()
        await blocked
        await coordinator.submit(Columns(1000))  # more than ever fits: when nothing else is inside


async def test_a_key_keeps_its_order_whatever_fails(make: Make, sink: ControlledSink) -> None:
    failures = iter(range(10_000))
    busy: set[str] = set()
    clashes: list[set[str]] = []

    class Checking:
        async def write(self, batch: list[tuple[str, int]]) -> None:
            keys = {key for key, _ in batch}
            if keys & busy:
                clashes.append(keys & busy)
            busy.update(keys)
            try:
                await asyncio.sleep(0)
                if next(failures) % 3 == 0:
                    raise OSError
                sink.batches.append(batch)
            finally:
                busy.difference_update(keys)

    async with make(
        Checking(), capacity=20, batch_size=4, key=lambda item: item[0], overflow="drop_oldest"
    ) as coordinator:
        for number in range(300):
            await coordinator.submit((f"key{number % 7}", number))
        await coordinator.flush()
        assert coordinator.health().dropped == 0
    assert clashes == []
    for key in range(7):
        numbers = [number for name, number in sink.items if name == f"key{key}"]
        assert numbers == list(range(key, 300, 7))


async def test_flush_waits_for_batches_in_flight(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(batch_size=1) as coordinator:
        await coordinator.submit("one")
        await sink.wait_until_called(1)
        assert coordinator.health().queue_size == 0
        flushed = asyncio.ensure_future(coordinator.flush())
        await _settle()
        assert not flushed.done()
        sink.open.set()
        await flushed
        assert sink.items == ["one"]


async def test_flush_does_not_wait_for_later_ones(make: Make, sink: ControlledSink) -> None:
    held = asyncio.Event()

    class HoldsB:
        async def write(self, batch: list[str]) -> None:
            if "b" in batch:
                await held.wait()
            sink.batches.append(batch)

    async with make(HoldsB(), batch_size=1) as coordinator:
        await coordinator.submit("a")
        flushed = asyncio.ensure_future(coordinator.flush())
        await asyncio.sleep(0)
        await coordinator.submit("b")
        await flushed
        held.set()


async def test_submit_many_takes_anything_that_gives_items(
    make: Make, sink: ControlledSink
) -> None:
    async def stream() -> AsyncIterator[Any]:
        yield 1
        yield [2, 3]

    def breaks() -> Iterator[int]:
        yield 7
        raise KeyError

    async with make(workers=1) as coordinator:
        assert await coordinator.submit_many(stream()) == 3
        assert await coordinator.submit_many([4, [5], [6]]) == 3
        assert await coordinator.submit_many([]) == 0
        with pytest.raises(KeyError):
            await coordinator.submit_many(breaks())
    assert sink.items == [1, 2, 3, 4, 5, 6, 7]


async def test_a_submitter_who_never_waits_lets_workers_work(
    make: Make, sink: ControlledSink
) -> None:
    async with make(capacity=1000, batch_size=10) as coordinator:
        for number in range(900):
            await coordinator.submit(number)
        assert len(sink.items) > 700


async def test_submitting_outside_of_the_context_is_an_error(make: Make) -> None:
    coordinator = make()
    with pytest.raises(CoordinatorClosedError, match="does not run"):
        await coordinator.submit(1)
    async with coordinator:
        await coordinator.submit(1)
    with pytest.raises(CoordinatorClosedError):
        await coordinator.submit_many([1])
    with pytest.raises(UsageError, match="make a new one"):
        await coordinator.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"overflow": "panic"}, "'panic' is not valid"),
        ({"low_watermark": 0.9}, "high_watermark 0.8 and low_watermark 0.9"),
        ({"coord_id": "../up"}, "coord_id '../up'"),
        ({"drain_timeout": -1}, "drain_timeout is -1"),
    ],
)
async def test_nonsense_is_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**options)
