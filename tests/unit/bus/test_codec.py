"""The codec on known payloads: what it packs, what it recognises, what it refuses."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pytest

from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, Rejected, StreamEvent, invalid_rows, make_batch
from market_data_core.records import Mark
from market_data_core.scaled import Scaled
from market_data_pipeline.bus.codec import decode, encode_columns, encode_events, encode_mark
from market_data_pipeline.bus.codec import encode_rejected as encode_rejected_input

T0 = 1_761_314_520 * 10**9
COUNT = 4  # symbol codes, src_ts, seq, ingest_ts come before the prices


def trades(n: int = 5, **changes: Any) -> EventBatch:
    """Trades of a few symbols, one a millisecond."""
    columns: dict[str, Any] = {
        "symbols": [f"S{i % 3}" for i in range(n)],
        "src_ts": [T0 + i * 1_000_000 for i in range(n)],
        "seq": list(range(n)),
        "close": [100 + i / 100 for i in range(n)],
        "volume": [1 + i for i in range(n)],
    }
    return make_batch("feed", **{**columns, **changes})


def aggregates() -> EventBatch:
    return trades(3, close=[2.0, 3.0, 4.0], ohl=([1.5] * 3, [5.0] * 3, [0.25] * 3))


def rejected() -> bytes:
    return encode_rejected_input(Rejected("malformed", "not JSON", b"\0\xff{", "file:7"))


def check_valid(found: object) -> None:
    """What every later stage relies on."""
    if not isinstance(found, EventBatch):
        assert isinstance(found, Mark | Rejected | StreamEvent)
        return
    n = len(found)
    assert n > 0
    assert found.codes.dtype in (np.uint16, np.uint32)
    assert found.codes.max() < len(found.symbols) == len(set(found.symbols))
    assert all(symbol and symbol == symbol.upper() for symbol in found.symbols)
    assert found.provider
    for column in (found.src_ts, found.seq, found.ingest_ts):
        assert (column.dtype, column.shape) == (np.dtype(np.int64), (n,))
    o, h, low = (column.to_floats() for column in found.prices())
    close, volume = found.close.to_floats(), found.volume.to_floats()
    assert invalid_rows(o, h, low, close, volume, found.src_ts) == {}
    assert len(list(islice(found.events(), 10))) == min(n, 10)


def same(a: EventBatch, b: EventBatch) -> bool:
    """Equal row by row, with exact decimals; only the numbering of symbols may differ."""
    columns = zip((*a.prices(), a.close, a.volume), (*b.prices(), b.close, b.volume), strict=True)
    return (
        a.stream == b.stream
        and a.interval == b.interval
        and [a.symbols[c] for c in a.codes] == [b.symbols[c] for c in b.codes]
        and all(
            np.array_equal(getattr(a, n), getattr(b, n)) for n in ("src_ts", "seq", "ingest_ts")
        )
        and all(
            x.scale == y.scale and x.mantissa.tolist() == y.mantissa.tolist() for x, y in columns
        )
        and (a.ohl is None) == (b.ohl is None)
    )


def read(payload: bytes) -> EventBatch:
    found = decode(payload)
    assert isinstance(found, EventBatch)
    check_valid(found)
    return found


def test_a_trade_takes_few_bytes() -> None:
    n = 5_000
    jitter = np.random.default_rng(1).integers(0, 1_000, n)
    batch = trades(n, src_ts=T0 + np.arange(n) * 1_000_000 + jitter * 1_000)
    payload = encode_columns(batch)
    assert same(read(payload), batch)
    assert len(payload) < 24 * n


@pytest.mark.parametrize(
    "make",
    [
        trades,
        aggregates,
        lambda: trades(1),
        lambda: trades(2, seq=[-(2**63), 2**63 - 1]),
        lambda: trades(2, seq=[2**63 - 2, 2**63 - 1], ingest_ts=[-(2**63), 2**63 - 1]),
        lambda: trades(2, src_ts=[-2_208_988_800 * 10**9, 7_258_118_400 * 10**9 - 1]),
        lambda: trades(2, src_ts=[T0, T0 + 86_400 * 10**9 * 365]),
        lambda: trades(2, close=[0.12345678901234567, 9007199254740993.0], volume=[0, 0]),
        lambda: trades(3, close=[5e-324, 1.7976931348623157e308, 0.0], volume=[1e22, 0.1, 1e-8]),
        lambda: trades(70_000, symbols=[f"S{i}" for i in range(70_000)]),
        lambda: trades(70_000, symbols=["A"] * 70_000, src_ts=[T0] * 70_000, seq=[7] * 70_000),
        lambda: trades(40).take(slice(38, None)),
        lambda: make_batch("f", ["É'; --\n"], [T0], [1], [1.0], [1.0], kind="bar", interval="1m"),
    ],
)
def test_batches_come_back(make: Callable[[], EventBatch]) -> None:
    batch = make()
    assert same(read(encode_columns(batch)), batch)


def test_a_batch_of_equal_rows_comes_back() -> None:
    n = 70_000
    columns = {"src_ts": [T0] * n, "seq": [1] * n, "close": [1.5] * n, "volume": [2.0] * n}
    batch = trades(n, symbols=["A"] * n, **columns)
    assert same(read(encode_columns(batch)), batch)
    small = batch.take(slice(0, 1_000))
    payload = encode_columns(small)
    assert same(read(payload), small)
    assert len(payload) < 200


def test_marks_and_rejected_input_come_back() -> None:
    for mark in (Mark(kind="idle", provider="p", ts=T0), Mark(kind="end", count=7)):
        assert decode(encode_mark(mark)) == mark
    item = Rejected("too_long", "…", bytes(range(256)), "tape.csv:12")
    assert decode(encode_rejected_input(item)) == item


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_single_events_are_recognised(codec: Any) -> None:
    for batch in (trades(), aggregates()):
        payloads = list(encode_events(batch, codec))
        assert [decode(payload) for payload in payloads] == list(batch.events())
    by_hand = {
        "ver": 1, "provider": "p", "symbol": "spy", "src_ts": "2025-10-24T14:02:01.5Z",
        "o": 1, "h": 2.5, "l": 1, "c": 2, "v": 3, "unknown": [None],
    }  # fmt: skip
    event = decode(getattr(msgspec, codec).encode(by_hand))
    assert isinstance(event, StreamEvent)
    assert (event.symbol, event.h, event.seq, event.kind) == ("spy", 2.5, 0, "tick")
    (columnar,) = encode_events(trades(), "columnar")
    assert same(read(columnar), trades())


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\0", b"MDP", b"MDPC", b"MDPM", b"MDPR", b"MDPX1234", b"MDPB\x90", b"null", b"{}",
        b"[]", b'{"ver":', b"\xff" * 100, b"\x80", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"MDPC\xff\xff\xff\xff", b"MDPC\0\0\0\0", b"MDPC\x01\0\0\0\x90", b"{" * 100_000,
        b"[" * 100_000, b"\x91" * 100_000, b"MDPM" + b"\x91" * 100_000,
        b"MDPM\x81\xa1z" + b"\x91" * 100_000,
        b"MDPC\xa0\x86\x01\0" + b"\x91" * 100_000, b"GET / HTTP/1.1\r\n\r\n",
        b"MDPC\x0d\0\0\0\x96\xa1a\xa4tick\xa21s\xdd\xff\xff\xff\xff", bytes(1 << 20),
    ],
    ids=lambda payload: repr(payload[:20]),
)  # fmt: skip
def test_garbage_is_rejected(payload: bytes) -> None:
    with pytest.raises(RejectedError) as caught:
        decode(payload)
    assert caught.value.reason in {"malformed", "bad_type", "bad_version"}
    assert len(str(caught.value)) < 1_000


# ---- forged headers ------------------------------------------------------------------------


def forged(
    change: Callable[[list[Any]], object],
    batch: EventBatch | None = None,
    data: bytes | None = None,
) -> bytes:
    """A payload whose header was changed (and its column data replaced)."""
    payload = encode_columns(batch or aggregates())
    size = int.from_bytes(payload[4:8], "little")
    header = msgspec.msgpack.decode(payload[8 : 8 + size])
    change(header)
    encoded = msgspec.msgpack.encode(header)
    rest = payload[8 + size :] if data is None else data
    return payload[:4] + len(encoded).to_bytes(4, "little") + encoded + rest


def put(*path: Any) -> Callable[[list[Any]], None]:
    """A change of one element: its indices, then its value."""
    *keys, last, value = path

    def change(header: list[Any]) -> None:
        for k in keys:
            header = header[k]
        header[last] = value

    return change


PROVIDER, KIND, INTERVAL, SYMBOLS, ROWS, COLUMNS = range(6)
DTYPE, BASE, STEP, SIZE, SCALE = range(5)


def test_an_unchanged_header_is_read() -> None:
    assert same(read(forged(lambda header: None)), aggregates())


@pytest.mark.parametrize(
    "change",
    [
        put(PROVIDER, ""),
        put(KIND, "trade"),
        put(SYMBOLS, ["A", "A", "B"]),
        put(SYMBOLS, ["A", "b", "C"]),
        put(SYMBOLS, ["A", "", "C"]),
        put(SYMBOLS, ["A", "B" * 65, "C"]),
        put(PROVIDER, "p" * 65),
        put(SYMBOLS, ["A", "B"]),
        put(SYMBOLS, []),
        put(ROWS, 0),
        put(ROWS, -1),
        put(ROWS, 2),
        put(ROWS, 4),
        put(ROWS, 2**64 - 1),
        put(COLUMNS, []),
        *(put(COLUMNS, c, DTYPE, "text") for c in range(9)),
        *(put(COLUMNS, c, SIZE, -8) for c in range(9)),
        put(COLUMNS, 1, DTYPE, "O"),
        put(COLUMNS, 1, DTYPE, "<f8"),
        put(COLUMNS, 1, DTYPE, "<M8[ns]"),
        put(COLUMNS, 1, DTYPE, "(1000000,1000000)u1"),
        put(COLUMNS, 1, BASE, 2**63),
        put(COLUMNS, 1, BASE, -(2**63)),
        put(COLUMNS, 0, BASE, -1),
        put(COLUMNS, 0, BASE, 1),
        put(COLUMNS, 4, BASE, -(2**40)),
        put(COLUMNS, 4, BASE, 2**62),
        put(COLUMNS, 4, SCALE, -1),
        put(COLUMNS, 4, SCALE, 10**9),
        put(COLUMNS, 5, SCALE, 10**18),
        put(COLUMNS, 8, BASE, 10**6),
    ],
)
def test_a_forged_header_is_rejected(change: Callable[[list[Any]], None]) -> None:
    with pytest.raises(RejectedError, match="damaged payload"):
        decode(forged(change))


def test_one_number_is_not_a_column_of_many() -> None:
    exact = trades(1, close=[1e300])
    assert same(read(forged(put(ROWS, 1), exact)), exact)
    for rows in (2, 60_000):
        with pytest.raises(RejectedError, match="too few"):
            decode(forged(put(ROWS, rows), exact))


@pytest.mark.parametrize("column", range(COUNT))
def test_only_prices_and_sizes_may_be_of_any_length(column: int) -> None:
    with pytest.raises(RejectedError, match="64 bits"):
        decode(forged(put(COLUMNS, column, ["text", 0, 1, 1, 0]), trades(1), b"0"))


def test_a_vendor_bar_has_an_interval() -> None:
    bar = make_batch("f", ["A"], [T0], [1], [1.0], [1.0], kind="bar", interval="1m")
    for interval in ("60s", "1x", ""):
        with pytest.raises(RejectedError, match="interval"):
            decode(forged(put(INTERVAL, interval), bar))


@pytest.mark.parametrize("dtype", ["", "<u1", "<i8"])
def test_a_header_alone_reserves_no_memory(dtype: str) -> None:
    """A few bytes cannot claim to be a trillion events."""
    column = [dtype, T0, 1, 0, 0]

    def change(header: list[Any]) -> None:
        header[ROWS], header[COLUMNS] = 10**12, [column] * 6

    payloads = [forged(change, data=b"")]
    column = [dtype, T0, 1, 10**12, 0]
    payloads += [forged(change, data=b""), forged(put(ROWS, 10**12)), forged(put(ROWS, 2**62))]
    payloads.append(forged(put(ROWS, 10**12), trades(2, close=[5e-324, 1e308])))
    tracemalloc.start()
    try:
        for payload in payloads:
            with pytest.raises(RejectedError, match="damaged payload"):
                decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mantissa", [-1, 10**400])
def test_a_price_that_no_float_holds_is_rejected(mantissa: int) -> None:
    batch = trades(2)
    column = Scaled(np.array([1, mantissa], object), 0)
    wrong = EventBatch(
        batch.provider, batch.kind, batch.interval, batch.symbols, batch.codes, batch.src_ts,
        batch.seq, batch.ingest_ts, column, batch.volume,
    )  # fmt: skip
    with pytest.raises(RejectedError, match=r"negative|not finite"):
        decode(encode_columns(wrong))


@pytest.mark.parametrize(
    "mark", [Mark(kind="idle", provider="p", ts=2**63), Mark(kind="end", count=-1)]
)
def test_a_mark_of_absurd_values_is_rejected(mark: Mark) -> None:
    with pytest.raises(RejectedError, match="mark"):
        decode(encode_mark(mark))


def test_reasons_are_of_a_bounded_set() -> None:
    with pytest.raises(RejectedError, match="unknown reason"):
        decode(encode_rejected_input(Rejected("because", "", b"")))


# ---- damage --------------------------------------------------------------------------------

SAMPLES = {
    "trades": encode_columns(trades()),
    "aggregates": encode_columns(aggregates()),
    "exact": encode_columns(trades(2, close=[5e-324, 1.7976931348623157e308])),
    "mark": encode_mark(Mark(kind="progress", provider="p", ts=T0)),
    "rejected": rejected(),
    "json": next(iter(encode_events(trades(1), "json"))),
    "msgpack": next(iter(encode_events(trades(1), "msgpack"))),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_truncation_is_rejected(sample: str) -> None:
    payload = SAMPLES[sample]
    for end in range(len(payload)):
        with pytest.raises(RejectedError):
            decode(payload[:end])
    with pytest.raises(RejectedError):
        decode(payload + b"\x01")


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_flipped_bit_is_rejected_or_harmless(sample: str) -> None:
    payload = SAMPLES[sample]
    for at in range(len(payload)):
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[at] ^= 1 << bit
            try:
                found = decode(bytes(damaged))
            except RejectedError:
                continue
            check_valid(found)
