"""``mdp dlq replay --file`` into real stores, whenever it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from market_data_pipeline.cli import app
from market_data_store.coordinator import DeadLetterQueue
from mds_client.models import Bar, NewsItem, SignalRow

if TYPE_CHECKING:
    from tests.servers.postgres import Server

START = datetime(2025, 10, 24, 14, tzinfo=UTC)


def _bar(number: int, close: float = 1.5) -> Bar:
    ts = START + timedelta(minutes=number)
    return Bar(symbol="SPY", open=1, high=2, low=1, close=close, volume=3, ts=ts, provider="p")


def _signal(name: str) -> SignalRow:
    return SignalRow(symbol="SPY", name=name, value=1, ts=START, provider="p")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dead.ndjson"


def _save(file: Path, *items: list[Any], reason: str = "permanent") -> None:
    async def save() -> None:
        await DeadLetterQueue[Any](file).save_all(
            [(each, ValueError("no")) for each in items], {"reason": reason}
        )

    asyncio.run(save())


def _left(file: Path) -> list[Any]:
    """What the next process would be given, records as (reason, items)."""
    return [(line.reason, json.loads(bytes(line.items))) for line in _lines(file)]


def _lines(file: Path) -> list[Any]:
    return asyncio.run(DeadLetterQueue[Any](file).lines())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """An embedded store, by a function that asks it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))

    def query(sql: str) -> list[Any]:
        with closing(sqlite3.connect(tmp_path / "home" / "store.db")) as db:
            found = db.execute(sql).fetchall()
            db.commit()
            return found

    return query


def _replay(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["dlq", "replay", "--file", str(file), *arguments])


def test_what_is_stored_is_removed(store: Callable[[str], list[Any]], file: Path) -> None:
    _save(file, [_bar(1), _bar(2)], [_signal("a")], [_bar(1, 1.75)])
    _save(file, [NewsItem(id="1", symbol="SPY", title="x")], reason="shutdown")
    dry = _replay(file, "--dry-run")
    assert dry.exit_code == 0
    assert "2 records (3 items) would be written: bars_ohlcv" in dry.output
    assert len(_left(file)) == 4
    one = _replay(file, "--reason", "permanent", "--limit", "1")
    assert one.exit_code == 0, one.output
    assert "bars_ohlcv: 2 inserted, 0 updated, 0 unchanged" in one.output
    assert len(_left(file)) == 3
    rest = _replay(file)
    assert rest.exit_code == 0, rest.output
    assert "3 records stored and removed" in rest.output
    # of one key the later record counts
    assert store("SELECT close FROM bars_ohlcv ORDER BY ts") == [(1.75,), (1.5,)]
    assert store("SELECT name FROM signals") == [("a",)]
    assert store("SELECT id FROM news") == [("1",)]
    assert _left(file) == []
    assert not file.exists()
    again = _replay(file)
    assert (again.exit_code, again.output) == (0, "no dead letters\n")


