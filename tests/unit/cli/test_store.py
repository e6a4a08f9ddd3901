"""``mdp store migrate|status|policies|import|export`` on the embedded store."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.config import load_config
from market_data_core.errors import ConfigError, MdpError, UsageError
from market_data_store.migrations import migrations

if TYPE_CHECKING:
    from tests.servers.postgres import Server
    from tests.unit.cli.conftest import Home

NEWEST = migrations("sqlite")[-1].number
DAY_NS = 86_400 * 10**9


@pytest.fixture
def migrated(home: Home) -> Home:
    home.ok("store", "migrate")
    return home


def _signal(home: Home, name: str, days_ago: float = 0) -> None:
    home.store(
        "INSERT INTO signals VALUES ('p', 'SPY', ?, ?, 1.0, NULL, 'active', '{}', 0)",
        (time.time_ns() - int(days_ago * DAY_NS), name),
    )


def test_the_schema_goes_up_and_back(home: Home) -> None:
    assert "no store yet" in home.ok("store", "migrate", "--dry-run")
    assert not home.path.exists()
    assert f"from step 0 to step {NEWEST}" in home.ok("store", "migrate")
    assert "nothing to do" in home.ok("store", "migrate")
    _signal(home, "a")
    back = ("store", "migrate", "--to", "1")
    dry = home.run(*back, "--dry-run")
    assert f"would go from step {NEWEST} to step 1" in dry.output
    assert "is lost" in dry.output
    refused = home.error(*back)
    assert isinstance(refused, UsageError)
    assert "--yes" in str(refused)
    assert home.store("SELECT count(*) FROM signals") == [(1,)]
    assert f"from step {NEWEST} to step 1" in home.ok(*back, "--yes")
    status = home.ok("store", "status")
    assert "mdp store migrate brings it up to date" in status
    assert f"step 1 to step {NEWEST}" in home.ok("store", "migrate", "--dry-run")
    assert f"from step 1 to step {NEWEST}" in home.ok("store", "migrate")
    assert home.store("SELECT count(*) FROM signals") == [(0,)]


def test_steps_that_are_not_there_are_refused(migrated: Home) -> None:
    for step in ("-1", str(NEWEST + 1)):
        error = migrated.error("store", "migrate", "--to", step)
        assert isinstance(error, UsageError)
        assert f"0 to {NEWEST}" in str(error)
    assert "nothing to do" in migrated.ok("store", "migrate", "--to", str(NEWEST))


def test_status(migrated: Home) -> None:
    _signal(migrated, "a")
    _signal(migrated, "b")
    found = json.loads(migrated.ok("store", "status", "--format", "json"))
    assert (found["schema"], found["schema_known"]) == (NEWEST, NEWEST)
    tables = {table["table"]: table for table in found["tables"]}
    assert tables["signals"]["rows"] == 2
    assert tables["signals"]["first"].startswith(str(datetime.now(UTC).year))
    assert tables["bars_ohlcv"] | {"size_bytes": 0} == {
        "table": "bars_ohlcv", "rows": 0, "size_bytes": 0, "first": None, "last": None,
    }  # fmt: skip
    assert "signals" in migrated.ok("store", "status")


@pytest.mark.parametrize("command", [("status",), ("policies",), ("export", "signals", "-")])
def test_reading_makes_no_store(home: Home, command: tuple[str, ...]) -> None:
    error = home.error("store", *command)
    assert "no bars yet" in str(error) or "no store yet" in str(error)
    assert not home.path.exists()


def _configured(home: Home, retention: str) -> str:
    home.path.mkdir(parents=True, exist_ok=True)
    file = home.path / "streaming.yaml"
    file.write_text(f"store:\n  retention: {retention}\n")
    return str(file)


def test_what_is_older_than_configured_is_deleted(migrated: Home) -> None:
    for days in (0.5, 9.9, 10.1, 400):
        _signal(migrated, f"s{days}", days)
    config = _configured(migrated, "{signals: 10, bars_ohlcv: {60s: 30, 1h: 0}}")
    listed = json.loads(migrated.ok("store", "policies", "--config", config, "--format", "json"))
    assert [row for row in listed if row["by"] == "mdp"] == [
        {"kind": "retention", "table": table, "interval": interval, "after_days": days, "by": "mdp"}
        for table, interval, days in (("bars_ohlcv", "1m", 30), ("signals", None, 10))
    ]
    assert migrated.store("SELECT count(*) FROM signals") == [(4,)]
    output = migrated.ok("store", "policies", "--apply", "--config", config)
    assert output.splitlines() == [
        "bars_ohlcv 1m: 0 rows older than 30 days deleted",
        "signals: 2 rows older than 10 days deleted",
    ]
    assert migrated.store("SELECT name FROM signals ORDER BY name") == [("s0.5",), ("s9.9",)]
    again = migrated.ok("store", "policies", "--apply", "--config", config, "--format", "json")
    assert [row["deleted"] for row in json.loads(again)] == [0, 0]
    assert "for ever" in migrated.ok("store", "policies", "--apply")


def test_nothing_is_deleted_from_an_old_schema(migrated: Home) -> None:
    migrated.ok("store", "migrate", "--to", "1", "--yes")
    config = _configured(migrated, "{signals: 10}")
    error = migrated.error("store", "policies", "--apply", "--config", config)
    assert "mdp store migrate" in str(error)


@pytest.mark.parametrize(
    ("retention", "told"),
    [
        ("{signal: 3}", "did you mean 'signals'"),
        ("{signals: -1}", "-1 is not a number of days"),
        ("{signals: soon}", "'soon' is not a number of days"),
        ("{bars_ohlcv: {1min: 3}}", "'1min' is not valid"),
        ("{bars_ohlcv: {1m: 3, 60s: 0}}", "given twice: 1m"),
        ("{bars_ohlcv: {1m: 2.5}}", "1m: 2.5 is not a number of days"),
    ],
)
def test_wrong_retention_is_told(home: Home, retention: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(Path(_configured(home, retention)))
    assert told in str(raised.value)
    assert "line 2" in str(raised.value)


ROWS: dict[str, list[dict[str, Any]]] = {
    "bars_ohlcv": [
        {
            "provider": "p", "symbol": symbol, "interval": interval, "ts": ts, "open": 0.1 + 0.2,
            "high": 1e300, "low": 5e-324, "close": 1, "volume": 3, "vwap": vwap,
            "trade_count": count, "state": state,
        }
        for symbol, interval, ts, vwap, count, state in (
            ("SPY", "1m", "2025-10-24T14:00:00Z", 1.25, 2**62, "final"),
            ("SPY", "2s", "2025-10-24T14:00:00.000001Z", None, None, "gap"),
            ("Ü'; DROP TABLE X --", "1m", "1901-01-01T00:00:00Z", None, 1, "revised"),
        )
    ],
    "signals": [
        {
            "provider": "p", "symbol": "SPY", "ts": "2025-10-24T14:00:00.123456Z", "name": name,
            "value": -1.5, "score": score, "state": state, "metadata": metadata,
        }
        for name, score, state, metadata in (
            ("a", None, "active", {}),
            ("b\n\"", 0.5, "retracted", {"n": {"x": [1, 2.5, None, "ü"]}}),
        )
    ],
    "options_snap": [
        {
            "provider": "p", "symbol": "SPY", "expiry": "2025-12-19", "option_type": "C",
            "strike": 410.5, "ts": "2025-10-24T14:00:00Z", "bid": 1.5, "delta": -0.5, "oi": 7,
        }
    ],
    "fundamentals": [
        {
            "provider": "p", "symbol": "SPY", "asof": "2025-10-24T00:00:00Z", "metric": "revenue",
            "value": -3.5, "currency": "USD", "period": "2025Q3",
        }
    ],
    "news": [
        {
            "provider": "p", "id": "1", "published_at": "2025-10-24T14:00:00Z", "symbol": "SPY",
            "title": "a\u2028b", "url": "", "summary": "", "sentiment_score": None,
        }
    ],
}  # fmt: skip


def _table(home: Home, table: str) -> list[Any]:
    """All rows, without what the store fills in."""
    stamps = {"bars_ohlcv": 2, "signals": 1}.get(table, 0)
    rows = home.store(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4")
    return [row[: len(row) - stamps] for row in rows]


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
@pytest.mark.parametrize("table", list(ROWS))
def test_a_round_trip_gives_the_same_rows(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, form: str
) -> None:
    given = tmp_path / "given.ndjson"
    given.write_text("".join(json.dumps(row) + "\n" for row in ROWS[table]))
    rows = len(ROWS[table])
    output = home.ok("store", "import", table, str(given))
    assert f"{rows} inserted, 0 updated, 0 unchanged" in output
    before = _table(home, table)
    assert len(before) == rows
    file = tmp_path / f"out.{form}"
    assert f"{rows} rows" in home.ok("store", "export", table, str(file))
    output = home.ok("store", "import", table, str(file))
    assert f"0 inserted, 0 updated, {rows} unchanged" in output
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "other"))
    home.path = tmp_path / "other"
    home.ok("store", "import", table, str(file))
    assert _table(home, table) == before


def test_export_is_selected_and_goes_to_standard_output(home: Home, tmp_path: Path) -> None:
    given = tmp_path / "given.ndjson"
    given.write_text("".join(json.dumps(row) + "\n" for row in ROWS["bars_ohlcv"]))
    home.ok("store", "import", "bars_ohlcv", str(given))
    result = home.run(
        *("store", "export", "bars_ohlcv", "-", "--symbol", "spy", "--interval", "60s"),
        *("--provider", "p", "--from", "2025-10-24", "--to", "2025-10-25"),
    )
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["open"] == 0.1 + 0.2
    assert "1 rows of bars_ohlcv" in result.stderr


def test_rows_that_are_not_valid_are_told_and_kept(home: Home, tmp_path: Path) -> None:
    good = ROWS["signals"][0]
    lines = [
        json.dumps(good),
        json.dumps(good | {"name": "x", "value": "high"}),
        "{broken",
        json.dumps(good | {"name": "y", "valeu": 1}),
        json.dumps({key: value for key, value in good.items() if key != "ts"}),
        json.dumps(good | {"name": "z", "ts": "2025-10-24T14:00:00.000000001Z"}),
        json.dumps(good | {"name": "c"}),
    ]
    file = tmp_path / "rows.ndjson"
    file.write_text("\n".join(lines))
    result = home.run("store", "import", "signals", str(file))
    assert result.exit_code == 1
    assert "2 inserted" in result.stdout
    for number, word in ((2, "value"), (3, ""), (4, "'value'"), (5, "ts"), (6, "microseconds")):
        (told,) = [one for one in result.stderr.splitlines() if f"line {number}:" in one]
        assert word in told
    assert ".dlq/import-signals.ndjson" in result.stderr
    kept = json.loads(
        home.ok("dlq", "list", "--file", ".dlq/import-signals.ndjson", "--format", "json")
    )
    assert len(kept) == 5
    shown = home.ok("dlq", "show", kept[0]["id"], "--file", ".dlq/import-signals.ndjson", "--raw")
    assert json.loads(shown) == [lines[1]]


def test_rows_that_the_store_refuses_are_told_and_can_be_replayed(
    migrated: Home, tmp_path: Path
) -> None:
    migrated.store(
        "CREATE TRIGGER refused BEFORE INSERT ON signals WHEN NEW.name = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    good = ROWS["signals"][0]
    file = tmp_path / "rows.ndjson"
    file.write_text(json.dumps(good) + "\n" + json.dumps(good | {"name": "bad"}) + "\n")
    result = migrated.run("store", "import", "signals", str(file))
    assert result.exit_code == 1
    assert "not this one" in result.stderr
    assert "1 inserted" in result.stdout
    migrated.store("DROP TRIGGER refused")
    output = migrated.ok("dlq", "replay", "--file", ".dlq/import-signals.ndjson")
    assert "1 inserted" in output


def test_what_is_not_possible_is_said(migrated: Home, tmp_path: Path) -> None:
    cases: dict[tuple[str, ...], str] = {
        ("export", "bars", "x.parquet"): "bars_ohlcv",
        ("import", "job_runs", "x.parquet"): "valid:",
        ("export", "signals", "x.txt"): "--format",
        ("export", "signals", "-", "--format", "parquet"): "parquet",
        ("export", "signals", "x.ndjson", "--interval", "1m"): "--interval",
        ("export", "signals", "x.ndjson", "--from", "soon"): "--from",
        ("export", "signals", "no/such/folder.ndjson"): "no/such",
        ("import", "signals", "none.ndjson"): "none.ndjson",
    }
    for arguments, word in cases.items():
        error = migrated.error("store", *arguments)
        assert isinstance(error, UsageError), arguments
        assert word in str(error), arguments
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert isinstance(migrated.error("store", "import", "signals", "x.parquet"), MdpError)


def test_on_postgresql(
    home: Home, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = postgres.new_schema()
    monkeypatch.setenv("MDP_STORE_URI", uri)
    newest = migrations("postgres")[-1].number
    assert f"from step 0 to step {newest}" in home.ok("store", "migrate", "--dry-run")
    assert f"from step 0 to step {newest}" in home.ok("store", "migrate")
    assert "nothing to do" in home.ok("store", "migrate")
    for table, rows in ROWS.items():
        given, first, second = (tmp_path / f"{table}{n}.ndjson" for n in range(3))
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert f"{len(rows)} inserted" in home.ok("store", "import", table, str(given))
        home.ok("store", "export", table, str(first))
        assert f"{len(rows)} unchanged" in home.ok("store", "import", table, str(first))
        postgres.query(f"DELETE FROM {table}", uri)
        assert f"{len(rows)} inserted" in home.ok("store", "import", table, str(first))
        home.ok("store", "export", table, str(second))
        assert _without_stamps(second) == _without_stamps(first)
    found = json.loads(home.ok("store", "status", "--format", "json"))
    assert {row["table"] for row in found["tables"]} >= set(ROWS)
    assert found["schema"] == newest
    config = _configured(home, "{signals: 10}")
    output = home.ok("store", "policies", "--apply", "--config", config)
    assert output == "signals: 2 rows older than 10 days deleted\n"
    assert home.ok("store", "migrate", "--to", "1", "--yes")
    assert "mdp store migrate" in str(home.error("store", "import", "signals", "x.ndjson"))
    assert not home.path.joinpath("store.db").exists()


def _without_stamps(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [{k: v for k, v in row.items() if k not in ("created_at", "updated_at")} for row in rows]
