from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import RejectedError
from market_data_core.events import (
    REASONS,
    SRC_TS_MAX,
    SRC_TS_MIN,
    EventBatch,
    StreamEvent,
    code_dtype,
    concat_batches,
    event_id,
    format_ts,
    invalid_rows,
    is_provider,
    is_symbol,
    make_batch,
    parse_ts,
)
from market_data_core.partitioning import murmur2, partition_of
from market_data_core.wire import BatchBuilder, decode_event

NS = 10**9
T0 = 1_761_314_521 * NS  # 2025-10-24T14:02:01Z
WIRE = {
    "ver": 1, "provider": "ibkr_primary", "symbol": "SPY", "kind": "tick", "interval": "1s",
    "src_ts": "2025-10-24T14:02:01.234567Z", "ingest_ts": "2025-10-24T14:02:01.300000Z",
    "o": 425.1, "h": 425.2, "l": 425.0, "c": 425.15, "v": 1200, "seq": 183,
    "event_id": "ibkr_primary|SPY|2025-10-24T14:02:01.234567Z|183",
}  # fmt: skip


def wire(**changes: object) -> bytes:
    return msgspec.json.encode({**WIRE, **changes})


def without(*names: str) -> bytes:
    return msgspec.json.encode({k: v for k, v in WIRE.items() if k not in names})


def reason_of(data: bytes) -> str:
    with pytest.raises(RejectedError) as caught:
        decode_event(data)
    assert caught.value.reason in REASONS
    assert str(caught.value)
    return caught.value.reason


# --- times


@given(st.integers(SRC_TS_MIN, SRC_TS_MAX - 1))
def test_a_time_returns_from_its_text(ts_ns: int) -> None:
    text = format_ts(ts_ns)
    assert parse_ts(text) == ts_ns
    assert len(text.partition(".")[2]) == (7 if ts_ns % 1000 == 0 else 10)


@given(
    st.datetimes(datetime(1900, 1, 2), datetime(2199, 12, 30)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " "]),
)
def test_offsets_are_taken_off(moment: datetime, minutes: int, between: str) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    text = moment.isoformat(between, "microseconds") + f"{sign}{hours:02}:{rest:02}"
    delta = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (delta.days * 86_400 + delta.seconds) * NS + delta.microseconds * 1000
    assert parse_ts(text) == whole - minutes * 60 * NS


