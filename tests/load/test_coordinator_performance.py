"""The coordinator under load, against a sink that costs nothing and one that takes its time.

Bounds here are floors that hold on a busy machine; ``benchmarks`` has the comparisons.
"""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from market_data_store.coordinator import WriteCoordinator
from mds_client.models import Bar

FLOOR_SINGLE_PER_S = 100_000
FLOOR_BATCHES_PER_S = 500_000


class NullSink:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.rows = 0

    async def write(self, batch: Sequence[Any]) -> None:
        self.rows += len(batch)


class SlowSink(NullSink):
    """A store that answers after 10 ms, and remembers what it got and from how many at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()
        self.concurrent = self.concurrent_max = 0

    async def write(self, batch: Sequence[int]) -> None:
        self.concurrent += 1
        self.concurrent_max = max(self.concurrent, self.concurrent_max)
        await asyncio.sleep(0.01)
        self.concurrent -= 1
        self.rows += len(batch)
        self.ids.update(batch)


def _bar() -> Bar:
    return Bar(symbol="AAPL", open=190, high=192, low=189, close=191, volume=1000)


async def test_single_items_to_a_null_sink(tmp_path: Path) -> None:
    sink, bar, count = NullSink(), _bar(), 200_000
    async with WriteCoordinator[Bar](sink=sink, dlq=tmp_path / "d.ndjson") as coordinator:
        began = time.perf_counter()
        for _ in range(count):
            await coordinator.submit(bar)
        await coordinator.flush()
        took = time.perf_counter() - began
    assert sink.rows == count
    assert count / took > FLOOR_SINGLE_PER_S


async def test_batches_to_a_null_sink(tmp_path: Path) -> None:
    sink, batch, times = NullSink(), [_bar()] * 500, 2000
    async with WriteCoordinator[Bar](sink=sink, dlq=tmp_path / "d.ndjson") as coordinator:
        began = time.perf_counter()
        await coordinator.submit_many(batch for _ in range(times))
        await coordinator.flush()
        took = time.perf_counter() - began
    assert sink.rows == 500 * times
    assert 500 * times / took > FLOOR_BATCHES_PER_S


async def test_a_slow_sink_is_used_by_all_workers_and_memory_stays_bounded(
    tmp_path: Path,
) -> None:
    sink, count = SlowSink(), 40_000
    async with WriteCoordinator[int](
        sink=sink, capacity=5000, dlq=tmp_path / "d.ndjson"
    ) as coordinator:
        tracemalloc.start()
        try:
            await coordinator.submit_many(range(count))
            await coordinator.flush()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sink.ids == set(range(count))
    assert sink.concurrent_max == 4
    assert peak < 8_000_000


@pytest.mark.slow
async def test_ten_thousand_a_second_for_a_minute(tmp_path: Path) -> None:
    sink = SlowSink()
    async with WriteCoordinator[int](sink=sink, dlq=tmp_path / "d.ndjson") as coordinator:
        began, number = time.perf_counter(), 0
        waits: list[float] = []
        while number < 600_000:
            await asyncio.sleep(max(0.0, began + number / 10_000 - time.perf_counter()))
            before = time.perf_counter()
            await coordinator.submit_many(range(number, number + 100))
            waits.append(time.perf_counter() - before)
            number += 100
        await coordinator.flush()
        took = time.perf_counter() - began
    assert sink.ids == set(range(600_000))
    assert took < 62
    assert sorted(waits)[len(waits) * 99 // 100] < 0.3
