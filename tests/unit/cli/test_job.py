from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from market_data_core.clock import ManualClock, SystemClock
from market_data_core.errors import UsageError
from market_data_core.tables import JOB_RUNS
from market_data_store.jobs import JobRunTracker
from market_data_store.opening import open_ready_store

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

NS = 10**9
COLUMNS = [column.name for column in JOB_RUNS.columns]


def add(home: Home, *ages_s: float, **changed: Any) -> list[str]:
    """Runs of a process of another machine, by the age of their last heartbeat."""
    home.path.mkdir(exist_ok=True)

    async def write() -> list[str]:
        store = await open_ready_store(f"sqlite:///{home.path / 'store.db'}")
        rows = []
        for age_s in ages_s:
            clock = ManualClock(SystemClock().now_ns() - int(age_s * NS))
            row = JobRunTracker(store, clock).run(
                "run", provider="feed", mode="live", symbols=["SPY"], metadata={"a": "b,\n"}
            )
            metadata = {**row.row.metadata, "world": "other"}
            rows.append(replace(row.row, metadata=metadata, **changed))
        await store.upsert(JOB_RUNS, rows)
        await store.close()
        return [row.id for row in rows]

    return asyncio.run(write())


def test_list(home: Home) -> None:
    ids = add(home, 1, 2, 3)
    other = add(home, 4, job_name="produce", status="failure", error_message="no", elapsed_ms=7)
    found = json.loads(home.ok("job", "list", "--format", "json"))
    assert [run["id"] for run in found] == ids + other
    assert [list(run) for run in found] == [COLUMNS] * 4
    assert (found[0]["symbols"], found[0]["metadata"]["a"]) == (["SPY"], "b,\n")
    assert found[0]["started_at"].endswith("Z")
    lines = list(csv.DictReader(io.StringIO(home.ok("job", "list", "--format", "csv"))))
    assert [list(line) for line in lines] == [COLUMNS] * 4
    assert json.loads(lines[0]["metadata"]) == found[0]["metadata"]
    assert lines[3]["elapsed_ms"] == "7"
    assert lines[0]["completed_at"] == ""

    def listed(*options: str) -> list[str]:
        return [run["id"] for run in json.loads(home.ok("job", "list", "--format=json", *options))]

    assert listed("--limit", "2") == ids[:2]
    assert listed("--status", "failure") == listed("--job", "produce") == other
    assert listed("--status", "success") == []
    assert all(run in home.ok("job", "list") for run in ids)
    assert home.ok("job", "list", "--status", "success") == "no such runs\n"


def test_inspect(home: Home) -> None:
    (run,) = add(home, 1, error_message="the reason")
    found = json.loads(home.ok("job", "inspect", run[:6], "--format", "json"))
    assert (found["id"], list(found)) == (run, COLUMNS)
    text = home.ok("job", "inspect", run)
    assert "the reason" in text
    assert '"host":' in text
    assert isinstance(home.error("job", "inspect", "x"), UsageError)


def test_stuck(home: Home) -> None:
    add(home, 59)
    assert home.ok("job", "stuck") == "no run is stuck\n"
    (run,) = add(home, 3_600)
    (row,) = json.loads(home.ok("job", "stuck", "--format", "json"))
    assert row["id"] == run
    assert 3_600 <= row["silent_s"] < 3_700
    text = home.ok("job", "stuck")
    assert run in text
    assert "next start" in text
    assert len(json.loads(home.ok("job", "stuck", "--older", "30s", "--format", "json"))) == 2
    assert "--older" in str(home.error("job", "stuck", "--older", "soon"))
    assert len(json.loads(home.ok("job", "list", "--status=running", "--format=json"))) == 2


def test_summary(home: Home) -> None:
    add(home, 1, 2, status="success", elapsed_ms=10, rows_written=4)
    add(home, 90_000)
    (row,) = json.loads(home.ok("job", "summary", "--format", "json"))
    stored = home.store("SELECT * FROM job_runs_summary")
    assert list(row.values())[:-1] == list(stored[0][:-1])
    names = [column[1] for column in home.store("PRAGMA table_info(job_runs_summary)")]
    assert list(row) == names
    assert "last_started_at" in home.ok("job", "summary")
    assert json.loads(home.ok("job", "summary", "--hours=30", "--format=json"))[0]["runs"] == 3
    assert home.ok("job", "summary", "--hours", "0.0001").startswith("no run began")
    assert "--hours" in str(home.error("job", "summary", "--hours", "0"))


@pytest.mark.parametrize("command", [("list",), ("stuck",), ("summary",), ("inspect", "a")])
def test_reading_makes_no_store(home: Home, command: tuple[str, ...]) -> None:
    result = home.run("job", *command, "--format", "json")
    assert result.exit_code == 1
    assert result.stdout == ("" if command[0] == "inspect" else "[]\n")
    assert not home.path.exists()


def test_nothing_ran_yet(home: Home) -> None:
    add(home)
    assert home.ok("job", "list") == "no runs yet\n"
    assert home.ok("job", "list", "--format", "json") == "[]\n"
    header = ",".join(COLUMNS)
    assert home.ok("job", "list", "--format", "csv") == f"{header}\n"
