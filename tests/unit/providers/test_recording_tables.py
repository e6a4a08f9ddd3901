from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import UsageError
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.providers._formats import csv_file, parquet_file
from market_data_pipeline.providers._formats.numbers import float_column
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.times import time_column

if TYPE_CHECKING:
    from tests.unit.providers.conftest import Item, Recordings

S0 = 1_761_314_521
T0 = S0 * NS_PER_S  # 2025-10-24T14:02:01Z
ISO = "2025-10-24T14:02:01"
SMALL = RecordingOptions(chunk_events=1)


def short(items: list[Item]) -> list[Item]:
    """(symbol, src_ts, seq, price, size) of events; the rejected as they are."""
    return [i if i[0] == "rejected" else (*i[3:6], i[10], i[11]) for i in items]


@pytest.mark.parametrize(
    "header",
    [
        "symbol,timestamp,price,size,trade_id",
        "Ticker;Time;PX;Qty;Seq",
        "sym\tts\tlast\tvolume\tid",
        '"INSTRUMENT","datetime","p","q","tradeid"',
        "\ufeffsymbol,ts_event,price,quantity,sequence",
        "symbol,date,px,amount,trade_id\r",
    ],
)
def test_columns_are_found_by_name(recordings: Recordings, header: str) -> None:
    separator = next(s for s in ";\t," if s in header)
    row = separator.join(["spy", f"{ISO}.5Z", "425.15", "3", "7"])
    path = recordings.write(f"{header}\n{row}\n\n{row}")
    assert short(recordings.read(path)) == [("SPY", T0 + NS_PER_S // 2, 7, 425.15, 3)] * 2


def test_columns_are_found_as_told(recordings: Recordings) -> None:
    path = recordings.write(f"when,my_px,n,id\n{ISO},1.5,2,x1\n")
    columns = {"timestamp": "when", "px": "my_px", "size": "n", "trade_id": ""}
    options = RecordingOptions(columns=columns, symbol="Spy")
    assert short(recordings.read(path, options=options)) == [("SPY", T0, 0, 1.5, 2)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("time,px,size\n", {}, "no column for symbol; the file has time, px, size. Name it with"),
        ("time,px,size\n", {}, "--column symbol=NAME or give --symbol"),
        ("symbol,time,x,y\n1,2,3,4\n", {}, "no column for size, price; the file has symbol, time"),
        ("a,b\n1,2\n", {}, "no column for timestamp, size, price, symbol; the file has a, b"),
        ("symbol,time,px,size\n", {"columns": {"price": "cost"}}, "there is no column 'cost'"),
        ("symbol,time,px,size\n", {"columns": {"cost": "px"}}, "'cost' is none of symbol, times"),
        ("symbol,time,px,px\n", {}, "must name the columns, each once"),
        ("hello\n", {"format": "csv"}, "must name the columns"),
        ("symbol,time,o,h,l,c,v\nA,1761314521,1,1,1,1,1\n", {}, "give it with --interval"),
    ],
)
def test_what_is_missing_is_named(
    recordings: Recordings, text: str, options: dict[str, Any], message: str
) -> None:
    path = recordings.write(text, "table.csv")
    with pytest.raises(UsageError) as error:
        recordings.open(path, options=RecordingOptions(**options))
    assert message in str(error.value)
    assert path in str(error.value) or "columns" in options


TIMES: list[tuple[str, int | None]] = [
    (f"{ISO}Z", T0),
    (f"{ISO}", T0),
    (f"{ISO}.123456789Z", T0 + 123_456_789),
    (f"{ISO.replace('T', ' ')}.25+00:00", T0 + NS_PER_S // 4),
    ("2025-10-24T16:02:01+02:00", T0),
    ("2025-10-24", T0 - T0 % (86_400 * NS_PER_S)),
    (f"{S0}", T0),
    (f"{S0}000", T0),
    (f"{S0}000001", T0 + 1000),
    (f"{S0}000000001", T0 + 1),
    (f"{S0}.342817", T0 + 342_817_000),
    (f"{S0}.1234567891", T0 + 123_456_789),
    (f"{S0}123.5", T0 + 123_500_000),
    ("1.761314521e9", T0),
    ("100000000", 10**17),
    ("99999999", None),
    ("0", None),
    ("-5", None),
    ("20251024", None),
    ("9999999999999999999", None),
    ("123456789012345678901234567890", None),
    ("-9223372036854775808", None),
    ("", None),
    ("14:02:01", None),
    ("24/10/2025", None),
    ("nan", None),
    ("1e99", None),
]


@pytest.mark.parametrize(("text", "wanted"), TIMES)
def test_times(recordings: Recordings, text: str, wanted: int | None) -> None:
    row = f"A,{text},1,2,3"
    for others in ([], ["A,2025-10-24,1,2,3"], ["A,1761264000.0,1,2,3"]):
        path = recordings.write(["symbol,time,price,size,id", row, *others])
        found = short(recordings.read(path))
        if wanted is None:
            assert ("rejected", "bad_timestamp", row.encode(), "input:2") in found
        else:
            assert ("A", wanted, 3, 1, 2) in found
        assert len(found) == 1 + len(others)


@pytest.mark.parametrize(
    ("unit", "text", "wanted"),
    [
        ("s", "1761314521", T0),
        ("ms", "1761314521", None),
        ("ms", "1761314521000.5", T0 + 500_000),
        ("us", "1761314521000001", T0 + 1000),
        ("ns", "1761314521000000001", T0 + 1),
        ("s", "1761314521000", None),
        ("s", str(S0 + 2**55), None),  # in 64 bits, the nanoseconds would wrap around to T0
    ],
)
def test_times_of_a_known_unit(
    recordings: Recordings, unit: Any, text: str, wanted: int | None
) -> None:
    path = recordings.write(f"symbol,time,price,size,id\nA,{text},1,2,3\n")
    (found,) = recordings.read(path, options=RecordingOptions(time_unit=unit))
    assert found[1 if wanted is None else 4] == (wanted or "bad_timestamp")


NUMBERS: dict[str, str | None] = {
    "inf": "not_finite",
    "-Infinity": "not_finite",
    "NaN": "not_finite",
    "1e400": "not_finite",
    "-0.01": "negative",
    "": "bad_type",
    "1_000": "bad_type",
    "1,5": "malformed",
    "abc": "bad_type",
    "0x10": "bad_type",
    "1.5 ": None,
    "+1.5": None,
    "15e-1": None,
    '"1.5"': None,
}


@pytest.mark.parametrize(("text", "reason"), NUMBERS.items())
def test_numbers(recordings: Recordings, text: str, reason: str | None) -> None:
    rows = [f"A,{ISO}Z,1.5,2,{i}" for i in range(99)]
    rows.insert(50, bad := f"A,{ISO}Z,{text},2,99")
    path = recordings.write(["symbol,time,price,size,id", *rows])
    found = recordings.read(path)
    assert found == recordings.read(path, options=SMALL)
    assert len(found) == 100
    lost = [item for item in found if item[0] == "rejected"]
    assert lost == ([("rejected", reason, bad.encode(), "input:52")] if reason else [])
    assert {item[10] for item in found if item[0] != "rejected"} == {1.5}


@given(st.floats(0, allow_infinity=False, allow_nan=False))
def test_texts_become_the_nearest_float(value: float) -> None:
    texts = [repr(value), f"{value:.17g}", f"{Decimal(value):f}"[:700]]
    assert float_column(pl.Series(texts))[0].tolist() == [float(text) for text in texts]


@given(st.lists(st.decimals("0.0001", "99999", places=8), min_size=1))
def test_decimals_and_float32(values: list[Decimal]) -> None:
    series = pl.Series(values, dtype=pl.Decimal(20, 8))
    assert float_column(series)[0].tolist() == [float(value) for value in values]
    assert float_column(pl.Series([425.1, 0.1], dtype=pl.Float32))[0].tolist() == [425.1, 0.1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"A,{ISO}Z,1,2,3,4", "malformed"),
        (f'A,{ISO}Z,1,2,"3', "malformed"),
        (f"A,{ISO}Z,1", "bad_type"),
        (f",{ISO}Z,1,2,3", "bad_type"),
        (f"A,{ISO}Z,1,2,x", "bad_type"),
        (f"A,{ISO}Z,1,2,9223372036854775808", "bad_type"),
    ],
)
def test_rows_that_break_the_table(recordings: Recordings, row: str, reason: str) -> None:
    good = f"A,{ISO}Z,1.5,2,1"
    path = recordings.write(["symbol,time,price,size,id", *[good] * 50, row, *[good] * 50])
    found = short(recordings.read(path))
    assert sorted(found, key=str) == sorted(short(recordings.read(path, options=SMALL)), key=str)
    assert found.count(("A", T0, 1, 1.5, 2)) == 100
    assert ("rejected", reason, row.encode(), "input:52") in found


