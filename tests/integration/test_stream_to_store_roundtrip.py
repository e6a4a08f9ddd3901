"""Real trades through ``mdp run`` into the store, against bars worked out by hand.

The recorded messages are read with ``json`` and summed with ``decimal`` here, which has nothing in
common with the platform's own way.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from tests.faults import checks
from tests.faults.lab import Lab

from market_data_core.intervals import NS_PER_MS, parse_interval
from market_data_core.testing.oracle import OracleBar

pytestmark = pytest.mark.timeout(180)

_WINDOWS = ("1s", "2s", "1m", "5m")
_SPOT = ("spot_btcusdt_20240808", "spot_ethusdt_20240808", "spot_btcusdt_20240809")
_FUTURES = ("usdm_ethusdt_20240808",)


@dataclass
class _Window:
    """The trades of one window; first and last by time, then by trade id."""

    first: tuple[int, int, Decimal] | None = None
    last: tuple[int, int, Decimal] | None = None
    prices: list[Decimal] = field(default_factory=list)
    volume: Decimal = Decimal(0)
    notional: Decimal = Decimal(0)

    def add(self, time: int, number: int, price: Decimal, size: Decimal) -> None:
        trade = (time, number, price)
        self.first = min(self.first or trade, trade)
        self.last = max(self.last or trade, trade)
        self.prices.append(price)
        self.volume += size
        self.notional += price * size

    def bar(self) -> OracleBar:
        assert self.first is not None
        assert self.last is not None
        volume = float(self.volume)
        return OracleBar(
            float(self.first[2]),
            float(max(self.prices)),
            float(min(self.prices)),
            float(self.last[2]),
            volume,
            float(self.notional) / volume if volume else None,
            len(self.prices),
        )


def _trades(path: Path) -> Iterator[tuple[str, int, int, Decimal, Decimal]]:
    """Symbol, time in ms, id, price and size of every message."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            trade = json.loads(line.split(" ", 1)[1])["data"]
            yield trade["s"], trade["T"], trade["t"], Decimal(trade["p"]), Decimal(trade["q"])


def _bars(provider: str, files: list[Path]) -> dict[checks.StoredKey, OracleBar]:
    windows: dict[checks.StoredKey, _Window] = {}
    for file in files:
        for symbol, time, number, price, size in _trades(file):
            for interval in _WINDOWS:
                length = parse_interval(interval) // NS_PER_MS
                key = provider, symbol, interval, time // length * length * NS_PER_MS
                windows.setdefault(key, _Window()).add(time, number, price, size)
    return {key: window.bar() for key, window in windows.items()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, recorded_data: Path) -> Lab:
    """Spot and futures, each under its own name."""
    lab = Lab(tmp_path_factory.mktemp("roundtrip"), windows=_WINDOWS)
    for name, files in (("binance_spot", _SPOT), ("binance_usdm", _FUTURES)):
        output = lab.run("run", *_paths(recorded_data, files), "--as", name)
        assert " 0 open" in output
    return lab


def _paths(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [str(folder / "binance" / f"{name}.ndjson.gz") for name in names]


def test_every_bar_is_exact(lab: Lab, recorded_data: Path) -> None:
    expected = _bars("binance_spot", [Path(p) for p in _paths(recorded_data, _SPOT)])
    expected |= _bars("binance_usdm", [Path(p) for p in _paths(recorded_data, _FUTURES)])
    assert len(expected) > 500
    assert checks.stored_bars(lab) == expected


def test_every_trade_is_accounted_for(lab: Lab, recorded_data: Path) -> None:
    lines = 0
    for path in _paths(recorded_data, (*_SPOT, *_FUTURES)):
        with gzip.open(path, "rb") as file:
            lines += sum(1 for _ in file)
    counts = [checks.total_counts(lab, topic) for topic in checks.lane_topics(lab)]
    assert all(c.holds() for c in counts)
    assert sum(c.received for c in counts) == sum(c.stored for c in counts) == lines


def test_the_same_files_again_change_nothing(lab: Lab, recorded_data: Path) -> None:
    tables = ("bars_ohlcv", "bars_ohlcv_history")
    before = [checks.query(lab.store_file, f"SELECT * FROM {table}") for table in tables]
    output = lab.run("run", *_paths(recorded_data, _SPOT[::-1]), "--as", "binance_spot")
    assert "no row changed" in output
    assert " 0 inserted, 0 updated" in output
    assert [checks.query(lab.store_file, f"SELECT * FROM {table}") for table in tables] == before


def test_verify_finds_no_difference(lab: Lab) -> None:
    lab.run("verify")


def test_bars_are_shown_as_stored(lab: Lab) -> None:
    command = ("bars", "btcusdt", "--interval", "2s", "--provider", "binance_spot")
    text = lab.run(*command, "--format", "json").strip()
    rows = msgspec.json.decode(b"[" + text.strip("[]").replace("}\n{", "},{").encode() + b"]")
    stored = [b for k, b in checks.stored_bars(lab).items() if k[1:3] == ("BTCUSDT", "2s")]
    assert [row["volume"] for row in rows] == [bar.volume for bar in stored]
    assert [row["vwap"] for row in rows] == [bar.vwap for bar in stored]
    assert {row["provider"] for row in rows} == {"binance_spot"}
