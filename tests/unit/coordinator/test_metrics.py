"""Metrics under the names that dashboards use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

from market_data_core.errors import TransientError
from market_data_store import metrics
from market_data_store.coordinator import CircuitBreaker

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make


def _value(name: str, coordinator: Any, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"coord_id": coordinator.coord_id} | labels)


async def test_a_quiet_day(make: Make) -> None:
    async with make(workers=1, batch_size=10) as coordinator:
        assert _value("mds_coord_workers_alive", coordinator) == 1
        await coordinator.submit_many(range(25))
        await coordinator.flush()
        assert _value("mds_coord_items_submitted_total", coordinator) == 25
        assert _value("mds_coord_queue_depth", coordinator) == 0
        assert _value("mds_coord_circuit_state", coordinator) == 0
        worker = {"worker_id": "0"}
        assert _value("mds_worker_batches_written_total", coordinator, **worker) == 3
        assert _value("mds_worker_write_latency_seconds_count", coordinator, **worker) == 3
    assert _value("mds_coord_workers_alive", coordinator) == 0


async def test_an_outage_shows(make: Make, sink: ControlledSink) -> None:
    def fail(batch: list[Any]) -> None:
        raise TransientError

    sink.fail = fail
    coordinator = make(
        workers=1, circuit_breaker=CircuitBreaker(failure_threshold=2), drain_timeout=0
    )
    async with coordinator:
        await coordinator.submit("x")
        while coordinator.health().circuit_state != "open":
            await asyncio.sleep(0)
        assert _value("mds_coord_circuit_state", coordinator) == 1
        labels = {"worker_id": "0", "error_type": "TransientError"}
        assert _value("mds_worker_write_errors_total", coordinator, **labels) == 2
        assert _value("mds_worker_retries_total", coordinator, worker_id="0") == 1
        assert not coordinator.health().ok
    shutdown = {"reason": "shutdown"}
    assert _value("mds_coord_items_dead_lettered_total", coordinator, **shutdown) == 1


async def test_the_queue_shows_while_nothing_moves(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    async with make(
        capacity=100, workers=1, batch_size=1, overflow="drop", feedback_repeat=0.001
    ) as coordinator:
        await coordinator.submit_many(range(31))
        while _value("mds_coord_queue_depth", coordinator) != 30:
            await asyncio.sleep(0.001)
        await coordinator.submit_many(range(80))
        dropped = {"reason": "drop_oldest"}
        while _value("mds_coord_items_dropped_total", coordinator, **dropped) != 10:
            await asyncio.sleep(0.001)
        assert _value("mds_coord_items_submitted_total", coordinator) == 111
        sink.open.set()


def test_error_types_are_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics, "_error_types", set())
    labels = {metrics.error_type(type(f"Error{n}", (Exception,), {})()) for n in range(500)}
    assert len(labels) == 101
    assert "other" in labels


def test_units_stand_last_and_everything_is_described() -> None:
    found = [value for name, value in vars(metrics).items() if name.isupper() and name[0] != "_"]
    families = [family for metric in found for family in metric.collect()]
    assert len(families) == len(found) > 10
    assert all(family.documentation.endswith((".", ")")) for family in families)