def test_bytes_that_are_no_text(recordings: Recordings) -> None:
    rows = [b"symbol,time,price,size", b"A,1761314521,1,2", b"\xff,1761314521,1,2"]
    found = short(recordings.read(recordings.write(b"\r\n".join(rows))))
    assert found == [("rejected", "malformed", rows[2], "input:3"), ("A", T0, 0, 1, 2)]


def test_bars(recordings: Recordings) -> None:
    rows = [f"{s},{S0 + 60 * i},2,3,1,2.5,{i}" for i in (0, 1, 5) for s in "AB"]
    path = recordings.write(["symbol,time,open,high,low,close,volume", *rows, f"A,{S0},2,2,3,2,2"])
    for options in (RecordingOptions(), SMALL):
        found = recordings.read(path, options=options)
        assert {item[1:3] for item in found[1:]} == {("bar", "1m")}
        assert found[-1] == (
            *("recording", "bar", "1m", "B", T0 + 300 * NS_PER_S, 0, T0 + 300 * NS_PER_S),
            *(2, 3, 1, 2.5, 5),
        )
        assert found[0][:2] == ("rejected", "high_below_low")
    given_interval = recordings.read(path, options=RecordingOptions(interval="120s"))
    assert {item[2] for item in given_interval[1:]} == {"2m"}


