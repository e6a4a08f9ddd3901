"""Every run leaves a row that says how it ended, whatever ended it."""

from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import asdict

from market_data_core.clock import SystemClock
from market_data_core.config import load_config
from market_data_core.contracts.store import WriteCounts
from market_data_pipeline.assembly import Progress, Summary
from market_data_pipeline.audit import Job, audited
from market_data_pipeline.backends import Backends, open_bus
from market_data_pipeline.windows.checkpoint import Counts
from market_data_store.jobs import JobMode, JobRunTracker
from market_data_store.opening import open_ready_store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Deployment

_MDP = "from market_data_pipeline.cli import main; main()"
_FILE = """ts,symbol,price,size
2025-10-24T14:00:00Z,SPY,1,1
2025-10-24T14:00:05Z,SPY,2,1
"""
ENOUGH_S = 30.0


def runs(deployment: Deployment) -> list[dict[str, Any]]:
    """Newest first."""
    store = f"sqlite:///{deployment.folder / '.mdp' / 'store.db'}"

    async def read() -> list[dict[str, Any]]:
        async with JobRunTracker(store) as tracker:
            return [asdict(run) for run in await tracker.list()]

    return asyncio.run(read())


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def started(deployment: Deployment, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has got as far as to say that it is running."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MDP, *arguments],
        cwd=deployment.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = deployment.folder / ".mdp" / "store.db"
    known = 0
    if store.exists():
        ((known,),) = deployment.query("SELECT count(*) FROM job_runs")
    begun = f"SELECT count(*) > {known} FROM job_runs WHERE status = 'running'"
    there = "SELECT 1 FROM sqlite_schema WHERE name = 'job_runs'"
    try:
        wait_for(
            lambda: store.exists() and deployment.query(there) and deployment.query(begun) == [(1,)]
        )
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def file(deployment: Deployment) -> str:
    (deployment.folder / "a.csv").write_text(_FILE)
    return "a.csv"


def test_a_recording(deployment: Deployment, file: str) -> None:
    deployment.ok("run", file, "--as", "feed", "--symbols", "SPY")
    (first,) = runs(deployment)
    wanted = {
        "job_name": "run", "dataset_name": "feed", "provider": "feed", "mode": "backfill",
        "status": "success", "rows_written": 2, "rows_failed": 0, "symbols": ["SPY"],
        "error_message": "", "pipeline_version": "0.1.0",
    }  # fmt: skip
    assert {name: first[name] for name in wanted} == wanted
    assert first["metadata"]["events"] == 2
    deployment.ok("run", file, "--window", "2s")
    other = runs(deployment)[0]
    assert (other["dataset_name"], other["provider"]) == ("a.csv", "recording")
    assert (other["status"], other["symbols"]) == ("success", [])
    deployment.ok("conservation")
    assert len(runs(deployment)) == 2


def test_a_recording_that_fails(deployment: Deployment) -> None:
    (deployment.folder / "a.csv.gz").write_bytes(gzip.compress(_FILE.encode() * 50_000)[:2_000])
    done = deployment.mdp("run", "a.csv.gz")
    assert done.returncode != 0
    (run,) = runs(deployment)
    assert run["status"] == "failure"
    assert run["error_message"]
    assert run["error_message"] in done.stderr


@pytest.mark.parametrize(
    ("command", "job", "provider"),
    [
        (("run", "--provider", "synthetic"), "run", "synthetic"),
        (("stream", "produce", "--provider", "synthetic"), "produce", "synthetic"),
        (("stream", "micro-batch"), "micro-batch", ""),
    ],
)
def test_a_feed_that_is_stopped_has_succeeded(
    deployment: Deployment, command: tuple[str, ...], job: str, provider: str
) -> None:
    with started(deployment, *command) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(ENOUGH_S) == 0
    (run,) = runs(deployment)
    found = tuple(run[name] for name in ("job_name", "provider", "mode", "status"))
    assert found == (job, provider, "live", "success")


def test_what_a_producer_appends_is_counted(deployment: Deployment) -> None:
    told = deployment.ok("stream", "produce", "--provider", "synthetic", "--for", "3s")
    (run,) = runs(deployment)
    assert told.startswith(f"{run['rows_written']:,} events written")
    assert run["rows_written"] > 0


def test_a_killed_run_is_marked_by_the_next_start(deployment: Deployment, file: str) -> None:
    with started(deployment, "run", "--provider", "synthetic") as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(ENOUGH_S) == -signal.SIGKILL
    (killed,) = runs(deployment)
    assert killed["status"] == "running"
    deployment.ok("run", file)
    after, before = runs(deployment)
    assert after["status"] == "success"
    assert (before["id"], before["status"]) == (killed["id"], "failure")
    assert before["error_message"].startswith("no heartbeat since 20")
    assert f"process {process.pid} on " in before["error_message"]
    assert before["completed_at"] is not None


def test_a_run_that_is_alive_is_left_alone(deployment: Deployment, file: str) -> None:
    with started(deployment, "run", "--provider", "synthetic") as process:
        deployment.ok("run", file)
        after, before = runs(deployment)
        assert (after["status"], before["status"]) == ("success", "running")
        process.send_signal(signal.SIGINT)
        assert process.wait(ENOUGH_S) == 0
    assert [run["status"] for run in runs(deployment)] == ["success", "success"]


@pytest.mark.parametrize(
    ("mode", "stopped", "stored", "status"),
    [
        ("backfill", False, 3, "success"),
        ("backfill", True, 3, "cancelled"),
        ("live", True, 3, "success"),
        ("live", True, 2, "failure"),
    ],
)
async def test_the_outcome_of_work_that_returns(
    mode: JobMode, stopped: bool, stored: int, status: str, tmp_path: Path
) -> None:
    store = await open_ready_store(f"sqlite:///{tmp_path / 'store.db'}")
    stop, progress = asyncio.Event(), Progress()
    summary = Summary("t", Counts(received=3, stored=stored), WriteCounts(), 3, 0.1)

    async def work() -> Summary:
        if stopped:
            stop.set()
        return summary

    settings = load_config()
    backends = Backends(open_bus(settings), store, SystemClock())
    try:
        job = Job("run", mode)
        assert await audited(work(), job, settings, backends, progress, stop) is summary
        (run,) = await JobRunTracker(store).list()
    finally:
        await backends.bus.close()
        await store.close()
    assert run.status == status
    assert bool(run.error_message) == (status == "failure")