def test_what_fails_again_stays_with_its_new_error(
    store: Callable[[str], list[Any]], file: Path
) -> None:
    assert CliRunner().invoke(app, ["store", "migrate"]).exit_code == 0
    store(
        "CREATE TRIGGER refused BEFORE INSERT ON signals WHEN NEW.name = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    _save(file, [_signal("a"), _signal("bad"), _signal("b")], [_signal("c")])
    before = _lines(file)[0]
    result = _replay(file)
    assert result.exit_code == 1
    assert "1 records stored and removed" in result.output
    assert "not this one" in result.output
    assert store("SELECT name FROM signals ORDER BY name") == [("a",), ("b",), ("c",)]
    (after,) = _lines(file)
    assert (after.id, after.ts, after.count) == (before.id, before.ts, 1)
    assert "not this one" in after.error
    assert after.metadata["replays"] == 1
    assert json.loads(bytes(after.items))[0]["name"] == "bad"
    store("DROP TRIGGER refused")
    assert _replay(file, "--id", after.id).exit_code == 0
    assert store("SELECT count(*) FROM signals") == [(4,)]
    assert _left(file) == []


def test_what_has_no_table_stays_and_is_told(store: Callable[[str], list[Any]], file: Path) -> None:
    _save(file, ["text"], [object()], [_signal("a")])
    result = _replay(file)
    assert result.exit_code == 1
    assert "no table for items of type builtins.str" in result.output
    assert "were kept for reading only" in result.output
    assert store("SELECT count(*) FROM signals") == [(1,)]
    assert len(_left(file)) == 2


AWAY = """
from market_data_core.errors import TransientError
from market_data_pipeline.cli import main
from market_data_store.backends import sqlite

def away(*arguments):
    print("tried", flush=True)
    raise TransientError("the store is away")

sqlite.upsert_rows = away
main()
"""


def test_ctrl_c_while_the_store_is_away_leaves_everything_as_it_was(
    store: Callable[[str], list[Any]], file: Path
) -> None:
    assert CliRunner().invoke(app, ["store", "migrate"]).exit_code == 0
    _save(file, [_signal("a")], [_signal("b")])
    before = sorted(line.id for line in _lines(file))
    command = [sys.executable, "-c", AWAY, "dlq", "replay", "--file", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "tried\n"
        it.send_signal(signal.SIGINT)
        output, errors = it.communicate(timeout=30)
    assert it.returncode == 0, output + errors
    assert "Traceback" not in errors
    assert "0 records stored" in output
    assert sorted(line.id for line in _lines(file)) == before
    assert [reason for reason, _ in _left(file)] == ["permanent", "permanent"]


PROGRAM = """
import os, signal, sys
from market_data_pipeline.cli import _dlq_replay, main
from market_data_store.coordinator import DeadLetterQueue

_dlq_replay._RECORDS_AT_ONCE = 3
place, when, left = sys.argv.pop(1).split(":")
left = int(left)

def doomed(call):
    def counted(*arguments):
        global left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = call(*arguments)
        if left == 0 and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return counted

if place == "fsync":
    os.fsync = doomed(os.fsync)
else:
    from market_data_store.backends import sqlite
    sqlite.upsert_rows = doomed(sqlite.upsert_rows)
main()
"""


@pytest.mark.parametrize(
    "doom",
    [
        "fsync:before:2",
        "fsync:after:4",
        "fsync:before:7",
        "upsert:after:2",
    ],
)
def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_twice(
    store: Callable[[str], list[Any]], file: Path, doom: str
) -> None:
    """Seven records, taken three at a time; the second one is always refused."""
    assert CliRunner().invoke(app, ["store", "migrate"]).exit_code == 0
    store(
        "CREATE TRIGGER refused BEFORE INSERT ON signals WHEN NEW.name = 's1' "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    _save(file, *([_signal(f"s{n}")] for n in range(7)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, doom, "dlq", "replay", "--file", str(file)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == -9, done.stdout + done.stderr
    stored = {name for (name,) in store("SELECT name FROM signals")}
    left = [items[0]["name"] for _, items in _left(file)]
    assert len(left) == len(set(left))
    assert stored | set(left) == {f"s{n}" for n in range(7)}
    assert _replay(file).exit_code == 1
    assert [items[0]["name"] for _, items in _left(file)] == ["s1"]
    rows = store("SELECT name FROM signals ORDER BY name")
    assert rows == [(f"s{n}",) for n in (0, 2, 3, 4, 5, 6)]
    assert list(file.parent.glob("*.inflight-*")) == []


def test_into_postgresql(
    postgres: Server, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = postgres.new_schema()
    monkeypatch.setenv("MDP_STORE_URI", uri)
    _save(file, [_bar(1), _bar(2)], [_signal("a")], [_signal("bad\x01")])
    assert CliRunner().invoke(app, ["store", "migrate"]).exit_code == 0
    assert CliRunner().invoke(app, ["store", "migrate", "--to", "1", "--yes"]).exit_code == 0
    behind = _replay(file)
    assert "mdp store migrate" in str(behind.exception)
    assert len(_left(file)) == 3
    assert CliRunner().invoke(app, ["store", "migrate"]).exit_code == 0
    postgres.query("ALTER TABLE signals ADD CHECK (name <> 'bad\x01')", uri)
    result = _replay(file)
    assert result.exit_code == 1, result.output
    assert "bars_ohlcv: 2 inserted" in result.output
    assert [name for (name,) in postgres.query("SELECT name FROM signals", uri)] == ["a"]
    assert postgres.query("SELECT count(*) FROM bars_ohlcv", uri) == [(2,)]
    ((reason, (item,)),) = _left(file)
    assert (reason, item["name"]) == ("permanent", "bad\x01")
