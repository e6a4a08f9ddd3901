"""Sinks: the right table, the right metrics, and no part of a store left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import TransientError
from market_data_store._bar_rows import bar_batches
from market_data_store.coordinator import CircuitBreaker, DeadLetterQueue, WriteCoordinator
from market_data_store.sinks import (
    BarsSink,
    FundamentalsSink,
    NewsSink,
    OptionsSink,
    SignalsSink,
)
from mds_client import AMDS
from mds_client.models import Bar, FundamentalPoint, NewsItem, OptionSnap, SignalRow

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)
DAY = date(2025, 12, 19)

RECORDS: list[tuple[Callable[[Any], Any], str, Any]] = [
    (BarsSink, "bars", Bar(symbol="A", open=1, high=2, low=1, close=2, volume=0, ts=T0)),
    (OptionsSink, "options", OptionSnap(symbol="A", expiry=DAY, option_type="P", strike=1)),
    (FundamentalsSink, "fundamentals", FundamentalPoint(symbol="A", metric="eps", value=1)),
    (NewsSink, "news", NewsItem(id="1", symbol="A", title="t")),
    (SignalsSink, "signals", SignalRow(symbol="A", name="up", value=1)),
]


def bars(count: int, symbol: str = "SPY") -> list[Bar]:
    return [
        Bar(symbol=symbol, open=1, high=9, low=1, close=2, volume=1, ts=T0 + timedelta(0, i))
        for i in range(count)
    ]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Metrics:
    """How far counters have gone since this was made."""

    def __init__(self) -> None:
        self._before: dict[Any, float] = {}
        for family in REGISTRY.collect():
            for s in family.samples:
                self._before[s.name, tuple(sorted(s.labels.items()))] = s.value

    def rise(self, name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        return metric(name, **labels) - self._before.get(key, 0.0)


@pytest.mark.parametrize(("make", "table", "record"), RECORDS, ids=[r[1] for r in RECORDS])
async def test_each_sink_fills_its_table(
    any_uri: str, make: Callable[[Any], Any], table: str, record: Any
) -> None:
    client, seen = AMDS(any_uri), Metrics()
    async with make(client) as sink:
        assert await sink.write([record]) == WriteCounts(1)
        await sink.ping()
        assert len(await getattr(client, table)("A")) == 1
    assert not client.in_use
    assert seen.rise("sink_writes_total", sink=table, status="success") == 1
    assert seen.rise("sink_write_latency_seconds_count", sink=table) == 1


async def test_bars_are_counted_by_outcome(any_uri: str) -> None:
    seen = Metrics()

    def counted() -> dict[str, float]:
        statuses = ("inserted", "updated", "unchanged", "kept", "failure")
        rises = {
            s: seen.rise("store_bars_written_total", method="upsert", status=s) for s in statuses
        }
        return {status: rise for status, rise in rises.items() if rise}

    async with BarsSink(AMDS(any_uri)) as sink:
        await sink.write([*bars(2), *bar_batches(bars(3, "X"))])
        await sink.write(bars(2))
        assert counted() == {"inserted": 5, "unchanged": 2}
    broken = BarsSink(Down())
    with pytest.raises(TransientError):
        await broken.write([*bars(2), *bar_batches(bars(3, "X"))])
    assert counted() == {"inserted": 5, "unchanged": 2, "failure": 5}
    assert seen.rise("store_bars_write_latency_seconds_count", method="upsert") == 3
    assert seen.rise("sink_writes_total", sink="bars", status="failure") == 1


class Down:
    """A client of somebody else's, whose store is away."""

    async def upsert_bars(self, _: Sequence[Any], /) -> WriteCounts:
        raise TransientError("down")


async def test_another_client_is_its_owners(any_uri: str) -> None:
    async with BarsSink(Down()) as sink:
        await sink.ping()
    async with AMDS(any_uri) as client:
        async with BarsSink(client), NewsSink(client):
            pass
        assert client.in_use
    async with BarsSink(client), NewsSink(client) as sink:
        assert await sink.write([NewsItem(id="1", symbol="A", title="t")]) == WriteCounts(1)


async def test_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    sink = BarsSink(AMDS("postgresql://127.0.0.1:1/x"))
    with pytest.raises(TransientError):
        await sink.ping()
    with pytest.raises(TransientError):
        await sink.__aenter__()


def batch_of(closes: Sequence[float]) -> BarBatch:
    (batch,) = bar_batches(bars(len(closes), "Y"))
    batch.close[:] = closes
    return batch


async def test_a_bad_row_of_a_batch_is_found(any_uri: str, tmp_path: Path) -> None:
    """The coordinator takes batches apart until the row that the store refuses stands alone."""
    client, dlq = AMDS(any_uri), DeadLetterQueue[Any](tmp_path / "dlq.ndjson")
    closes = np.arange(1.0, 101.0)
    closes[37] = nan
    async with (
        BarsSink(client) as sink,
        WriteCoordinator[Any](
            sink=sink, dlq=dlq, workers=2, circuit_breaker=CircuitBreaker(), coord_id="sinks"
        ) as coordinator,
    ):
        await coordinator.submit_many([*bars(10), batch_of(closes.tolist())])
        await coordinator.flush()
        health = coordinator.health()
        stored = await client.bars("Y")
        assert stored["close"].to_list() == [c for c in closes.tolist() if not isnan(c)]
        assert len(await client.bars("SPY")) == 10
    assert (health.dead_lettered, health.circuit_state) == (1, "closed")
    (record,) = await dlq.replay(10)
    assert [len(item) for item in record.items] == [1]
