from __future__ import annotations

import builtins
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.errors import UsageError
from market_data_pipeline.providers._formats.options import RecordingOptions

if TYPE_CHECKING:
    from tests.unit.providers.conftest import Recordings

NS = 1_723_161_254_087_896_568
MS = 1_723_161_255_342
TRADE = {"e": "trade", "E": MS + 1, "s": "BTCUSDT", "t": 7, "p": "61837.63000000", "T": MS}
TRADE |= {"q": "0.02000000", "m": True, "M": True}
WANTED = ("recording", "tick", "1s", "BTCUSDT", MS * 10**6, 7, NS, *[61837.63] * 4, 0.02)


def message(**values: Any) -> str:
    return json.dumps({"stream": "btcusdt@trade", "data": TRADE | values})


def bare(**values: Any) -> str:
    return json.dumps(TRADE | values)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{NS} {message()}", WANTED),
        (f"{NS} {bare()}", WANTED),
        (bare(), (*WANTED[:6], MS * 10**6, *WANTED[7:])),
        (f"{NS} {message(e='aggTrade', a=9)}", (*WANTED[:5], 9, *WANTED[6:])),
        (f"{NS} {bare(T=MS * 1000 + 5)}", (*WANTED[:4], MS * 10**6 + 5000, *WANTED[5:])),
    ],
)
def test_binance_messages(recordings: Recordings, text: str, wanted: Any) -> None:
    path = recordings.write([text])
    assert recordings.read(path) == [wanted]
    assert recordings.read(path, name="spot") == [("spot", *wanted[1:])]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{NS} {{}}", "bad_type"),
        (f'{NS} {{"result":null,"id":1}}', "bad_type"),
        (f"{NS} {message(e='depthUpdate')}", "bad_type"),
        (f"{NS} {message(p='1_0')}", "bad_type"),
        (f"{NS} {message(p='')}", "bad_type"),
        (f"{NS} {message(p=5)}", "bad_type"),
        (f"{NS} {message(p='NaN')}", "not_finite"),
        (f"{NS} {message(p='-1')}", "negative"),
        (f"{NS} {message(q='-1')}", "negative"),
        (f"{NS} {message(T=5)}", "bad_timestamp"),
        (f"{NS} {message(T=10**40)}", "bad_timestamp"),
        (f"{NS} {message(T=9 * 10**17)}", "bad_timestamp"),
        (f"9999999999999999999 {message()}", "bad_timestamp"),
        (f"{NS} {message(t=None)}", "bad_type"),
        (f"{NS} {message(t=2**63)}", "bad_type"),
        (f"{NS} {message(s='')}", "bad_type"),
        (f"{NS} {message()[:-3]}", "malformed"),
        (f"{NS}{message()}", "malformed"),
        (f"x {message()}", "malformed"),
        ("12345678901234567890123 {}", "malformed"),
    ],
)
def test_what_is_no_trade_is_kept(recordings: Recordings, text: str, reason: str) -> None:
    path = recordings.write([f"{NS} {message()}", text])
    found = recordings.read(path)
    assert found == [("rejected", reason, text.encode(), "input:2"), WANTED]


def test_the_recorded_trades_are_exact(recordings: Recordings, recorded_data: Path) -> None:
    files = sorted((recorded_data / "binance").glob("*.gz"))
    assert len(files) == 6
    wanted: Counter[Any] = Counter()
    for file in files:
        with gzip.open(file, "rt") as lines:
            for line in lines:
                received, _, text = line.partition(" ")
                trade = json.loads(text)["data"]
                price, size = float(trade["p"]), float(trade["q"])
                key = trade["s"], trade["T"] * 10**6, trade["t"], int(received), price, size
                wanted[key] += 1
    found = recordings.read([str(file) for file in files])
    assert Counter((*item[3:7], *item[10:]) for item in found) == wanted
    assert len(found) == 69_808
    times = [item[4] for item in found]
    assert times == sorted(times)
    small = RecordingOptions(chunk_events=500, symbols=("ETHUSDT",))
    chosen = recordings.read([str(file) for file in files[::-1]], options=small)
    assert chosen == [item for item in found if item[3] == "ETHUSDT"]


DBN_TRADE = (
    *("recording", "tick", "1s", "ESH1", 1_609_160_400_098_821_953, 1_170_380),
    *(1_609_160_400_099_150_057, *[3720.25] * 4, 5),
)
DBN_BAR = ("ESH1", 1_609_160_400 * 10**9, 0, 1_609_160_400 * 10**9)
OHLCV = {
    "1s": (372025, 372050, 372025, 372050, 57),
    "1m": (372025, 372150, 372025, 372100, 353),
    "1h": (372025, 372350, 372025, 372225, 9385),
}


def test_databento_files(recordings: Recordings, recorded_data: Path) -> None:
    seen: Counter[str] = Counter()
    for file in sorted((recorded_data / "databento").iterdir()):
        schema = re.match(r"test_data\.(?:ohlcv-)?(\w+)", file.name)
        assert schema is not None
        found = recordings.read(str(file), options=RecordingOptions(chunk_events=1))
        assert found == recordings.read(str(file))
        seen[schema[1]] += 1
        if schema[1] == "trades":
            assert found[0] == DBN_TRADE
        elif schema[1] in OHLCV:
            assert found[0][1:] == ("bar", schema[1], *DBN_BAR, *OHLCV[schema[1]])
        assert len(found) == (0 if schema[1] == "1d" else 2)
    assert seen == dict.fromkeys(("trades", "1s", "1m", "1h", "1d"), 4)


def test_damaged_and_strange_databento_files(
    recordings: Recordings, recorded_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (recorded_data / "databento" / "test_data.trades.dbn").read_bytes()
    found, error = recordings.read_until_error(recordings.write(whole[:-10]))
    assert "cut off in a record" in error
    assert found == [DBN_TRADE]
    with pytest.raises(UsageError, match="ends before its first record"):
        recordings.open(recordings.write(whole[:100]))
    with pytest.raises(UsageError, match="damaged or is no DBN file"):
        recordings.open(recordings.write(b"DBN\x09" + whole[4:]))
    price = (3720_250_000_000).to_bytes(8, "little")
    undefined = whole.replace(price, (2**63 - 1).to_bytes(8, "little"), 1)
    assert undefined != whole
    lost, kept = recordings.read(recordings.write(undefined))
    assert (lost[1], lost[3]) == ("not_finite", "input:record 1")
    assert len(lost[2]) == 48
    assert kept[0] == "recording"
    late = (1_609_160_400_098_821_953).to_bytes(8, "little")
    found = recordings.read(recordings.write(whole.replace(late, b"\xff" * 8)))
    assert [item[1] for item in found] == ["bad_timestamp", "tick"]

    real_import = builtins.__import__

    def no_driver(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "databento_dbn":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_driver)
    with pytest.raises(UsageError, match=r"market-data-platform\[databento\]"):
        recordings.open(recordings.write(whole))


def test_other_databento_schemas(recordings: Recordings) -> None:
    dbn = pytest.importorskip("databento_dbn")
    metadata = dbn.Metadata("X", 0, None, dbn.SType.INSTRUMENT_ID, dbn.Schema.MBO)
    with pytest.raises(UsageError, match="holds schema mbo; only trades and ohlcv-1s"):
        recordings.open(recordings.write(bytes(metadata)))


def test_binary_tables_inside_gzip(recordings: Recordings) -> None:
    with pytest.raises(UsageError, match="is dbn data inside gzip; decompress it first"):
        recordings.open(recordings.write(gzip.compress(b"DBN\x02" + b"\0" * 100)))