def test_interval_and_provider_columns(recordings: Recordings) -> None:
    rows = [f"A,{S0},1,1,1,1,1,{interval},{feed}" for interval, feed in [("60s", "x"), ("1h", "")]]
    bad = f"A,{S0},1,1,1,1,1,1y,x"
    path = recordings.write(["symbol,t,o,h,l,c,v,interval,provider", *rows, bad])
    options = RecordingOptions(columns={"time": "t"})
    found = recordings.read(path, options=options)
    assert found[0] == ("rejected", "bad_type", bad.encode(), "input:4")
    assert [item[:3] for item in found[1:]] == [("x", "bar", "1m"), ("recording", "bar", "1h")]
    assert {item[0] for item in recordings.read(path, options=options, name="me")[1:]} == {"me"}


def test_an_empty_table(recordings: Recordings) -> None:
    assert recordings.read(recordings.write("symbol,time,price,size\n")) == []
    assert recordings.read(recordings.write("symbol,time,o,h,l,c,v\n")) == []


def parquet(recordings: Recordings, frame: pl.DataFrame) -> str:
    path = recordings.write(b"", "table.parquet")
    frame.write_parquet(path, row_group_size=40)
    return path


MOMENT = dt.datetime(2025, 10, 24, 14, 2, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([MOMENT], dtype=pl.Datetime("ns", "UTC")),
        pl.Series([MOMENT], dtype=pl.Datetime("ms", "Europe/Berlin")),
        pl.Series([MOMENT.replace(tzinfo=None)], dtype=pl.Datetime("us")),
        pl.Series([S0], dtype=pl.UInt64),
        pl.Series([float(S0)]),
        pl.Series([Decimal(S0)]),
        pl.Series([f"{ISO}Z"]),
    ],
)
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32, pl.Int32, pl.Decimal(10, 2), pl.String])
def test_parquet_types(recordings: Recordings, times: pl.Series, dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"Symbol": ["a"], "ts": times, "id": [7.0]})
    numbers = pl.Series([4], dtype=pl.Int64).cast(dtype)
    path = parquet(recordings, frame.with_columns(px=numbers, qty=numbers))
    assert short(recordings.read(path)) == [("A", T0, 7, 4, 4)]


