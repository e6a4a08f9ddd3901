"""Real recorded trades, through the command line, against a computation straight from the files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import Deployment, new_deployment

from market_data_core.intervals import parse_interval
from market_data_core.testing.oracle import OracleEvent, batch_bars

FILES = ("spot_btcusdt_20240808", "spot_btcusdt_20240809", "spot_ethusdt_20240808")


def paths(recorded_data: Path, names: Iterable[str] = FILES) -> list[Path]:
    return [recorded_data / "binance" / f"{name}.ndjson.gz" for name in names]


def trades(files: Iterable[Path], provider: str) -> Iterator[OracleEvent]:
    """The files' trades, read without any of the product's code."""
    for file in files:
        for line in gzip.decompress(file.read_bytes()).splitlines():
            data = json.loads(line.split(b" ", 1)[1])["data"]
            price, size = float(data["p"]), float(data["q"])
            ts = int(data["T"]) * 1_000_000
            yield OracleEvent(provider, data["s"], ts, data["t"], price, price, price, price, size)


def expected(events: Iterable[OracleEvent], *intervals: str) -> list[Any]:
    known = list(events)
    rows = [
        (provider, symbol, interval, ts, *values(bar))
        for interval in intervals
        for (provider, symbol, ts), bar in batch_bars(known, parse_interval(interval)).items()
    ]
    return sorted(rows)


def values(bar: Any) -> tuple[Any, ...]:
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.vwap, bar.trade_count)


def test_real_trades_become_the_bars_that_the_file_gives(
    recorded_data: Path, deployment: Deployment
) -> None:
    files = paths(recorded_data)
    said = deployment.ok("run", *files, "--as", "spot", "--window", "1s,2s,1m,5m")
    assert deployment.bars() == expected(trades(files, "spot"), "1s", "2s", "1m", "5m")
    assert "26,010 received = 26,010 stored" in said
    assert "no difference" in deployment.ok("verify")


def by_hand(files: Iterable[Path], provider: str, interval: str) -> list[Any]:
    """The bars from the messages' own decimals, with none of the reference's code either."""
    windows: dict[tuple[str, int], list[tuple[int, int, Decimal, Decimal]]] = {}
    length = parse_interval(interval) // 1_000_000
    for file in files:
        for line in gzip.decompress(file.read_bytes()).splitlines():
            data = json.loads(line.split(b" ", 1)[1])["data"]
            trade = (data["T"], data["t"], Decimal(data["p"]), Decimal(data["q"]))
            windows.setdefault((data["s"], data["T"] // length * length), []).append(trade)
    rows = []
    for (symbol, start), found in windows.items():
        found.sort()
        prices = [price for _, _, price, _ in found]
        volume = float(sum((size for *_, size in found), Decimal(0)))
        notional = float(sum((price * size for *_, price, size in found), Decimal(0)))
        ohlc = (float(p) for p in (prices[0], max(prices), min(prices), prices[-1]))
        vwap = notional / volume if volume else None
        key = (provider, symbol, interval, start * 1_000_000)
        rows.append((*key, *ohlc, volume, vwap, len(found)))
    return sorted(rows)


def test_bars_worked_out_by_hand(recorded_data: Path, deployment: Deployment) -> None:
    """Sums of the vendor's decimal texts, rounded once, are what is stored, to the last bit."""
    files = paths(recorded_data, [*FILES, "spot_ethusdt_20240809"])
    deployment.ok("run", *files, "--as", "spot", "--window", "2s,1m")
    assert deployment.bars() == sorted(
        [*by_hand(files, "spot", "1m"), *by_hand(files, "spot", "2s")]
    )


def test_the_same_command_again_changes_no_row(recorded_data: Path, deployment: Deployment) -> None:
    files = paths(recorded_data)
    deployment.ok("run", *files, "--as", "spot")
    before = deployment.query("SELECT * FROM bars_ohlcv")
    for order in (files, files[::-1]):
        said = deployment.ok("run", *order, "--as", "spot")
        assert f"0 inserted, 0 updated, {len(before)} unchanged" in said.replace(",", ",")
        assert "no row changed" in said
    assert deployment.query("SELECT * FROM bars_ohlcv") == before
    assert deployment.query("SELECT count(*) FROM bars_ohlcv_history") == [(0,)]


def test_spot_and_futures_stay_apart(recorded_data: Path, deployment: Deployment) -> None:
    spot = paths(recorded_data, ["spot_ethusdt_20240808"])
    futures = paths(recorded_data, ["usdm_ethusdt_20240808"])
    deployment.ok("run", *spot, "--as", "spot")
    deployment.ok("run", *futures, "--as", "usdm")
    both = [*trades(spot, "spot"), *trades(futures, "usdm")]
    assert deployment.bars() == expected(both, "2s")
    assert (
        deployment.ok("bars", "ethusdt", "--format", "csv").count("\n")
        == len(deployment.bars()) + 1
    )


def test_standard_input_is_a_recording(recorded_data: Path, deployment: Deployment) -> None:
    (file,) = paths(recorded_data, ["spot_ethusdt_20240808"])
    data = gzip.decompress(file.read_bytes())
    deployment.ok("run", "-", "--as", "spot", stdin=data)
    assert deployment.bars() == expected(trades([file], "spot"), "2s")


@pytest.mark.parametrize("apart", [(0, 1), (1, 0)])
def test_recordings_that_meet_inside_a_window_give_whole_bars(
    recorded_data: Path, tmp_path: Path, apart: tuple[int, int]
) -> None:
    """One day's file ends and the next begins within a 1m and a 5m window."""
    files = paths(recorded_data, FILES[:2])
    one = new_deployment(tmp_path, "apart")
    for i in apart:
        one.ok("run", files[i], "--as", "spot", "--window", "1s,1m,5m")
    assert one.bars() == expected(trades(files, "spot"), "1s", "1m", "5m")
    assert "no difference" in one.ok("verify")


def test_recordings_that_overlap_count_each_trade_once(
    recorded_data: Path, deployment: Deployment, tmp_path: Path
) -> None:
    (file,) = paths(recorded_data, ["spot_btcusdt_20240808"])
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    for name, part in (("a", lines[:6_000]), ("b", lines[4_000:])):
        (tmp_path / name).write_bytes(b"".join(part))
        deployment.ok("run", tmp_path / name, "--as", "spot", "--window", "2s,1m")
    assert deployment.bars() == expected(trades([file], "spot"), "1m", "2s")
    total = json.loads(deployment.ok("conservation", "--format", "json"))
    stored = sum(row["stored"] for row in total if row["topic"] != "total")
    assert stored == len(lines)
    assert "no difference" in deployment.ok("verify")
