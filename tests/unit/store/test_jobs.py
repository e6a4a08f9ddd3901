"""The audit of runs, on every store."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from market_data_core import registry
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Store
from market_data_core.errors import MdpError, UsageError
from market_data_core.tables import JOB_RUNS
from market_data_store import _job_rows
from market_data_store.jobs import JobRun, JobRunTracker, TrackedRun

NS = 10**9
HOUR = 3_600 * NS
NOW = 1_761_314_400 * NS  # 2025-10-24T14:00:00Z
SOON_S = 5.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(params=registry.backends("store"))
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Store]:
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "postgres":
        uri = request.getfixturevalue("postgres").new_schema()
    opened: Store = registry.backend("store", request.param).create(uri, clock)
    await opened.migrate()
    yield opened
    await opened.close()


@pytest.fixture
def tracker(store: Store, clock: ManualClock) -> JobRunTracker:
    return JobRunTracker(store, clock, heartbeat_s=0.01)


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await holds():
            await asyncio.sleep(0.005)


async def only(tracker: JobRunTracker) -> JobRun:
    (run,) = await tracker.list()
    return run


async def stored(
    tracker: JobRunTracker, clock: ManualClock, *, ago_s: float = 0, **changed: Any
) -> JobRun:
    """A row of a process that cannot be looked for from here, as it was some seconds ago."""
    now_ns = clock.time_ns
    clock.time_ns = now_ns - int(ago_s * NS)
    run = tracker.run("run", provider="p", mode="live").row
    clock.time_ns = now_ns
    heartbeat = {"heartbeat": _job_rows.iso(run.started_at), "heartbeat_s": 5.0, "world": "other"}
    metadata = {**run.metadata, **heartbeat, **changed.pop("metadata", {})}
    run = replace(run, metadata=metadata, **changed)
    await (await tracker._ready()).upsert(JOB_RUNS, [run])
    return run


def counted(**labels: str) -> float:
    return REGISTRY.get_sample_value("store_job_runs_total", labels) or 0.0


# ---- a run -------------------------------------------------------------------------------------


async def test_a_run_is_recorded_from_its_start_to_its_end(
    tracker: JobRunTracker, clock: ManualClock
) -> None:
    labels = {"job_name": "load", "provider": "p", "mode": "backfill", "status": "success"}
    before = counted(**labels)
    run = tracker.run(
        "load",
        provider="p",
        mode="backfill",
        dataset_name="spy",
        symbols=["SPY", "Ü"],
        config_fingerprint="f0",
        metadata={"n": {"x": [1, 2.5, None]}},
    )
    async with run:
        await until(tracker.list)
        begun = await only(tracker)
        assert (begun.status, begun.completed_at, begun.elapsed_ms) == ("running", None, None)
        assert (begun.id, begun.started_at.timestamp() * NS) == (run.id, NOW)
        clock.advance(3 * NS)
        run.progress(rows_written=7, rows_failed=1, min_ts="2025-10-24", max_ts=NOW)
        run.progress(rows_written=9, min_ts="2025-10-25", max_ts="2025-10-23", metadata={"m": 1})

        async def told() -> bool:
            return (await only(tracker)).rows_written == 9

        await until(told)
        assert (await only(tracker)).status == "running"
    ended = await only(tracker)
    assert ended.metadata | {"world": "", "born": 0} == {
        "n": {"x": [1, 2.5, None]}, "m": 1, "heartbeat": "2025-10-24T14:00:03.000Z",
        "heartbeat_s": 0.01, "host": os.uname().nodename, "pid": os.getpid(),
        "member": f"{os.uname().nodename}-{os.getpid()}", "world": "", "born": 0,
    }  # fmt: skip
    assert ended.elapsed_ms is not None
    assert ended == JobRun(
        id=run.id, job_name="load", dataset_name="spy", provider="p", mode="backfill",
        status="success", config_fingerprint="f0", pipeline_version="0.1.0", rows_written=9,
        rows_failed=1, symbols=["SPY", "Ü"], min_ts=datetime(2025, 10, 24, tzinfo=UTC),
        max_ts=datetime(2025, 10, 24, 14, tzinfo=UTC), error_message="", metadata=ended.metadata,
        started_at=begun.started_at, completed_at=datetime(2025, 10, 24, 14, 0, 3, tzinfo=UTC),
        elapsed_ms=ended.elapsed_ms,
    )  # fmt: skip
    assert counted(**labels) == before + 1


async def test_what_is_raised_is_the_reason_of_the_failure(tracker: JobRunTracker) -> None:
    secret = "postgresql://me:hunter2@db/x is \0 down \ud800" + "." * 3_000
    with pytest.raises(MdpError):
        async with tracker.run("run", provider="p", mode="live"):
            raise MdpError(secret)
    (run,) = await tracker.list(status="failure")
    assert run.error_message.startswith("postgresql://me:***@db/x is \ufffd down ")
    assert len(run.error_message) == 2_000
    with pytest.raises(ZeroDivisionError):
        async with tracker.run("other", provider="p", mode="live"):
            _ = 1 / 0
    (run,) = await tracker.list(job_name="other")
    assert (run.status, run.error_message) == ("failure", "ZeroDivisionError: division by zero")


async def test_a_run_can_fail_or_be_cancelled_without_an_error(tracker: JobRunTracker) -> None:
    async with tracker.run("a", provider="p", mode="live") as run:
        run.fail("it does not add up")
    async with tracker.run("b", provider="p", mode="live") as run:
        run.cancel()
    found = {run.job_name: (run.status, run.error_message) for run in await tracker.list()}
    assert found == {"a": ("failure", "it does not add up"), "b": ("cancelled", "")}


async def test_a_cancelled_task_is_a_cancelled_run(tracker: JobRunTracker) -> None:
    async def work() -> None:
        async with tracker.run("run", provider="p", mode="live"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await until(tracker.list)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await only(tracker)).status == "cancelled"


async def test_a_run_may_be_started_and_finished_by_hand(tracker: JobRunTracker) -> None:
    run = await tracker.start("run", provider="p", mode="live")
    await run.finish("failure", "why not")
    await run.finish("success")  # it has ended
    assert [(r.status, r.error_message) for r in await tracker.list()] == [("failure", "why not")]
    with pytest.raises(UsageError, match="has begun before"):
        await run.__aenter__()


async def test_the_clock_may_be_set_back(tracker: JobRunTracker, clock: ManualClock) -> None:
    async with tracker.run("run", provider="p", mode="live"):
        clock.advance(-HOUR)
    run = await only(tracker)
    assert (run.status, run.completed_at) == ("success", run.started_at)


async def test_progress_is_asked_for_before_each_writing(tracker: JobRunTracker) -> None:
    asked = 0

    def observe(run: TrackedRun) -> None:
        nonlocal asked
        asked += 1
        if asked > 3:
            msg = "no more"
            raise RuntimeError(msg)
        run.progress(rows_written=asked)

    async with tracker.run("run", provider="p", mode="live", observe=observe):

        async def told() -> bool:
            return asked > 3

        await until(told)
    run = await only(tracker)
    assert (run.status, run.rows_written, asked) == ("success", 3, 4)


# ---- runs that were lost -----------------------------------------------------------------------


async def test_a_run_without_heartbeat_is_stuck_and_marked_by_the_next_start(
    tracker: JobRunTracker, clock: ManualClock
) -> None:
    lost = await stored(tracker, clock, ago_s=61)
    alive = await stored(tracker, clock, ago_s=59)
    slow = await stored(tracker, clock, ago_s=61, metadata={"heartbeat_s": 30})
    assert [run.id for run in await tracker.stuck()] == [lost.id]
    assert {run.id for run in await tracker.stuck(21)} == {lost.id, alive.id}
    assert {run.id for run in await tracker.stuck(1)} == {lost.id, alive.id}  # four heartbeats
    labels = {"job_name": "run", "provider": "p", "mode": "live", "status": "failure"}
    before = counted(**labels)
    async with tracker.run("run", provider="p", mode="live"):

        async def marked() -> bool:
            return (await tracker.get(lost.id)).status == "failure"

        await until(marked)
    found = await tracker.get(lost.id)
    assert found.error_message == "no heartbeat since 2025-10-24T13:58:59.000Z"
    assert (found.completed_at, found.elapsed_ms) == (lost.started_at, 0)
    assert {run.id for run in await tracker.list(status="running")} == {alive.id, slow.id}
    assert counted(**labels) == before + 1
    assert await tracker.mark_lost() == []


async def test_a_run_that_ends_while_it_is_marked_keeps_its_outcome(
    tracker: JobRunTracker, clock: ManualClock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = await stored(tracker, clock, ago_s=100)
    replaced = store.replace

    async def late(*given: Any) -> bool:
        done = replace(lost, status="success", completed_at=lost.started_at, elapsed_ms=1)
        await store.upsert(JOB_RUNS, [done])
        return await replaced(*given)

    monkeypatch.setattr(store, "replace", late)
    assert await tracker.mark_lost() == []
    assert (await only(tracker)).status == "success"


async def test_a_run_that_was_only_asleep_is_running_again(
    tracker: JobRunTracker, clock: ManualClock, store: Store
) -> None:
    async with tracker.run("run", provider="p", mode="live") as run:
        await until(tracker.list)
        await store.upsert(JOB_RUNS, [replace(run.row, status="failure", error_message="lost")])

        async def again() -> bool:
            return (await only(tracker)).status == "running"

        await until(again)
    assert ((await only(tracker)).status, (await only(tracker)).error_message) == ("success", "")


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes are not in /proc")
async def test_a_process_that_is_gone_is_lost_at_once(
    tracker: JobRunTracker, clock: ManualClock
) -> None:
    child = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220  (returns at once)
    try:
        here = _job_rows.this_process().stamp()
        state = _job_rows._state_and_birth(child.pid)
        assert state is not None
        known = {**here, "pid": child.pid, "born": state[1]}
        runs = {
            "alive": await stored(tracker, clock, metadata=known),
            "again": await stored(tracker, clock, metadata={**known, "born": state[1] - 1}),
            "elsewhere": await stored(tracker, clock, metadata={**known, "world": "other"}),
        }
        assert [run.id for run in await tracker.mark_lost()] == [runs["again"].id]
        child.send_signal(signal.SIGKILL)

        async def dead() -> bool:  # and not yet taken away
            return (_job_rows._state_and_birth(child.pid) or "?")[0] == "Z"

        await until(dead)
        (marked,) = await tracker.mark_lost()
    finally:
        child.kill()
        child.wait()
    assert marked.id == runs["alive"].id
    assert f"process {child.pid} on {here['host']} has ended" in marked.error_message
    late = await stored(tracker, clock, metadata=known)
    assert [run.id for run in await tracker.mark_lost()] == [late.id]
    assert (await tracker.get(runs["elsewhere"].id)).status == "running"


# ---- reading -----------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first(tracker: JobRunTracker, clock: ManualClock) -> None:
    ages = (3, 5_000, 1, 40 * 86_400, 500 * 86_400)
    by_age = {ago: (await stored(tracker, clock, ago_s=ago)).id for ago in ages}
    await stored(tracker, clock, ago_s=2, job_name="other", status="success", elapsed_ms=5)
    ids = [by_age[ago] for ago in sorted(ages)]
    assert [run.id for run in await tracker.list(job_name="run")] == ids
    for limit in range(1, 7):
        found = await tracker.list(job_name="run", limit=limit)
        assert [run.id for run in found] == ids[:limit]
    assert len(await tracker.list(status="success")) == 1
    with pytest.raises(UsageError, match="limit is 0"):
        await tracker.list(limit=0)
    with pytest.raises(UsageError, match="'done'"):
        await tracker.list(status="done")  # type: ignore[arg-type]


async def test_a_run_is_found_by_the_beginning_of_its_id(
    tracker: JobRunTracker, clock: ManualClock
) -> None:
    for name in ("aa1", "aa2", "b", "bb"):
        await stored(tracker, clock, id=name)
    assert (await tracker.get("aa2")).id == "aa2"
    assert (await tracker.get("bb")).id == "bb"
    assert (await tracker.get("b")).id == "b"  # exactly
    with pytest.raises(UsageError, match=r"2 runs .* aa1, aa2"):
        await tracker.get("a")
    for wrong in ("c", "", "%", "_a1"):
        with pytest.raises(UsageError, match="mdp job list"):
            await tracker.get(wrong)


async def test_summary(tracker: JobRunTracker, clock: ManualClock) -> None:
    assert await tracker.summary() == []
    await stored(tracker, clock, ago_s=10, status="success", elapsed_ms=100, rows_written=5)
    await stored(tracker, clock, ago_s=5, status="failure", elapsed_ms=200, rows_failed=2)
    await stored(tracker, clock, ago_s=7)
    await stored(tracker, clock, ago_s=86_401)
    await stored(tracker, clock, mode="backfill", status="cancelled", elapsed_ms=1)
    backfill, live = await tracker.summary()
    assert (backfill.mode, backfill.runs, backfill.cancelled) == ("backfill", 1, 1)
    assert (live.runs, live.running, live.success, live.failure) == (3, 1, 1, 1)
    assert (live.rows_written, live.rows_failed, live.elapsed_ms_avg) == (5, 2, 150.0)
    assert live.last_started_at == datetime(2025, 10, 24, 13, 59, 55, tzinfo=UTC)
    assert [line.runs for line in await tracker.summary(48)] == [1, 4]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="hours"):
            await tracker.summary(wrong)


async def test_old_runs_are_deleted(tracker: JobRunTracker, clock: ManualClock) -> None:
    for ago_s in (10, 86_400, 2 * 86_400):
        await stored(tracker, clock, ago_s=ago_s, status="success", elapsed_ms=0)
    assert await tracker.cleanup("2025-10-24") == 2
    assert len(await tracker.list()) == 1
    with pytest.raises(UsageError, match="before"):
        await tracker.cleanup("yesterday")


async def test_a_run_that_lives_comes_back_after_a_cleanup(
    tracker: JobRunTracker, clock: ManualClock
) -> None:
    async with tracker.run("run", provider="p", mode="live"):
        await until(tracker.list)
        clock.advance(100 * HOUR)
        await until(lambda: tracker.cleanup(clock.time_ns))  # which a heartbeat may forestall
        await until(tracker.list)
    assert (await only(tracker)).status == "success"
