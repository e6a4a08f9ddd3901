"""``mdp dlq list|show|purge --file``."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.errors import MdpError, UsageError
from market_data_pipeline.cli import _output
from market_data_store.coordinator import DeadLetterQueue
from mds_client.models import Bar

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home


def _bar(symbol: str) -> Bar:
    return Bar(symbol=symbol, open=1, high=2, low=1, close=1.5, volume=3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dead.ndjson"

    async def fill() -> None:
        dlq: DeadLetterQueue[Any] = DeadLetterQueue(path)
        await dlq.save([_bar("A")], ValueError("not this one"), {"reason": "permanent"})
        await dlq.save([_bar("B"), _bar("C")], "shutdown", {"reason": "shutdown"})
        await dlq.save(["text"], OSError("down"), {"reason": "permanent"})

    asyncio.run(fill())
    return path


def _rows(home: Home, file: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.ok("dlq", "list", "--file", str(file), "--format", "json", *arguments)
    )
    return found


def test_reasons_are_counted_and_records_listed(home: Home, file: Path) -> None:
    output = home.ok("dlq", "list", "--file", str(file))
    assert [line.split() for line in output.splitlines()[3:5]] == [
        ["permanent", "2", "2"],
        ["shutdown", "1", "2"],
    ]
    assert "not this one" in output
    assert "The last 1 of 3 records" in home.ok("dlq", "list", "--file", str(file), "--limit", "1")
    file.write_bytes(file.read_bytes()[:-20])
    assert "1 damaged lines" in home.ok("dlq", "list", "--file", str(file))
    assert not home.path.exists()


def test_records_are_selected(home: Home, file: Path) -> None:
    first, second, third = _rows(home, file)
    assert list(first) == ["id", "ts", "reason", "type", "items", "error_type", "error"]
    assert (second["items"], second["type"]) == (2, "mds_client.models.Bar")
    assert _rows(home, file, "--reason", "shutdown") == [second]
    assert _rows(home, file, "--type", "Bar") == [first, second]
    assert _rows(home, file, "--since", second["ts"]) == [second, third]
    assert _rows(home, file, "--until", second["ts"]) == [first]
    assert _rows(home, file, "--limit", "1") == [third]
    table = home.ok("dlq", "list", "--file", str(file), "--format", "csv")
    assert [row["id"] for row in csv.DictReader(io.StringIO(table))] == [
        row["id"] for row in (first, second, third)
    ]
    assert "permanent (2), shutdown (1)" in home.ok(
        "dlq", "list", "--file", str(file), "--reason", "late"
    )


def test_one_record_with_its_items(home: Home, file: Path) -> None:
    second = _rows(home, file)[1]
    shown = home.ok("dlq", "show", second["id"], "--file", str(file))
    assert '"symbol":"B"' in shown
    assert second["ts"] in shown
    raw = json.loads(home.ok("dlq", "show", second["id"], "--file", str(file), "--raw"))
    assert [item["symbol"] for item in raw] == ["B", "C"]
    assert "no record 'x'" in str(home.error("dlq", "show", "x", "--file", str(file)))


def test_purging_asks_for_a_selection_and_a_yes(home: Home, file: Path) -> None:
    purge = ("dlq", "purge", "--file", str(file))
    for wrong in ((), ("--all", "--reason", "permanent"), ("--all",)):
        assert isinstance(home.error(*purge, *wrong), UsageError)
    assert "permanent: 2 would be removed" in home.ok(*purge, "--all", "--dry-run")
    assert len(_rows(home, file)) == 3
    output = home.ok(*purge, "--reason", "permanent", "--type", "str", "--yes")
    assert output.splitlines() == ["permanent: 1 removed", "1 records removed"]
    assert [row["items"] for row in _rows(home, file)] == [1, 2]
    first = _rows(home, file)[0]
    assert "1 records removed" in home.ok(*purge, "--id", first["id"], "--yes")
    output = home.ok(*purge, "--all", "--yes")
    assert output.splitlines() == ["shutdown: 1 removed", "1 records removed"]


def test_what_comes_while_it_asks_stays(
    home: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has agreed to lose it."""

    def meanwhile(_question: str, _yes: bool) -> None:
        queue = DeadLetterQueue[Bar](file)
        with asyncio.Runner() as runner:
            runner.run(queue.save([_bar("LATE")], ValueError("late"), {}))

    def asked(question: str, yes: bool) -> None:
        thread = threading.Thread(target=meanwhile, args=(question, yes))
        thread.start()
        thread.join()

    monkeypatch.setattr(_output, "confirm", asked)
    home.run("dlq", "purge", "--file", str(file), "--all")
    assert [row["error"] for row in _rows(home, file)] == ["late"]


def test_what_another_process_has_in_hand_stays(home: Home, file: Path) -> None:
    queue: DeadLetterQueue[Any] = DeadLetterQueue(file)
    asyncio.run(queue.replay(1))
    assert "1 records are in the hands" in home.ok("dlq", "list", "--file", str(file))
    assert "2 records removed" in home.ok("dlq", "purge", "--file", str(file), "--all", "--yes")
    asyncio.run(queue.close())
    assert len(_rows(home, file)) == 1


def test_what_is_not_possible_is_said(home: Home, tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "dead.ndjson")
    for command in ("list", "show x", "replay", "purge --all --yes"):
        error = home.error("dlq", *command.split(), "--file", missing)
        assert isinstance(error, UsageError)
        assert missing in str(error)
    assert not (tmp_path / "no").exists()
    assert "is a folder" in str(home.error("dlq", "list", "--file", str(tmp_path)))
    error = home.error("dlq", "purge")
    assert isinstance(error, UsageError)
    assert "--file" in str(error)
    for option in (("--provider", "p"), ("--symbol", "SPY")):
        assert option[0] in str(home.error("dlq", "replay", "--file", missing, *option))
    assert "--type" in str(home.error("dlq", "list", "--type", "Bar"))


def test_a_file_that_cannot_be_read_is_told(home: Home, file: Path) -> None:
    file.unlink()
    file.mkdir()
    error = home.error("dlq", "list", "--file", str(file))
    assert isinstance(error, MdpError)