def test_parquet_rows_that_break_a_rule(recordings: Recordings) -> None:
    frame = pl.DataFrame(
        {
            "symbol": ["A", None, "A", "A", "A", "A"],
            "time": [MOMENT] * 3 + [None] + [MOMENT] * 2,
            "price": [1.0, 1.0, None, 1.0, float("nan"), -1.0],
            "size": [1] * 6,
            "note": ["good", "symbol", "price", "time", "nan", "negative"],
        }
    )
    found = short(recordings.read(parquet(recordings, frame)))
    assert found[-1] == ("A", T0, 0, 1, 1)
    reasons = [item[1] for item in found[:-1]]
    assert reasons == ["bad_type", "bad_type", "bad_timestamp", "not_finite", "negative"]
    assert [json.loads(item[2])["note"] for item in found[:-1]] == frame["note"].to_list()[1:]
    assert found[0][3] == "table.parquet:row 2"


def test_parquet_in_slices(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "_SLICE_CHUNKS", 1)
    frame = pl.DataFrame({"time": [S0 + i % 50 for i in range(300)], "price": range(300)})
    path = parquet(recordings, frame.with_columns(symbol=pl.lit("A"), size=pl.lit(1)))
    whole = recordings.read(path)
    assert len(whole) == 300
    assert [item[5] for item in whole[:12]] == [0, 1, 2, 3, 4, 5] * 2
    for chunk in (1, 7, 41):
        assert recordings.read(path, options=RecordingOptions(chunk_events=chunk)) == whole


def test_parquet_bars_and_damage(recordings: Recordings) -> None:
    bars = {name: [1.0, 1.0] for name in ("open", "high", "low", "close", "volume")}
    path = parquet(recordings, pl.DataFrame({"symbol": "A", "time": [S0, S0 + 3600], **bars}))
    assert [item[1:3] for item in recordings.read(path)] == [("bar", "1h")] * 2
    with pytest.raises(UsageError, match="is damaged or is no Parquet file"):
        recordings.open(recordings.write(b"PAR1" + b"\0" * 100))
    with pytest.raises(UsageError, match="no column for"):
        recordings.open(parquet(recordings, pl.DataFrame({"a": [1]})))


def test_absurd_typed_times() -> None:
    days = pl.Series([10**6, 2**31 - 1, 20_000], dtype=pl.Int32).cast(pl.Date)
    times, details = time_column(days, "auto")
    assert set(details) == {0, 1}
    assert times[2] == 20_000 * 86_400 * NS_PER_S
    micros = pl.Series([2**62, -(2**63), None], dtype=pl.Int64).cast(pl.Datetime("us"))
    assert set(time_column(micros, "auto")[1]) == {0, 1, 2}


def test_the_interval_is_told_by_a_bounded_part(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "_INFER_ROWS", 4)
    rows = [f"A,{S0 + step},1,1,1,1,1" for step in (0, 120, 60, 300, 301)]
    path = recordings.write(["symbol,time,o,h,l,c,v", *rows])
    for options in (RecordingOptions(), SMALL):
        assert {item[2] for item in recordings.read(path, options=options)} == {"1m"}
