"""What becomes of a batch that the sink refuses, and of a worker that crashes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.coordinator.conftest import StoreError

from market_data_core.errors import FencedError, RejectedError, TransientError, UsageError
from market_data_store.coordinator import (
    CircuitBreaker,
    DeadLetterQueue,
    RetryPolicy,
    UnwrittenError,
    classify,
)

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make


class OperationalError(Exception):
    """Named as in PEP 249."""


class IntegrityError(Exception):
    """Likewise."""


class PoolTimeout(OperationalError):
    sqlstate = None


class Panic(BaseException):
    """As extension modules raise it."""


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        *[(StoreError(c), "transient") for c in ("08006", "40001", "40P01", "53100", "55P03")],
        *[(StoreError(c), "transient") for c in ("57P01", "57014", "25006", "28P01", "58030")],
        *[(StoreError(c), "permanent") for c in ("22003", "23514", "42P01", "0A000")],
        *[(StoreError(c), "unknown") for c in ("XX000", "25P02", "40002")],
        (TransientError("locked"), "transient"),
        (FencedError("taken over"), "permanent"),
        (RejectedError("malformed", "no"), "permanent"),
        (UsageError("no"), "permanent"),
        (ConnectionResetError(), "transient"),
        (TimeoutError(), "transient"),
        (ValueError(), "permanent"),
        (TypeError(), "permanent"),
        (OperationalError(), "transient"),
        (PoolTimeout(), "transient"),
        (IntegrityError(), "permanent"),
        (KeyError(), "unknown"),
        (asyncio.CancelledError(), "unknown"),
    ],
    ids=lambda value: f"{value!r}"[:40],
)
def test_errors_are_told_apart(error: BaseException, verdict: str) -> None:
    assert classify(error) == verdict


def test_pauses_grow_up_to_a_bound() -> None:
    policy = RetryPolicy(initial_backoff_ms=50, max_backoff_ms=2000, jitter=False)
    assert [policy.backoff_s(n) for n in (1, 2, 3, 7, 5000)] == [0.05, 0.1, 0.2, 2.0, 2.0]
    jittered = [RetryPolicy().backoff_s(2) for _ in range(100)]
    assert all(0.05 <= pause <= 0.1 for pause in jittered)
    assert len(set(jittered)) > 50


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"initial_backoff_ms": 3000}, {"multiplier": 0.5}]
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        RetryPolicy(**options)


async def test_a_transient_error_is_tried_again(make: Make, sink: ControlledSink) -> None:
    def fail_twice(batch: list[Any]) -> None:
        if sink.entered <= 2:
            raise TransientError

    sink.fail = fail_twice
    async with make() as coordinator:
        await coordinator.submit("x")
        await coordinator.flush()
        assert coordinator.health().retries == 2
        assert coordinator.health().circuit_state == "closed"
    assert sink.items == ["x"]


async def test_only_the_bad_rows_of_a_batch_are_set_aside(make: Make, sink: ControlledSink) -> None:
    def refuse(batch: list[int]) -> None:
        if {137, 4000} & set(batch):
            raise StoreError("23514")

    sink.fail = refuse
    async with make(workers=1, batch_size=5000) as coordinator:
        await coordinator.submit_many(range(5000))
        await coordinator.flush()
        health = coordinator.health()
        records = await coordinator.dlq.records()
    assert sink.items == [n for n in range(5000) if n not in {137, 4000}]
    assert [record.items for record in records] == [[137], [4000]]
    assert {record.metadata["reason"] for record in records} == {"permanent"}
    assert "23514" in records[0].error
    assert (health.written, health.dead_lettered, health.submitted) == (4998, 2, 5000)
    assert sink.entered < 60


async def test_a_bad_row_inside_of_columns_is_found(make: Make, sink: ControlledSink) -> None:
    class Columns:
        def __init__(self, values: np.ndarray[Any, Any]) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def take(self, index: np.ndarray[Any, Any]) -> Columns:
            return Columns(self.values[index])

    def refuse(batch: list[Columns]) -> None:
        if any(7 in columns.values for columns in batch):
            raise StoreError("22003")

    sink.fail = refuse
    async with make() as coordinator:
        await coordinator.submit(Columns(np.arange(10)))
        await coordinator.flush()
        assert coordinator.health().dead_lettered == 1
    written = [value for columns in sink.items for value in columns.values.tolist()]
    assert written == [0, 1, 2, 3, 4, 5, 6, 8, 9]


async def test_an_unknown_error_is_permanent_after_all_attempts(
    make: Make, sink: ControlledSink
) -> None:
    def fail(batch: list[int]) -> None:
        if 3 in batch:
            raise KeyError

    sink.fail = fail
    async with make(workers=1, batch_size=8) as coordinator:
        await coordinator.submit_many(range(8))
        await coordinator.flush()
        assert await coordinator.dlq.counts() == {"exhausted": 1}
    assert sorted(sink.items) == [0, 1, 2, 4, 5, 6, 7]
    assert sink.entered < 15  # the parts of a judged batch are not tried five times each


async def test_an_outage_of_any_length_loses_nothing(make: Make, sink: ControlledSink) -> None:
    down = True

    def fail(batch: list[Any]) -> None:
        if down:
            raise StoreError("57P03")

    sink.fail = fail
    async with make(capacity=100, batch_size=10) as coordinator:
        submitting = asyncio.ensure_future(coordinator.submit_many(range(500)))
        await sink.wait_until_called(40)  # many more than max_attempts
        health = coordinator.health()
        assert health.dead_lettered == 0
        assert health.circuit_state != "closed"
        assert "57P03" in health.last_error
        down = False
        await submitting
        await coordinator.flush()
        assert coordinator.health().circuit_state == "closed"
    assert sorted(sink.items) == list(range(500))


async def test_a_crashed_worker_is_back_at_once_with_its_batch(
    make: Make, sink: ControlledSink
) -> None:
    crashed_at = 0.0

    def crash(batch: list[Any]) -> None:
        nonlocal crashed_at
        if not crashed_at:
            crashed_at = time.monotonic()
            raise Panic

    sink.fail = crash
    async with make(workers=1) as coordinator:
        await coordinator.submit("x")
        await coordinator.flush()
        assert time.monotonic() - crashed_at < 0.5
        assert coordinator.health().restarts == 1
        assert coordinator.health().workers_alive == 1
    assert sink.items == ["x"]


async def test_a_row_that_crashes_every_worker_is_set_aside(
    make: Make, sink: ControlledSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market_data_store.coordinator.worker._RESTART_AGAIN_S", 0.001)

    def crash(batch: list[int]) -> None:
        if 2 in batch:
            raise Panic

    sink.fail = crash
    async with make(workers=1, batch_size=4) as coordinator:
        await coordinator.submit_many(range(4))
        await coordinator.flush()
        assert await coordinator.dlq.counts() == {"exhausted": 1}
    assert sink.items == [0, 1, 3]


async def test_a_cancellation_from_inside_the_sink_kills_no_worker(
    make: Make, sink: ControlledSink
) -> None:
    def fail_once(batch: list[Any]) -> None:
        if sink.entered == 1:
            raise asyncio.CancelledError

    sink.fail = fail_once
    async with make(workers=1) as coordinator:
        await coordinator.submit("x")
        await coordinator.flush()
        assert coordinator.health().restarts == 0
    assert sink.items == ["x"]


async def test_leaving_drains_queue_and_flight(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    coordinator = make(batch_size=3, workers=2)
    async with coordinator:
        await coordinator.submit_many(range(20))
        await sink.wait_until_called(2)
        asyncio.get_running_loop().call_later(0.01, sink.open.set)
    assert sorted(sink.items) == list(range(20))
    assert coordinator.health().workers_alive == 0
    await coordinator.close()


async def test_what_cannot_be_drained_in_time_is_set_aside(
    make: Make, sink: ControlledSink
) -> None:
    sink.open.clear()
    began = time.monotonic()
    async with make(batch_size=3, workers=2, drain_timeout=0.05) as coordinator:
        await coordinator.submit_many(range(20))
        await sink.wait_until_called(2)
    assert time.monotonic() - began < 3
    records = await coordinator.dlq.records()
    assert sorted(item for record in records for item in record.items) == list(range(20))
    assert [record.reason for record in records] == ["shutdown"]
    assert coordinator.health().dead_lettered == 20


async def test_draining_serves_those_who_are_blocked(make: Make, sink: ControlledSink) -> None:
    sink.open.clear()
    coordinator = make(capacity=1, workers=1, batch_size=1)
    await coordinator.start()
    await coordinator.submit_many([0, 1])
    blocked = asyncio.ensure_future(coordinator.submit(2))
    await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(coordinator.close())
    await asyncio.sleep(0)
    sink.open.set()
    await closing
    await blocked
    assert sink.items == [0, 1, 2]


async def test_rows_outlive_a_full_disk(
    make: Make, sink: ControlledSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("market_data_store.coordinator.worker._SAVE_AGAIN_S", 0.001)
    dlq: DeadLetterQueue[str] = DeadLetterQueue(tmp_path / "full.ndjson")
    save, tries = dlq._files.append, 0

    def full(lines: list[bytes]) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(28, "No space left on device")
        save(lines)

    monkeypatch.setattr(dlq._files, "append", full)

    def refuse(batch: list[Any]) -> None:
        raise ValueError

    sink.fail = refuse
    async with make(dlq=dlq) as coordinator:
        await coordinator.submit("bad")
        await coordinator.flush()
        assert [record.items for record in await dlq.records()] == [["bad"]]
    assert tries == 4


async def test_what_can_be_kept_nowhere_is_in_the_error(
    make: Make, sink: ControlledSink, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    sink.open.clear()
    coordinator = make(dlq=tmp_path / "file" / "dead.ndjson", drain_timeout=0.01)
    await coordinator.start()
    await coordinator.submit("homeless")
    with pytest.raises(UnwrittenError, match="1 items could be neither") as caught:
        await coordinator.close()
    assert caught.value.items == ["homeless"]


async def test_a_plain_write_will_do(make: Make) -> None:
    class Plain:
        def __init__(self) -> None:
            self.items: list[int] = []

        def write(self, batch: list[int]) -> None:
            self.items += batch

    plain = Plain()
    async with make(plain, circuit_breaker=CircuitBreaker()) as coordinator:
        await coordinator.submit(1)
    assert plain.items == [1]
