"""What the audit does not take, and a store that does not take the audit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import TransientError, UsageError
from market_data_core.tables import JOB_RUNS, Table
from market_data_store.jobs import JobRun, JobRunTracker

SOON_S = 5.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mode": "batch"}, "'batch'"),
        ({"job_name": ""}, "job_name"),
        ({"symbols": "SPY"}, "'SPY'"),
        ({"metadata": {"x": object()}}, "JSON"),
        ({"metadata": {"x": "a\0"}}, "NUL"),
    ],
)
async def test_wrong_arguments_are_told(given: dict[str, Any], told: str) -> None:
    tracker = JobRunTracker("sqlite:///nowhere/x.db")
    good: dict[str, Any] = {"job_name": "run", "provider": "p", "mode": "live"}
    with pytest.raises(UsageError, match=told):
        tracker.run(**good | given)


async def test_wrong_progress_is_told() -> None:
    run = JobRunTracker("sqlite:///nowhere/x.db").run("run", provider="p", mode="live")
    for wrong in ({"rows_written": -1}, {"rows_failed": 1.5}, {"min_ts": "soon"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            run.progress(**wrong)


# ---- a store that cannot be used ---------------------------------------------------------------


class Broken:
    """A store that refuses to write for a while."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error
        self.tries = 0
        self.rows: list[JobRun] = []

    async def upsert(self, table: Table, rows: Sequence[Any]) -> WriteCounts:
        assert table is JOB_RUNS
        self.tries += 1
        if self.error:
            raise self.error
        self.rows += rows
        return WriteCounts()


async def test_a_store_that_is_down_only_makes_the_record_late() -> None:
    store = Broken(TransientError("down"))
    tracker: Any = JobRunTracker(store, heartbeat_s=0.01)  # type: ignore[arg-type]
    errors = "store_job_audit_errors_total"
    before = REGISTRY.get_sample_value(errors, {"error_type": "TransientError"}) or 0
    async with tracker.run("run", provider="p", mode="live") as run:
        async with asyncio.timeout(SOON_S):
            while store.tries < 3:
                await asyncio.sleep(0.005)
        ending = asyncio.create_task(run.finish())
        await asyncio.sleep(0)
        store.error = None
        await ending
    assert [row.status for row in store.rows] == ["success"]
    counted = REGISTRY.get_sample_value(errors, {"error_type": "TransientError"}) or 0
    assert counted - before == store.tries - 1


@pytest.mark.parametrize("error", [TransientError("down"), RuntimeError("broken")])
async def test_a_store_that_stays_down_does_not_hold_the_end_up(error: Exception) -> None:
    store = Broken(error)
    tracker = JobRunTracker(store, heartbeat_s=0.01, finish_s=0.1)  # type: ignore[arg-type]
    async with asyncio.timeout(SOON_S):
        async with tracker.run("run", provider="p", mode="live"):
            pass
    assert store.tries > 0
    assert store.rows == []
