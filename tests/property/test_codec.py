"""Whatever is packed comes back; whatever is unpacked is valid or rejected."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bus.test_codec import check_valid, same

from market_data_core.errors import RejectedError
from market_data_core.events import SRC_TS_MAX, SRC_TS_MIN, EventBatch, Kind, code_dtype
from market_data_core.records import Mark
from market_data_core.scaled import Scaled
from market_data_pipeline.bus.codec import decode, encode_columns, encode_mark

INT64 = st.integers(-(2**63), 2**63 - 1)
SYMBOL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PROVIDER = SYMBOL.filter(lambda name: "|" not in name)
SYMBOLS = st.lists(SYMBOL.map(str.upper), min_size=1, max_size=6, unique=True)
KINDS: tuple[tuple[Kind, str], ...] = (("tick", "1s"), ("bar", "5m"))
# Mantissas as 64-bit columns hold them, and as columns of Python integers do.
MANTISSAS = (st.integers(0, 2**62 - 1), st.integers(0, 10**3), st.integers(0, 10**300))


@st.composite
def columns(draw: st.DrawFn, n: int, among: int) -> list[Scaled]:
    """Columns of equal length and scale."""
    values = draw(st.sampled_from(MANTISSAS))
    scale = draw(st.integers(0, 330))
    out = []
    for _ in range(among):
        mantissa = np.array(draw(st.lists(values, min_size=n, max_size=n)), object)
        out.append(Scaled(mantissa, scale).compacted())
    return out


@st.composite
def batches(draw: st.DrawFn) -> EventBatch:
    """Valid batches of any columns."""
    n = draw(st.integers(1, 20))

    def int64s(values: st.SearchStrategy[int]) -> Any:
        equal = draw(st.booleans())
        found = [draw(values)] * n if equal else draw(st.lists(values, min_size=n, max_size=n))
        return np.array(found, np.int64)

    symbols = draw(SYMBOLS)
    codes = int64s(st.integers(0, len(symbols) - 1)).astype(code_dtype(len(symbols)))
    src_ts = st.integers(SRC_TS_MIN, SRC_TS_MAX - 1)
    steps = st.sampled_from((1, 1_000, 1_000_000))
    times = int64s(src_ts) // draw(steps) * draw(steps)
    ohl = None
    if draw(st.booleans()):
        prices = draw(columns(n, 4))
        ordered = np.sort(np.array([p.mantissa.astype(object) for p in prices]), axis=0)
        low, o, close, h = (Scaled(row, prices[0].scale).compacted() for row in ordered)
        ohl = (o, h, low)
    else:
        (close,) = draw(columns(n, 1))
    (volume,) = draw(columns(n, 1))
    kind, interval = draw(st.sampled_from(KINDS))
    times = np.clip(times, SRC_TS_MIN, SRC_TS_MAX - 1)
    provider = draw(PROVIDER)
    return EventBatch(
        provider, kind, interval, tuple(symbols), codes,
        times, int64s(INT64), int64s(INT64), close, volume, ohl,
    )  # fmt: skip


def survives(payload: bytes) -> None:
    """Decoding gives something valid, or RejectedError and nothing else."""
    try:
        found = decode(payload)
    except RejectedError:
        return
    check_valid(found)


@given(batches())
def test_a_batch_comes_back(batch: EventBatch) -> None:
    found = decode(encode_columns(batch))
    assert isinstance(found, EventBatch)
    check_valid(found)
    assert same(found, batch)


@given(batches(), st.data())
def test_damage_is_noticed_or_harmless(batch: EventBatch, data: st.DataObject) -> None:
    payload = bytearray(encode_columns(batch))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    survives(bytes(payload))
    begin, end = sorted(data.draw(st.lists(st.integers(0, len(payload)), min_size=2, max_size=2)))
    survives(bytes(payload[:begin] + payload[end:]))


WILD = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from((0, -1, 1, 2**31, 2**32, 2**62, 2**63, 10**12, 2**64 - 1)),
    st.sampled_from(("", "text", "<u1", "<u2", "<u4", "<i8", "O", "tick", "bar", "1s", "é", "A")),
    st.none(),
    st.floats(),
    st.binary(max_size=4),
    st.lists(st.integers(0, 3), max_size=3),
)


@settings(max_examples=300)
@given(batches(), st.data())
def test_a_forged_header_is_noticed_or_harmless(batch: EventBatch, data: st.DataObject) -> None:
    payload = encode_columns(batch)
    size = int.from_bytes(payload[4:8], "little")
    header = msgspec.msgpack.decode(payload[8 : 8 + size])
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from([header, *header[-1]])) if header[-1] else header
        if isinstance(where, list) and where:
            where[data.draw(st.integers(0, len(where) - 1))] = data.draw(WILD)
        if not isinstance(header[-1], list):
            break
    encoded = msgspec.msgpack.encode(header)
    survives(payload[:4] + len(encoded).to_bytes(4, "little") + encoded + payload[8 + size :])


@given(st.sampled_from((b"", b"MDPC", b"MDPM", b"MDPR", b"{", b"\x8f")), st.binary(max_size=200))
def test_any_bytes_are_survived(begin: bytes, rest: bytes) -> None:
    survives(begin + rest)


@given(
    st.sampled_from(("progress", "idle", "pause", "end")),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(SRC_TS_MIN, SRC_TS_MAX - 1),
    st.integers(0, 2**63 - 1),
)
def test_a_mark_comes_back(kind: Any, provider: str, ts: int, count: int) -> None:
    mark = Mark(kind=kind, provider=provider, ts=ts, count=count)
    assert decode(encode_mark(mark)) == mark