@pytest.mark.parametrize(
    ("text", "ts_ns"),
    [
        ("2025-10-24T14:02:01Z", T0),
        (" 2025-10-24T14:02:01 ", T0),
        ("2025-10-24 14:02:01+00:00", T0),
        ("20251024T140201Z", T0),
        ("20251024T140201.5Z", T0 + NS // 2),
        ("2025-10-24T14:02:01.5Z", T0 + NS // 2),
        ("2025-10-24T14:02:01,5Z", T0 + NS // 2),
        ("2025-10-24T14:02:01.123456789Z", T0 + 123_456_789),
        ("2025-10-24T16:02:01.000000001+02:00", T0 + 1),
        ("2025-10-24", T0 - T0 % (86_400 * NS)),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("1900-01-01T00:00:00Z", SRC_TS_MIN),
        ("2199-12-31T23:59:59.999999999Z", SRC_TS_MAX - 1),
    ],
)
def test_iso_8601_is_read(text: str, ts_ns: int) -> None:
    assert parse_ts(text) == ts_ns


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "1761314521", "2025-13-01", "2025-10-24T25:00:00Z", "2025-10-24T14:02:01.Z",
        "2025-10-24T14:02:01.1234567891Z", "2025-10-24T14:02:01.١Z", "2025-10-24T14:02.5Z",
        "2025-10-24.5", "2025-10-24T14.5", "2025-10-24T14:02:01+00:00:00.5", "24/10/2025",
        "2025-10-24T14:02:011Z", "2025-10-24T14:02:01.1x", "2025-10-24T14:02:01+1",
        "2025-10-24T14:02:01.5.5Z", "1899-12-31T23:59:59Z", "2200-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_time_is_rejected_shortly(text: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse_ts(text)
    assert caught.value.reason == "bad_timestamp"
    assert len(str(caught.value)) < 200


@given(
    st.integers(0, 30),
    st.sampled_from(["", "0", "5", "9", "x", ":", ".", "Z", "١", " ", "60", "24", "-"]),
    st.integers(0, 10),
)
def test_the_common_spelling_is_read_as_every_other(place: int, piece: str, digits: int) -> None:
    plain = f"2025-10-24T14:02:01.{'123456789'[:digits]}Z"
    text = plain[:place] + piece + plain[place + 1 :]
    found: list[int | None] = []
    for spelling in (text, f" {text}"):  # a blank makes it uncommon
        try:
            found.append(parse_ts(spelling))
        except RejectedError:
            found.append(None)
    assert found[0] == found[1]


def test_event_ids_print_nine_digits_only_where_needed() -> None:
    assert event_id("p", "SPY", T0 + 234_567_000, 183) == "p|SPY|2025-10-24T14:02:01.234567Z|183"
    assert event_id("p", "SPY", T0 + 1, -1) == "p|SPY|2025-10-24T14:02:01.000000001Z|-1"


# --- the wire


def test_the_documented_event_is_read_from_json_and_msgpack() -> None:
    event = decode_event(wire())
    assert event == decode_event(msgspec.msgpack.encode(WIRE))
    assert (event.c, event.v, event.seq) == (425.15, 1200.0, 183)
    assert msgspec.json.decode(msgspec.json.encode(event)) == WIRE


def test_names_of_the_greatest_length_are_read_and_travel() -> None:
    names = {"provider": "x" * 64, "symbol": "ß" * 32}
    builder = BatchBuilder()
    builder.add(decode_event(wire(**names)), 0)
    ((batch,), _) = builder.build()
    assert batch.symbols == ("SS" * 32,)
    assert all(map(is_symbol, batch.symbols))
    assert is_provider(batch.provider)


def test_optional_fields_may_be_missing_and_unknown_ones_there() -> None:
    data = without("kind", "interval", "ingest_ts", "seq", "event_id")[:-1] + b',"venue":"X"}'
    event = decode_event(data)
    assert (event.kind, event.interval, event.seq, event.ingest_ts) == ("tick", "1s", 0, None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"\x00\xff", "malformed"),
        (b"{", "malformed"),
        (wire()[:-5], "malformed"),
        (wire() + b"}", "malformed"),
        (wire(symbol="@").replace(b"@", b"\xff"), "malformed"),
        (wire(symbol="@").replace(b"@", b"\\ud800"), "malformed"),
        (wire(c=8.25).replace(b"8.25", b"NaN"), "malformed"),
        (wire()[:-1] + b',"x":' + b"[" * 100_000, "malformed"),
        (msgspec.msgpack.encode(WIRE)[:-1], "malformed"),
        (wire(ver=2), "bad_version"),
        (wire(ver=2, c="other shape"), "bad_version"),
        (msgspec.msgpack.encode({"ver": 7}), "bad_version"),
        (wire(ver="1"), "bad_type"),
        (wire(c="425.15"), "bad_type"),
        (wire(c=None), "bad_type"),
        (wire(c=8.25).replace(b"8.25", b"1e999"), "bad_type"),
        (wire(seq=1.5), "bad_type"),
        (wire(seq=8).replace(b'"seq":8', b'"seq":' + b"9" * 30), "bad_type"),
        (wire(kind="quote"), "bad_type"),
        (wire(symbol=""), "bad_type"),
        (wire(provider=""), "bad_type"),
        (wire(symbol="X" * 65), "bad_type"),
        (wire(symbol="ß" * 33), "bad_type"),
        (wire(provider="x" * 65), "bad_type"),
        (without("src_ts"), "bad_type"),
        (without("c"), "bad_type"),
        (b"[1]", "bad_type"),
        (b"null", "bad_type"),
        # the field that fails stands before something that cannot be read at all
        (wire(seq="x")[:-1] + b',"x":' + b"[" * 100_000, "bad_type"),
        (b"\x83\xa3ver\x01\xa1o\xa1x\xa1x" + b"\x91" * 100_000, "bad_type"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_read_is_rejected_with_its_reason(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=20).map(lambda b: wire()[:-20] + b)))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    reason = "none"
    try:
        decode_event(data)
    except RejectedError as error:
        reason = error.reason
    assert reason in {"none", *REASONS}


# --- values


def test_rows_that_break_a_rule_are_found_under_their_first_reason() -> None:
    nan, inf = np.nan, np.inf
    rows = [
        # open, high, low, close, volume, src_ts
        (1.0, 1.0, 1.0, 1.0, 1.0, T0),
        (1.0, 1.0, 1.0, nan, 1.0, T0),
        (1.0, 1.0, 1.0, 1.0, inf, T0),
        (1.0, 1.0, 1.0, 1.0, -1.0, T0),
        (-1.0, 1.0, -1.0, 1.0, 1.0, T0),
        (1.0, 0.5, 1.0, 1.0, 1.0, T0),
        (1.0, 2.0, 1.5, 1.0, 1.0, T0),
        (1.0, 1.0, 1.0, 1.0, 1.0, SRC_TS_MAX),
        (1.0, 1.0, 1.0, -inf, 1.0, SRC_TS_MIN - 1),
        (0.0, 0.0, 0.0, 0.0, 0.0, SRC_TS_MIN),
    ]
    columns = list(zip(*rows, strict=True))
    o, h, low, c, v = (np.array(x, np.float64) for x in columns[:5])
    found = invalid_rows(o, h, low, c, v, np.array(columns[5], np.int64))
    assert {reason: mask.nonzero()[0].tolist() for reason, mask in found.items()} == {
        "not_finite": [1, 2, 8],
        "negative": [3, 4],
        "high_below_low": [5, 6],
        "bad_timestamp": [7],
    }


# --- columns


def batch(*prices: float, provider: str = "p", symbols: tuple[str, ...] = ()) -> EventBatch:
    n = len(prices)
    return make_batch(
        provider, symbols or ("spy",) * n, [T0 + i for i in range(n)], range(n), prices, [1.0] * n
    )


def test_batches_become_wire_events_and_return() -> None:
    event = decode_event(wire())
    builder = BatchBuilder()
    builder.add(event, 0)
    (built,), rejected = builder.build()
    assert rejected == []
    assert list(built.events()) == [event]
    assert not builder


def test_a_builder_sorts_by_stream_and_hands_back_what_is_wrong() -> None:
    builder = BatchBuilder()
    given_changes: list[dict[str, object]] = [
        {}, {"c": 1e9}, {"kind": "bar", "interval": "60s"}, {"provider": "q"}, {"v": -1.0}, {},
    ]  # fmt: skip
    for i, changes in enumerate(given_changes):
        builder.add(decode_event(wire(**changes)), 0, token=i)
    batches, rejected = builder.build()
    assert [(b.stream, len(b)) for b in batches] == [
        (("ibkr_primary", "tick", ""), 2),
        (("ibkr_primary", "bar", "1m"), 1),
        (("q", "tick", ""), 1),
    ]
    assert sorted(rejected) == [(1, "high_below_low"), (4, "negative")]
    assert builder.build() == ([], [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"src_ts": "soon"}, "bad_timestamp"),
        ({"ingest_ts": "soon"}, "bad_timestamp"),
        ({"interval": "1 fortnight"}, "bad_type"),
    ],
)
def test_a_builder_does_not_take_what_it_cannot_read(
    changes: dict[str, object], reason: str
) -> None:
    builder = BatchBuilder()
    with pytest.raises(RejectedError) as caught:
        builder.add(decode_event(wire(**changes)), 0)
    assert caught.value.reason == reason
    assert not builder


