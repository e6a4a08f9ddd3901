from __future__ import annotations

import gzip
import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import UsageError
from market_data_core.events import Rejected
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.providers._formats.options import RecordingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.providers.conftest import Item, Recordings

    Line = Callable[..., str]

T0 = 1_761_314_521 * NS_PER_S  # 2025-10-24T14:02:01Z
SMALL = RecordingOptions(chunk_events=1)
EVENT = ("feed", "tick", "1s", "SPY", T0 + 234_567_000, 183, T0 + 300_000_000, *[425.15] * 4, 1200)


def rejected(items: list[Item]) -> list[Item]:
    return [item for item in items if item[0] == "rejected"]


def events(items: list[Item]) -> list[Item]:
    return [item for item in items if item[0] != "rejected"]


def test_an_event_is_read_exactly(recordings: Recordings, line: Line) -> None:
    path = recordings.write([line()])
    assert recordings.read(path) == [EVENT]
    assert recordings.read(path, name="other") == [("other", *EVENT[1:])]


def test_the_batches_columns(recordings: Recordings, line: Line) -> None:
    path = recordings.write([line(symbol="spy"), line(symbol="QQQ", h=426.0, seq=184)])
    (batch,) = recordings.open(path).read()
    assert not isinstance(batch, Rejected)
    assert batch.symbols == ("SPY", "QQQ")
    assert batch.ohl is not None
    (batch,) = recordings.open(path, options=RecordingOptions(symbols=("Spy",))).read()
    assert not isinstance(batch, Rejected)
    assert (batch.symbols, batch.ohl, batch.codes.tolist()) == (("SPY",), None, [0])


