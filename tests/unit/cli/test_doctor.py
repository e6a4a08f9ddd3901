from __future__ import annotations

import socket
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from market_data_core.events import make_batch

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
CHECKS = {
    "python", "packages", "sqlite", "clock", "cpu", "memory", "configuration", "store folder",
    "store disk", "bus folder", "bus disk", "metrics port", "bus", "store", "inference",
}  # fmt: skip


def checks(output: str) -> dict[str, str]:
    found = [(line[6:20].strip(), line.split()[0]) for line in output.splitlines()]
    assert len(dict(found)) == len(found)  # each line is about something else
    return dict(found)


def failed(home: Home) -> str:
    result = home.run("doctor")
    assert result.exit_code == 1, result.output
    return "\n".join(line for line in result.stdout.splitlines() if line.startswith("fail"))


@pytest.fixture
def stored(home: Home) -> Home:
    ts = [START + i * 10**9 for i in range(100)]
    home.lane([make_batch("feed", ["SPY"] * 100, ts, range(100), [1.0] * 100, [1.0] * 100)])
    return home


def test_a_fresh_machine_is_well_and_stays_fresh(home: Home) -> None:
    found = checks(home.ok("doctor"))

    assert set(found) == CHECKS
    assert set(found.values()) <= {"ok", "warn"}
    assert not home.path.exists()


def test_a_used_one_is_well(stored: Home) -> None:
    found = checks(stored.ok("doctor"))

    assert set(found) == {*CHECKS, "conservation", "gaps"}
    assert "fail" not in found.values()


def folder_bytes(home: Home) -> dict[str, bytes]:
    files = [p for p in home.path.rglob("*") if p.is_file()]
    # the index of a write-ahead log belongs to whoever is reading
    return {str(p): p.read_bytes() for p in files if p.suffix != ".db-shm"}


def test_an_empty_topic_is_told_and_stays_empty(stored: Home) -> None:
    empty = stored.path / "bus" / "mdp.empty.db"
    empty.touch()
    before = folder_bytes(stored)
    output = stored.ok("doctor")

    assert folder_bytes(stored) == before
    assert f"warn  bus files      empty: {empty};" in output


def test_an_older_schema_is_told_and_stays(stored: Home) -> None:
    stored.store("PRAGMA user_version = 0")
    before = folder_bytes(stored)
    output = stored.ok("doctor")

    assert folder_bytes(stored) == before
    assert "warn  store          its schema lacks" in output


def test_open_gaps_are_told(stored: Home) -> None:
    rows = [
        ("feed", "*", START, START + 10**9, "log_trimmed", "open"),
        ("other", "*", START + 10**9, START + 2 * 10**9, "log_replaced", "open"),
        ("done", "*", START + 10**9, START + 9 * 10**9, "log_replaced", "filled"),
    ]
    for row in rows:
        stored.store(
            "INSERT INTO gaps (provider, symbol, from_ts, to_ts, cause, state, detail, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, '', 0)",
            row,
        )
    (line,) = [text for text in stored.ok("doctor").splitlines() if text[6:10] == "gaps"]

    assert line.startswith("warn")
    assert "2 open, the latest of other, 2025-10-24T14:00:01.000000Z to" in line
    assert "log replaced" in line


def test_a_wrong_configuration(home: Home) -> None:
    Path("wrong.yaml").write_text("bus: { typo: 1 }\n", encoding="utf-8")
    result = home.run("doctor", "--config", "wrong.yaml")

    assert result.exit_code == 1
    assert "fail  configuration" in result.stdout
    assert "typo" in result.stdout


def test_secrets_are_not_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDS_DSN", "postgresql://me:hunter2@host/db")
    output = home.run("doctor").stdout

    assert "postgresql://me:***@host/db" in output
    assert "hunter2" not in output


@pytest.mark.parametrize("name", ["store.db", "bus/mdp.events.a.db"])
@pytest.mark.parametrize("damage", ["text", "foreign", "cut"])
def test_a_damaged_or_foreign_file_is_reported_and_left_alone(
    stored: Home, name: str, damage: str
) -> None:
    path = stored.path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "text":
        path.write_text("not a database\n" * 100, encoding="utf-8")
    elif damage == "cut":
        path.write_bytes(content[:3_000])
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE notes (text)")
        db.commit()
        db.close()
    before = path.read_bytes()

    assert str(path) in failed(stored)
    assert path.read_bytes() == before


def test_a_record_that_was_altered_is_found(stored: Home) -> None:
    stored.topic("mdp.events.a", "UPDATE log SET payload = x'00'")

    assert "is not what was written" in failed(stored)


def test_a_folder_that_cannot_be_written(home: Home) -> None:
    home.path.write_text("in the way", encoding="utf-8")

    assert "folder" in failed(home)


def test_a_taken_port_is_no_failure(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        Path("port.yaml").write_text(f"telemetry: {{ metrics_port: {port} }}\n", encoding="utf-8")
        output = home.ok("doctor", "--config", "port.yaml")

    assert f"warn  metrics port   127.0.0.1:{port}" in output


def test_adapters_that_are_on_are_told(home: Home) -> None:
    output = home.ok("doctor")
    assert "ok    inference      enabled: rules with 5 rules\n" in output

    one = "- {name: up, condition: 'close > open', signal: 1}\n"
    Path("one.yaml").write_text(one, encoding="utf-8")
    write_adapters("rules: {file: one.yaml}")
    output = home.ok("doctor", "--config", "adapters.yaml")
    assert "ok    inference      enabled: rules with 1 rule\n" in output

    write_adapters("rules: {enabled: false}")
    output = home.ok("doctor", "--config", "adapters.yaml")
    assert "ok    inference      no adapter is enabled" in output


def test_wrong_rules_models_and_features_fail(home: Home) -> None:
    def failure(text: str) -> str:
        Path("adapters.yaml").write_text(text, encoding="utf-8")
        result = home.run("doctor", "--config", "adapters.yaml")
        assert result.exit_code == 1
        (line,) = [row for row in result.stdout.splitlines() if row.startswith("fail")]
        assert line[6:20].strip() == "inference"
        return line

    Path("wrong.yaml").write_text(
        "- {name: a, condition: 'clos > 1', signal: 1}\n"
        "- {name: b, condition: 'volume >', signal: 1}\n",
        encoding="utf-8",
    )
    line = failure("inference: {adapters: {rules: {file: wrong.yaml}}}\n")
    assert "wrong.yaml" in line
    assert "close" in line  # which was probably meant
    assert "missing.onnx" in failure(
        "inference: {adapters: {onnx: {enabled: true, model_path: missing.onnx}}}\n"
    )
    assert "fast_9s" in failure("features: {windows: [{name: fast_9s, horizon: 9s}]}\n")
    Path("late.yaml").write_text(
        "- {name: a, condition: 'sma_1s > 1', signal: 1}\n", encoding="utf-8"
    )
    assert "1s is too short for bars of 2s" in failure(
        "features: {windows: [{name: sma_1s, horizon: 1s}]}\n"
        "inference: {adapters: {rules: {file: late.yaml}}}\n"
    )


def write_adapters(adapters: str) -> None:
    Path("adapters.yaml").write_text(f"inference: {{adapters: {{{adapters}}}}}\n", encoding="utf-8")