def test_a_missing_ingest_time_is_the_readers() -> None:
    builder = BatchBuilder()
    builder.add(decode_event(without("ingest_ts")), T0 + 5)
    assert builder.build()[0][0].ingest_ts.tolist() == [T0 + 5]


def test_joined_batches_share_one_list_of_symbols() -> None:
    joined = concat_batches(
        [batch(1.0, 2.5, symbols=("a", "b")), batch(3.25, 4.0, symbols=("B", "C"))]
    )
    assert joined.symbols == ("A", "B", "C")
    assert [e.symbol for e in joined.events()] == ["A", "B", "B", "C"]
    assert joined.close.to_floats().tolist() == [1.0, 2.5, 3.25, 4.0]
    assert joined.codes.dtype == code_dtype(3) == np.uint16


def test_trades_joined_with_aggregates_get_their_own_open_high_and_low() -> None:
    aggregate = make_batch("p", ["SPY"], [T0], [1], [2.0], [1.0], ohl=([1.0], [3.0], [0.5]))
    joined = concat_batches([batch(9.0), aggregate])
    assert [(e.o, e.h, e.l, e.c) for e in joined.events()] == [
        (9.0, 9.0, 9.0, 9.0),
        (1.0, 3.0, 0.5, 2.0),
    ]


def test_only_batches_of_one_stream_can_be_joined() -> None:
    with pytest.raises(ValueError, match="one provider"):
        concat_batches([batch(1.0), batch(1.0, provider="q")])


@pytest.mark.parametrize("index", [slice(1, 3), np.array([1, 2]), np.array([False, True, True])])
def test_rows_are_taken_from_every_column(index: slice) -> None:
    taken = batch(1.0, 2.5, 3.0).take(index)
    assert [(e.c, e.seq) for e in taken.events()] == [(2.5, 1), (3.0, 2)]
    assert len(taken) == 2


def test_universes_of_any_size_have_codes() -> None:
    assert code_dtype(1 << 16) is np.uint16
    assert code_dtype((1 << 16) + 1) is np.uint32


def test_wire_events_are_never_changed() -> None:
    event: StreamEvent = decode_event(wire())
    with pytest.raises(AttributeError):
        event.c = 1.0  # type: ignore[misc]


# --- partitions


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # from the tests of Kafka's Java client
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected % 2**32


@given(st.text(min_size=1, max_size=20), st.integers(1, 100))
def test_a_partition_is_the_positive_hash_modulo_their_number(symbol: str, n: int) -> None:
    assert partition_of(symbol, n) == (murmur2(symbol.encode()) % 2**31) % n