def test_bars_and_other_providers_keep_apart(recordings: Recordings, line: Line) -> None:
    bar = line(kind="bar", interval="60s", o=1, h=4, l=1, c=2, src_ts="2025-10-24T14:02:00Z")
    path = recordings.write([line(), line(provider="b"), bar, line(seq=184)] * 30)
    items = recordings.read(path)
    assert {item[:3] for item in items} == {
        ("feed", "tick", "1s"),
        ("b", "tick", "1s"),
        ("feed", "bar", "1m"),
    }
    assert items[0][7:] == (1, 4, 1, 2, 1200)
    assert [item[5] for item in items if item[:2] == ("feed", "tick")] == [183, 184] * 30


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "garbage": (b"hello", "malformed"),
    "half": (b'{"ver":1,"provider":"a', "malformed"),
    "utf-8": (b'{"ver":1,"provider":"\xff\xfe"}', "malformed"),
    "msgpack": (b"\x81\xa3ver\x01", "malformed"),
    "array": (b"[1,2,3]", "bad_type"),
    "nothing in it": (b"{}", "bad_type"),
    "long": (b"x" * 10_000_000, "malformed"),
}
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"ver": 2}, "bad_version"),
    "version text": ({"ver": "1"}, "bad_type"),
    "price text": ({"c": "425.1"}, "bad_type"),
    "price missing": ({"c": ...}, "bad_type"),
    "price null": ({"o": None}, "bad_type"),
    "price list": ({"o": [1]}, "bad_type"),
    "nan": ({"c": float("nan")}, "malformed"),
    "infinity": ({"c": float("inf")}, "malformed"),
    "negative price": ({"o": -1, "h": -1, "l": -1, "c": -1}, "negative"),
    "negative size": ({"v": -1}, "negative"),
    "high below low": ({"h": 1.0}, "high_below_low"),
    "year 2300": ({"src_ts": "2300-01-01T00:00:00Z"}, "bad_timestamp"),
    "year 1": ({"src_ts": "0001-10-24T14:02:01Z"}, "bad_timestamp"),
    "short month": ({"src_ts": "2025-1-24T14:02:01.2345678Z"}, "bad_timestamp"),
    "leap second": ({"src_ts": "2025-10-24T14:02:60Z"}, "bad_timestamp"),
    "ten digits": ({"src_ts": "2025-10-24T14:02:01.1234567891Z"}, "bad_timestamp"),
    "signed fraction": ({"src_ts": "2025-10-24T14:02:01.+23456Z"}, "bad_timestamp"),
    "no time": ({"src_ts": "yesterday"}, "bad_timestamp"),
    "time number": ({"src_ts": 5}, "bad_type"),
    "ingest": ({"ingest_ts": "yesterday"}, "bad_timestamp"),
    "provider number": ({"provider": 5}, "bad_type"),
    "provider list": ({"provider": ["a"]}, "bad_type"),
    "provider object": ({"provider": {"a": 1}}, "bad_type"),
    "symbol true": ({"symbol": True}, "bad_type"),
    "symbol empty": ({"symbol": ""}, "bad_type"),
    "lone surrogate": ({"symbol": "\ud800"}, "malformed"),
    "kind": ({"kind": "quote"}, "bad_type"),
    "kind null": ({"kind": None}, "bad_type"),
    "interval": ({"interval": "1y"}, "bad_type"),
    "seq": ({"seq": 2**63}, "bad_type"),
    "seq float": ({"seq": 183.0}, "bad_type"),
    "event id number": ({"event_id": 5}, "bad_type"),
    "event id list": ({"event_id": ["a"]}, "bad_type"),
}
GOOD_VALUES: dict[str, dict[str, Any]] = {
    "defaults": {"kind": ..., "interval": ..., "seq": ..., "ingest_ts": ...},
    "numeric symbol": {"symbol": "600519"},
    "symbol like a list": {"symbol": "[a]"},
    "escapes": {"symbol": "é\n"},
    "surrounding space": {"src_ts": " 2025-10-24T14:02:01Z "},
    "other zone": {"src_ts": "2025-10-24T16:02:01+02:00"},
    "no zone": {"src_ts": "2025-10-24 14:02:01.5"},
    "nanoseconds": {"src_ts": "2025-10-24T14:02:01.123456789Z"},
    "whole seconds": {"src_ts": "2025-10-24T14:02:01Z"},
    "null ingest": {"ingest_ts": None},
    "large number": {"o": 2**70, "h": 2**70, "l": 2**70, "c": 2**70},
    "beyond 53 bits": dict.fromkeys("ohlc", 2**53 + 1),
    "least seq": {"seq": -(2**63)},
    "extra field": {"extra": {"a": [1, "x"]}},
    "event id": {"event_id": "feed|SPY|x|1"},
    "zero": dict.fromkeys("ohlcv", -0.0),
    "bar": {"kind": "bar", "interval": "3600s"},
}


@pytest.mark.parametrize("case", [*BAD_LINES, *BAD_VALUES])
def test_a_bad_line_is_kept_and_harms_no_other(
    recordings: Recordings, line: Line, case: str
) -> None:
    if case in BAD_LINES:
        bad, reason = BAD_LINES[case]
    else:
        values, reason = BAD_VALUES[case]
        bad = line(**values).encode()
    lines = [line(seq=i).encode() for i in range(200)]
    lines.insert(100, bad)
    found = recordings.read(recordings.write(b"\n".join(lines) + b"\n"))
    assert [item[5] for item in events(found)] == list(range(200))
    assert rejected(found) == [("rejected", reason, bad, "input:101")]


@pytest.mark.parametrize("case", GOOD_VALUES)
def test_both_parsers_read_the_same(recordings: Recordings, line: Line, case: str) -> None:
    path = recordings.write([line(**GOOD_VALUES[case]) for _ in range(100)])
    by_column = recordings.read(path)
    assert len(events(by_column)) == 100
    assert by_column == recordings.read(path, options=SMALL)


def test_null_is_no_default(recordings: Recordings, line: Line) -> None:
    """Two nulls in every line have as many quotes as an event_id."""
    path = recordings.write([line(kind=None, interval=None)] * 100)
    assert {item[1] for item in recordings.read(path)} == {"bad_type"}


def test_the_second_of_two_equal_keys_counts(recordings: Recordings, line: Line) -> None:
    doubled = line().replace('"ver":1', '"ver":1,"c":425.15,"v":7').replace(',"v":1200', "")
    path = recordings.write([line() if i % 2 else doubled[:-1] + ',"v":8}' for i in range(100)])
    assert recordings.read(path) == recordings.read(path, options=SMALL)


