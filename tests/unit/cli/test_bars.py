from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import polars as pl
import pytest

from market_data_core.errors import MdpError, UsageError
from market_data_core.events import make_batch

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
NAMES = (
    "provider,symbol,interval,ts,open,high,low,close,volume,vwap,trade_count,state,"
    "created_at,updated_at"
)


@pytest.fixture
def stored(home: Home) -> Home:
    ts = [START + i * 10**9 for i in range(120)]
    n = len(ts)
    for name in ("one", "two"):
        batch = make_batch(
            name, ["SPY"] * n, ts, range(n), [10.5] * n, [0.0] * 2 + [1.25] * (n - 2)
        )
        home.lane([batch], f"mdp.events.{name}", micro_batch__windows=("2s", "1m"))
    return home


def test_a_symbol_gives_all_intervals_and_providers(stored: Home) -> None:
    rows = json.loads(stored.ok("bars", "spy", "--format", "json"))

    assert len(rows) == 2 * (60 + 2)
    assert {(r["provider"], r["interval"]) for r in rows} == {
        (p, i) for p in ("one", "two") for i in ("2s", "1m")
    }
    assert list(rows[0]) == NAMES.split(",")


def test_options_narrow_it_down(stored: Home) -> None:
    rows = json.loads(
        stored.ok(
            "bars", "SPY", "--interval", "60s", "--provider", "two", "--from", "2025-10-24",
            "--to", "2025-10-24T14:01:00Z", "--format", "json",
        )
    )  # fmt: skip

    assert [(r["provider"], r["interval"], r["ts"]) for r in rows] == [
        ("two", "1m", "2025-10-24T14:00:00.000000Z")
    ]
    assert (rows[0]["open"], rows[0]["volume"], rows[0]["trade_count"]) == (10.5, 72.5, 60)


def test_csv_has_the_tables_columns_and_empty_cells_for_nulls(stored: Home) -> None:
    header, first, *_ = stored.ok(
        "bars", "SPY", "--interval", "2s", "--provider", "one", "--format", "csv"
    ).splitlines()

    assert header == NAMES
    assert first.startswith("one,SPY,2s,2025-10-24T14:00:00.000000Z,10.5,10.5,10.5,10.5,0.0,,2,f")


def test_parquet_keeps_types(stored: Home, tmp_path: object) -> None:
    stored.ok("bars", "SPY", "--format", "parquet", "--output", "bars.parquet")
    frame = pl.read_parquet("bars.parquet")

    assert ",".join(frame.columns) == NAMES
    assert frame.schema["ts"] == pl.Datetime("ns", "UTC")
    assert len(frame) == 124
    piped = stored.run("bars", "SPY", "--format", "parquet")
    assert pl.read_parquet(io.BytesIO(piped.stdout_bytes)).equals(frame)


def test_the_table_shows_the_last_rows_and_how_many_there_are(stored: Home) -> None:
    output = stored.ok("bars", "SPY", "--interval", "2s", "--provider", "one", "--limit", "3")

    assert output.startswith("The last 3 of 60 bars\n")
    times = [line.split()[3] for line in output.splitlines() if " SPY " in line]
    assert times == [f"2025-10-24T14:01:{s}.000000Z" for s in (54, 56, 58)]
    assert "\x1b" not in output
    assert "The last 50 of 124 bars" in stored.ok("bars", "SPY")
    stored.ok("bars", "SPY", "--output", "table.txt")


def test_what_is_not_there_is_answered_with_what_is(stored: Home) -> None:
    assert str(stored.error("bars", "QQQ")) == "no bars of 'QQQ'; there are SPY"
    assert "there are 1m, 2s" in str(stored.error("bars", "SPY", "--interval", "5s"))
    assert "there are one, two" in str(stored.error("bars", "SPY", "--provider", "x"))
    late = stored.error("bars", "SPY", "--from", "2030-01-01")
    assert "from 2025-10-24T14:00:00.000000Z to 2025-10-24T14:01:58.000000Z" in str(late)
    assert late.exit_code == 1
    assert stored.run("bars", "QQQ", "--format", "json").stdout == "[]\n"
    assert stored.run("bars", "QQQ", "--format", "csv").stdout == NAMES + "\n"


def test_a_fresh_machine_stays_fresh(home: Home) -> None:
    result = home.run("bars", "SPY", "--format", "csv")

    assert isinstance(result.exception, MdpError)
    assert "no bars yet" in str(result.exception)
    assert result.stdout == NAMES + "\n"
    assert not home.path.exists()


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_a_reader_that_has_gone_leaves_no_traceback(stored: Home, form: str) -> None:
    command = [sys.executable, "-c", "from market_data_pipeline.cli import main; main()"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*command, "bars", "SPY", "--format", form],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "yesterday"), "--from 'yesterday'"),
        (("--from", "2025-01-02", "--to", "2025-01-02"), "not before"),
        (("--interval", "5x"), "interval '5x'"),
        (("--limit", "0"), "--limit 0"),
        (("--output", "no/such/folder/x", "--format", "csv"), "--output no/such/folder/x"),
    ],
)
def test_wrong_options_are_named(stored: Home, arguments: tuple[str, ...], words: str) -> None:
    error = stored.error("bars", "SPY", *arguments)

    assert isinstance(error, UsageError)
    assert words in str(error)
