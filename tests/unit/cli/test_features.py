"""``mdp features``: the matrix of stored bars, and the columns there are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from market_data_core.errors import UsageError
from market_data_core.events import make_batch
from market_data_pipeline import feature_export
from market_data_pipeline.cli import _features

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

S = 10**9
START = 1_761_314_400 * S  # 2025-10-24T14:00:00Z
SYMBOLS = ("AAA", "BBB", "CCC")
KEY = ["provider", "symbol", "interval", "ts", "end"]
BAR = ["open", "high", "low", "close", "volume", "bar_vwap", "trade_count"]
FORMATS = ("parquet", "csv", "json")


@pytest.fixture
def stored(home: Home) -> Home:
    """Ten minutes of three symbols under two feeds' names, with holes, and a vendor's own bars."""
    for number, name in enumerate(("one", "two")):
        rng = np.random.default_rng(number)
        n = 900
        ts = START + np.sort(rng.integers(0, 600, n)) * S
        names = [SYMBOLS[code] for code in rng.integers(0, 3 - number, n)]
        price = np.round(100 + np.cumsum(rng.normal(0, 0.02, n)), 2)
        batch = make_batch(name, names, ts, range(n), price, np.ones(n))
        home.lane([batch], f"mdp.events.{name}", micro_batch__windows=("2s", "1m"))
    home.store(
        "INSERT INTO bars_ohlcv (provider, symbol, interval, ts, open, high, low, close, volume, "
        "state, created_at, updated_at) SELECT 'one:official', symbol, interval, ts, "
        "open, high, low, close, volume, state, created_at, updated_at "
        "FROM bars_ohlcv WHERE provider = 'one'"
    )
    return home


def matrix(home: Home, *arguments: str) -> pl.DataFrame:
    home.ok("features", "export", "-o", "m.parquet", *arguments)
    return pl.read_parquet("m.parquet")


def test_a_row_is_a_bar_with_what_is_configured_and_looked_at(stored: Home) -> None:
    frame = matrix(stored, "--label", "60s", "--label", "30bars")

    features = ["vwap_1m", "ret_30s", "vol_5m", "momentum", "volatility", "rsi"]
    assert frame.columns == [*KEY, *BAR, *features, "label_60s", "label_30bars"]
    bars = stored.store(
        "SELECT provider, symbol, interval, ts, open, high, low, close, volume, vwap, trade_count "
        "FROM bars_ohlcv WHERE interval = '2s' AND provider NOT LIKE '%official' "
        "ORDER BY 1, 2, 3, 4"
    )
    plain = frame.select(*KEY[:3], pl.col("ts").to_physical(), *BAR).rows()
    assert plain == bars
    assert (frame["end"] - frame["ts"]).dt.total_nanoseconds().unique().to_list() == [2 * S]
    assert frame.schema["end"] == pl.Datetime("ns", "UTC")
    assert frame["vwap_1m"].null_count() == 0
    first = frame.group_by("provider", "symbol", maintain_order=True).head(14)
    assert first["rsi"].null_count() == len(first)
    assert not any(frame[name].is_nan().any() for name in frame.columns[12:])


def test_bars_before_the_range_are_looked_at_and_not_told(stored: Home) -> None:
    whole = matrix(stored, "--columns", "all", "--label", "20s")
    span = ("--from", "2025-10-24T14:05:00Z", "--to", "2025-10-24T14:08:00Z")
    part = matrix(stored, "--columns", "all", *span)

    times = pl.col("ts").to_physical()
    inside = (times >= START + 300 * S) & (times < START + 480 * S)
    assert_frame_equal(part, whole.filter(inside).drop("label_20s"), check_exact=True)
    counted = matrix(stored, "--columns", "zscore", *span)  # which look at 20 bars, not fewer
    assert counted["zscore"].equals(part["zscore"])
    assert counted["zscore"].null_count() == 0
    labelled = matrix(stored, "--columns", "ret", "--label", "20s", *span)
    known = labelled["label_20s"].is_not_null()
    assert labelled.filter(known)["ts"].max() < labelled["ts"].max()  # type: ignore[operator]
    told = whole.filter(inside)["label_20s"]
    assert labelled["label_20s"].filter(known).to_list() == told.filter(known).to_list()
    late = labelled["ts"].to_physical() + 20 * S >= START + 480 * S
    assert labelled.filter(late)["label_20s"].null_count() == late.sum()


@pytest.mark.parametrize(("rows", "before"), [(1, 1), (7, 300), (100, 1), (333, 1000)])
def test_the_pieces_do_not_matter(
    stored: Home, monkeypatch: pytest.MonkeyPatch, rows: int, before: int
) -> None:
    span = ("--from", "2025-10-24T14:03:00Z", "--to", "2025-10-24T14:04:00Z")
    columns = ("--columns", "bollinger,ret,zscore", "--label", "30s", "--label", "9bars")
    asked = (*span, *columns)
    whole = matrix(stored, *asked)
    monkeypatch.setattr(feature_export, "ROWS_MAX", rows)
    monkeypatch.setattr(feature_export, "BEFORE_MAX", before)

    assert_frame_equal(matrix(stored, *asked), whole, check_exact=True)


def test_a_session_has_its_own_history_and_future(stored: Home) -> None:
    Path("configs").mkdir()
    asked = ("--columns", "ret", "--label", "1bars", "--symbols", "bbb", "--provider", "one")
    plain = matrix(stored, *asked)
    Path("configs/streaming.yaml").write_text('version: 1\nfeatures: {session_gap: "6s"}\n')
    frame = matrix(stored, *asked)

    fresh = plain["ts"].diff().dt.total_nanoseconds().fill_null(0) >= 8 * S
    assert 3 < fresh.sum() < len(frame)
    assert frame.filter(fresh)["ret"].null_count() == fresh.sum()
    last = fresh.shift(-1, fill_value=True)
    assert frame.filter(last)["label_1bars"].null_count() == last.sum()
    assert frame.filter(~fresh)["ret"].to_list() == plain.filter(~fresh)["ret"].to_list()


def test_every_format_holds_the_same(stored: Home) -> None:
    what = ("--symbols", "aaa,CCC", "--columns", "vwap_1m,rsi", "--label", "1m")
    asked = ("features", "export", *what)
    frame = matrix(stored, *what)
    assert set(frame["symbol"]) == {"AAA", "CCC"}

    piped = stored.run(*asked)
    assert pl.read_parquet(io.BytesIO(piped.stdout_bytes)).equals(frame)
    stored.ok(*asked, "--format", "csv", "-o", "m.csv")
    header, *lines = Path("m.csv").read_text().splitlines()
    assert header.split(",") == frame.columns
    rows = json.loads(stored.ok(*asked, "--format", "json"))
    assert len(lines) == len(rows) == len(frame)
    for line, row, wanted in zip(lines, rows, frame.iter_rows(named=True), strict=True):
        cells = dict(zip(frame.columns, line.split(","), strict=True))
        assert row["ts"] == cells["ts"] == f"{wanted['ts']:%Y-%m-%dT%H:%M:%S.%fZ}"
        for name in frame.columns[5:]:
            assert row[name] == wanted[name]
            assert (float(cells[name]) if cells[name] else None) == wanted[name]


HEADS = {"parquet": b"PAR1", "csv": b"provider,", "json": b'[{"prov'}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("m", "parquet"),
        ("m.parquet", "parquet"),
        ("m.PQ", "parquet"),
        ("m.csv", "csv"),
        ("a.b.CSV", "csv"),
        ("m.json", "json"),
    ],
)
def test_the_name_of_the_file_tells_the_format(stored: Home, name: str, form: str) -> None:
    asked = ("features", "export", "--columns", "ret", "-o", name)
    stored.ok(*asked)
    assert Path(name).read_bytes().startswith(HEADS[form])
    stored.ok(*asked, "--format", "json")
    assert Path(name).read_bytes().startswith(HEADS["json"])


@pytest.mark.parametrize("name", ["m.txt", "m.csv.gz", "m.2025"])
def test_a_name_that_does_not_tell_the_format_is_refused(home: Home, name: str) -> None:
    error = home.error("features", "export", "-o", name)
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"{name}: its name does not tell the format; say --format ")


@pytest.mark.parametrize("form", FORMATS)
def test_a_reader_that_has_gone_leaves_no_traceback(stored: Home, form: str) -> None:
    command = [sys.executable, "-c", "from market_data_pipeline.cli import main; main()"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*command, "features", "export", "--columns", "ret", "--format", form],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_dataset_says_what_to_take(stored: Home) -> None:
    Path("sets.yaml").write_text(
        "some: {provider: one, symbols: [AAA], interval: 1m, from: 2025-10-24T14:02:00Z}\n"
        "ticks: {provider: two, symbols: [BBB]}\n"
    )
    asked = ("--datasets", "sets.yaml", "--columns", "ret", "--dataset")
    frame = matrix(stored, *asked, "some", "--to", "2025-10-24T14:04:00Z")
    assert frame.select(*KEY[:3]).unique().rows() == [("one", "AAA", "1m")]
    assert frame["ts"].to_physical().to_list() == [START + 120 * S, START + 180 * S]
    frame = matrix(stored, *asked, "ticks")
    assert frame.select(*KEY[:3]).unique().rows() == [("two", "BBB", "2s")]


def test_features_that_do_not_fit_the_bars_are_left_out_and_named(stored: Home) -> None:
    result = stored.run("features", "export", "--interval", "60s", "--format", "csv")

    assert "left out: features.windows[1] (ret_30s): horizon: 30s is too short" in result.stderr
    assert result.stdout.splitlines()[0].endswith(",trade_count,vwap_1m,vol_5m")
    assert "too short" in str(stored.error("features", "export", "--interval", "1m", "--columns",
                                           "ret_30s"))  # fmt: skip


WRONG = {
    ("--columns", "vwapp"): "--columns 'vwapp': no such feature; did you mean 'vwap'?",
    ("--columns", "label_60s"): "--columns 'label_60s': no such feature",
    ("--label", "soon"): "--label 'soon': write how far ahead",
    ("--interval", "5s"): "no bars of 5s for what is asked",
    ("--provider", "one", "--symbols", "X"): "no bars of 2s for what is asked",
    ("--from", "x"): "--from 'x'",
    ("--dataset", "none"): "configs/datasets.yaml",
    ("-o", "no/such/folder"): "cannot be written",
    ("--from-archive", "nowhere"): "nowhere",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items())
def test_what_is_wrong_is_named(stored: Home, arguments: tuple[str, ...], message: str) -> None:
    Path("m.csv").write_text("old")
    assert message in str(
        stored.error("features", "export", "--format", "csv", "-o", "m.csv", *arguments)
    )
    assert Path("m.csv").read_text() == "old"


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_not_whole_does_not_appear(
    stored: Home, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(feature_export, "ROWS_MAX", 10)
    frames = feature_export.matrix_frames

    async def broken(*arguments: object) -> object:
        async for frame in frames(*arguments):  # type: ignore[arg-type]
            yield frame
            msg = "the disk is gone"
            raise OSError(msg)

    monkeypatch.setattr(_features, "matrix_frames", broken)
    error = stored.error("features", "export", "--format", form, "-o", "m")
    assert str(error) == "m cannot be written: the disk is gone"
    assert sorted(path.name for path in Path().iterdir()) == ["home"]


@pytest.mark.parametrize("window", ["{name: label_1m, horizon: 1m, feature: ret}"])
def test_no_feature_is_called_a_label(home: Home, window: str) -> None:
    Path("configs").mkdir()
    Path("configs/streaming.yaml").write_text(f"version: 1\nfeatures: {{windows: [{window}]}}\n")
    assert "'label_1m' begins as labels do" in str(home.error("features", "list"))


def test_no_rule_sees_a_label(stored: Home) -> None:
    Path("configs").mkdir()
    Path("configs/rules.yaml").write_text('- {name: a, condition: "label_60s > 0", signal: 1}\n')
    assert "label_60s" in str(stored.error("features", "export", "--label", "60s", "-o", "m"))


def test_an_archive_gives_what_the_live_run_gave(home: Home) -> None:
    Path("configs").mkdir()
    Path("configs/streaming.yaml").write_text(
        "version: 1\ntelemetry: {metrics_port: 0}\nmicro_batch: {windows: [2s, 1m]}\n"
        "producers: {synthetic: {speed: max, tick_rate: 5, symbols: [AAA, BBB], disorder: 0.2}}\n"
    )
    home.ok("run", "--provider", "synthetic", "--for", "90s")
    home.ok("stream", "archive", "--once", "--path", "archive")
    asked = ("--from", "2025-01-02T00:00:40Z", "--to", "2025-01-02T00:01:10Z", "--label", "10s")
    live = matrix(home, *asked, "--columns", "vwap_1m,rsi,ret")
    archived = matrix(home, *asked, "--columns", "vwap_1m,rsi,ret", "--from-archive", "archive")

    assert len(live) > 20
    assert live["rsi"].null_count() == 0
    assert_frame_equal(archived, live, check_exact=True)
    assert not list((home.path / "spool").iterdir())


def test_every_column_is_listed(home: Home) -> None:
    rows = {row["name"]: row for row in json.loads(home.ok("features", "list", "--format", "json"))}

    assert rows["vwap_1m"] == {
        "name": "vwap_1m",
        "family": "vwap",
        "span": "1m",
        "bars": 30,
        "summary": "Volume-weighted average price.",
    }
    assert (rows["ret"]["span"], rows["ret"]["bars"]) == ("2 bars", 2)
    assert (rows["macd_signal"]["family"], rows["volume_ratio"]["family"]) == (
        "macd",
        "volume_ratio",
    )
    header, *lines = home.ok("features", "list", "--format", "csv").splitlines()
    assert header == "name,family,span,bars,summary"
    assert [line.split(",")[0] for line in lines] == list(rows)
    assert "vol_5m" in home.ok("features", "list")


def test_a_window_that_is_too_short_is_listed_with_the_reason(home: Home) -> None:
    Path("configs").mkdir()
    Path("configs/streaming.yaml").write_text("version: 1\nmicro_batch: {windows: [1m]}\n")
    rows = {row["name"]: row for row in json.loads(home.ok("features", "list", "--format", "json"))}
    assert rows["ret_30s"]["bars"] is None
    assert "too short for bars of 1m" in rows["ret_30s"]["summary"]
    assert rows["vwap_1m"]["bars"] == 1