any_line = st.one_of(
    st.sampled_from([*BAD_VALUES.values(), *((v, "") for v in GOOD_VALUES.values())]),
    st.builds(lambda n: ({"seq": n}, ""), st.integers(0, 99)),
    st.sampled_from(["", " ", "hello", "{}", '{"ver":1', "\r"]),
)


@given(
    st.lists(any_line, max_size=150),
    st.integers(1, 400),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
)
def test_the_cut_into_chunks_changes_nothing(
    recordings: Recordings,
    line: Line,
    lines: list[Any],
    chunk: int,
    newline: str,
    zipped: bool,
) -> None:
    texts = [text if isinstance(text, str) else line(**text[0]) for text in lines]
    data = newline.join(texts).encode()
    path = recordings.write(gzip.compress(data) if zipped else data)
    whole = recordings.read(path)
    assert recordings.read(path, options=RecordingOptions(chunk_events=chunk)) == whole
    kept = sum(bool(text.strip()) for text in texts)
    assert len(whole) == kept


def test_too_long_lines_come_in_pieces(recordings: Recordings, line: Line) -> None:
    long = b"".join(b"%07d " % i for i in range(130))  # 1040 bytes
    lines = [line(seq=1).encode(), long, line(seq=2).encode(), long[:1024], long[:1025]]
    path = recordings.write(b"\n".join(lines))
    for chunk in (1, 1000):
        options = RecordingOptions(max_line_bytes=512, chunk_events=chunk)
        found = recordings.read(path, options=options)
        pieces = [item[2] for item in rejected(found)]
        assert [len(piece) for piece in pieces] == [512, 512, 16, 512, 512, 512, 512, 1]
        assert b"".join(pieces[:3]) == long
        assert {item[1] for item in rejected(found)} == {"too_long"}
        assert [item[3] for item in rejected(found)[2:4]] == ["input:2", "input:4"]
        assert [item[5] for item in events(found)] == [1, 2]


@given(st.lists(st.integers(0, 700), max_size=12), st.integers(1, 3), st.booleans())
def test_where_lines_are_cut(
    recordings: Recordings, lengths: list[int], chunk: int, newline: bool
) -> None:
    path = recordings.write(b"\n".join(b"x" * n for n in lengths) + b"\n" * newline)
    options = RecordingOptions(max_line_bytes=200, chunk_events=chunk)
    wanted = []
    for number, n in enumerate(lengths, 1):
        reason = "too_long" if n > 200 else "malformed"
        pieces = [b"x" * min(200, n - start) for start in range(0, n, 200)]
        wanted += [("rejected", reason, piece, f"input:{number}") for piece in pieces]
    assert recordings.read(path, options=options) == wanted


def test_an_endless_line_needs_little_memory(recordings: Recordings) -> None:
    path = recordings.write(gzip.compress(b"x" * 100_000_000, 1))
    options = RecordingOptions(max_line_bytes=1 << 20)
    recording = recordings.open(path, options=options)
    held = total = 0
    for item in recording.read():
        assert isinstance(item, Rejected)
        total += len(item.original)
        held = max(held, len(item.original))
    assert (total, held) == (100_000_000, 1 << 20)


@pytest.mark.parametrize("data", [b"", b"\n\n \n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_events(recordings: Recordings, data: bytes) -> None:
    assert recordings.read(recordings.write(data)) == []


def test_garbage_is_kept_line_by_line(recordings: Recordings) -> None:
    found = recordings.read(recordings.write("hello, world\n\nwhat is this\n"))
    assert found == [
        ("rejected", "malformed", b"hello, world", "input:1"),
        ("rejected", "malformed", b"what is this", "input:3"),
    ]


def test_a_byte_order_mark_is_no_content(recordings: Recordings, line: Line) -> None:
    assert recordings.read(recordings.write("\ufeff" + line())) == [EVENT]


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_cut_off_gzip_gives_what_it_has(recordings: Recordings, line: Line, keep: float) -> None:
    data = gzip.compress("".join(line(seq=i) + "\n" for i in range(20_000)).encode())
    path = recordings.write(data[: int(len(data) * keep)])
    found, error = recordings.read_until_error(path)
    assert "cut off" in error
    assert path in error
    assert [item[5] for item in events(found)] == list(range(len(events(found))))
    assert len(events(found)) > 2000
    assert len(rejected(found)) <= 1


def test_a_number_that_was_cut_off_is_not_used(recordings: Recordings) -> None:
    rows = "".join(f"A,{1_761_314_521 + i},190.12,345\n" for i in range(50))
    data = gzip.compress(b"symbol,time,price,size\n" + rows.encode())
    for end in range(len(data) - 40, len(data) - 8):
        found, _ = recordings.read_until_error(recordings.write(data[:end]))
        assert {item[10:] for item in events(found)} == {(190.12, 345)}
        assert {item[1] for item in rejected(found)} <= {"malformed"}


def test_gzip_members_and_trailing_bytes(recordings: Recordings, line: Line) -> None:
    member = gzip.compress(line().encode() + b"\n")
    assert recordings.read(recordings.write(member * 3 + b"\0" * 600)) == [EVENT] * 3
    with pytest.raises(UsageError, match="other bytes follow"):
        recordings.read(recordings.write(member + b"rest"))
    damaged = bytearray(gzip.compress(os.urandom(4000)))
    damaged[2000:2100] = b"\0" * 100
    with pytest.raises(UsageError, match="damaged"):
        recordings.read(recordings.write(bytes(damaged)), options=RecordingOptions(format="ndjson"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.ndjson", "nowhere.ndjson cannot be read"),
        (".", "is a directory"),
    ],
)
def test_what_cannot_be_opened(recordings: Recordings, path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recordings.open(path)


def test_wrong_usage(recordings: Recordings) -> None:
    with pytest.raises(UsageError, match="binary data"):
        recordings.open(recordings.write(b"\x7fELF\0\0\0" + os.urandom(100)))
    with pytest.raises(UsageError, match="at least one file"):
        recordings.open([])
    with pytest.raises(UsageError, match="at most once"):
        recordings.open(["-", "-"])
    with pytest.raises(UsageError, match="format 'xml' is not known; use one of auto, binance"):
        RecordingOptions(format="xml")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="interval '5x'"):
        RecordingOptions(interval="5x")
    with pytest.raises(UsageError, match="chunk_events is 0"):
        RecordingOptions(chunk_events=0)


def test_standard_input_and_pipes_are_read_again(
    recordings: Recordings, line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = gzip.compress((line() + "\n").encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    recording = recordings.open("-")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    piped = recordings.open(str(pipe))
    writer.join()
    for reading in (recording, piped, recording):
        assert recordings.flat(reading.read()) == [EVENT]
    assert recording.lane == piped.lane == recordings.open(recordings.write(data)).lane
    spool = recordings.folder / "spool"
    assert len(list(spool.iterdir())) == 2
    del recording, piped, reading
    assert list(spool.iterdir()) == []


def test_the_lane_names_content_and_options(recordings: Recordings, line: Line) -> None:
    one, two = recordings.write([line()]), recordings.write([line(seq=2)])
    lane = recordings.open([one, two]).lane
    assert len(lane) == 16
    assert lane == recordings.open([two, one]).lane
    assert lane == recordings.open([one, two], options=SMALL).lane
    others = [
        recordings.open(one).lane,
        recordings.open([one, one]).lane,
        recordings.open([one, two], name="a").lane,
        recordings.open([one, two], options=RecordingOptions(symbols=("A",))).lane,
        recordings.open([one, two], options=RecordingOptions(max_line_bytes=9)).lane,
        recordings.open([one, two]).presorted().lane,
    ]
    assert len({lane, *others}) == 7
    first, second = (recordings.open(paths) for paths in ([one, two], [two, one]))
    assert recordings.flat(first.read()) == recordings.flat(second.read())
