"""Bytes on the bus: columnar batches, single events, rejected input, and marks.

Every payload says itself what it is: ours begin with four magic bytes, a single event written by
anything else is plain JSON or msgpack. Columns are stored as differences to their smallest value,
in the narrowest integers that hold them, so that a trade takes about 20 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import (
    NAME_MAX,
    PROVIDER_RULE,
    REASONS,
    SRC_TS_MAX,
    SRC_TS_MIN,
    SYMBOL_RULE,
    EventBatch,
    Kind,
    Rejected,
    StreamEvent,
    is_provider,
    parse_ts,
)
from market_data_core.intervals import canonical_interval
from market_data_core.records import CodecName, Mark
from market_data_core.scaled import Array, Scaled
from market_data_core.wire import decode_event

_COLUMNS, _MARK, _REJECTED = b"MDPC", b"MDPM", b"MDPR"
_HEADER_LENGTH = 4
_WIDTHS = (("<u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32), ("<i8", 1 << 63))
_STEPS = (1_000_000, 1_000)
_MANTISSA_LIMIT = 1 << 62  # beyond it our own columns hold Python integers
_SYMBOL_ROWS = 4
_BYTES = {"": 0, **{name: np.dtype(name).itemsize for name, _ in _WIDTHS}}
_CONSTANT_ROWS_MAX = 1 << 16
"""Rows up to which a column of equal values takes no bytes: so few bytes never become many."""
_SCALE_MAX = 400  # the shortest decimal of a float64 has at most 324 places


class _Column(msgspec.Struct, array_like=True, frozen=True):
    """How one column is packed: value = base + step * stored."""

    dtype: str
    base: int
    step: int
    size: int
    scale: int = 0


class _Header(msgspec.Struct, array_like=True, frozen=True):
    provider: str
    kind: Kind
    interval: str
    symbols: list[str]
    rows: int
    columns: list[_Column]


class _Peek(msgspec.Struct, array_like=True, frozen=True):
    """A header of which only the columns are looked at."""

    provider: msgspec.Raw
    kind: msgspec.Raw
    interval: msgspec.Raw
    symbols: msgspec.Raw
    rows: int
    columns: list[_Column]


class _RejectedWire(msgspec.Struct, array_like=True, frozen=True):
    reason: str
    detail: str
    original: bytes
    where: str


_header_decoder = msgspec.msgpack.Decoder(_Header)
_peek_decoder = msgspec.msgpack.Decoder(_Peek)
_mark_decoder = msgspec.msgpack.Decoder(Mark)
_rejected_decoder = msgspec.msgpack.Decoder(_RejectedWire)


def encode_mark(mark: Mark, /) -> bytes:
    """A mark as bytes."""
    return _MARK + msgspec.msgpack.encode(mark)


def encode_rejected(item: Rejected, /) -> bytes:
    """A piece of unusable input as bytes."""
    wire = _RejectedWire(item.reason, item.detail, item.original, item.where)
    return _REJECTED + msgspec.msgpack.encode(wire)


def encode_events(batch: EventBatch, codec: CodecName, /) -> Iterable[bytes]:
    """The payloads that carry `batch`: one for columns, one an event otherwise."""
    if codec == "columnar":
        return (encode_columns(batch),)
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    return (encode(event) for event in batch.events())


def _pack(values: Array, stepped: bool = False) -> tuple[_Column, bytes]:
    if values.dtype == object:
        text = b"\n".join(b"%d" % v for v in values.tolist())
        return _Column("text", 0, 1, len(text)), text
    low, high = int(values.min()), int(values.max())
    if low == high and len(values) <= _CONSTANT_ROWS_MAX:
        return _Column("", low, 1, 0), b""
    span, step = high - low, 1
    if span >= 1 << 63:
        data = values.astype("<i8").tobytes()
        return _Column("<i8", 0, 1, len(data)), data
    offsets = values - low
    if stepped and span >= 1 << 32:
        step = next((s for s in _STEPS if not (offsets % s).any()), 1)
        offsets, span = (offsets // step, span // step) if step > 1 else (offsets, span)
    dtype = next(name for name, limit in _WIDTHS if span < limit)
    data = offsets.astype(dtype).tobytes()
    return _Column(dtype, low, step, len(data)), data


def _unpack(column: _Column, rows: int, payload: bytes, at: int) -> Array:
    """The column's values; its size is checked before anything of that size is made."""
    if column.dtype == "text":
        numbers = payload[at : at + column.size].split(b"\n")
        _require(len(numbers) == rows, "a column has too few or too many values")
        out = np.empty(rows, object)
        out[:] = [int(v) for v in numbers]
        return out
    width = _BYTES.get(column.dtype)
    _require(width is not None, "a column is of an unknown type")
    _require(column.size == rows * (width or 0), "a column has too few or too many values")
    if not width:
        _require(rows <= _CONSTANT_ROWS_MAX, "a column has too many equal values")
        return np.full(rows, column.base, np.int64)
    stored = np.frombuffer(payload, column.dtype, rows, at)
    if stored.itemsize == 8 and column.base == 0 and column.step == 1:
        return stored
    values = stored.astype(np.int64)
    if column.step != 1:
        values *= column.step
    values += column.base
    return values


def _scaled_columns(batch: EventBatch) -> list[Scaled]:
    return [batch.close, batch.volume, *(batch.ohl or ())]


def encode_columns(batch: EventBatch) -> bytes:
    """A non-empty batch as one payload."""
    symbols, codes = list(batch.symbols), batch.codes
    if len(symbols) > len(batch) // _SYMBOL_ROWS:  # name only those that occur
        used, codes = np.unique(codes, return_inverse=True)
        symbols = [symbols[i] for i in used.tolist()]
    packed = [
        _pack(codes),
        _pack(batch.src_ts, stepped=True),
        _pack(batch.seq),
        _pack(batch.ingest_ts, stepped=True),
    ]
    for scaled in _scaled_columns(batch):
        column, data = _pack(scaled.mantissa)
        packed.append((msgspec.structs.replace(column, scale=scaled.scale), data))
    header = msgspec.msgpack.encode(
        _Header(
            batch.provider,
            batch.kind,
            batch.interval,
            symbols,
            len(batch),
            [column for column, _ in packed],
        )
    )
    size = len(header).to_bytes(_HEADER_LENGTH, "little")
    return b"".join((_COLUMNS, size, header, *(data for _, data in packed)))


def _decode_columns(payload: bytes) -> EventBatch:
    at = len(_COLUMNS) + _HEADER_LENGTH
    size = int.from_bytes(payload[len(_COLUMNS) : at], "little")
    header = _header_decoder.decode(payload[at : at + size])
    at += size
    _require(header.rows > 0, "it has no events")
    _require(len(header.columns) in (6, 9), "the number of columns is wrong")
    plain = all(column.dtype != "text" for column in header.columns[:4])
    _require(plain, "a symbol code, time or sequence is not an integer of 64 bits")
    arrays = []
    for column in header.columns:
        arrays.append(_unpack(column, header.rows, payload, at))
        at += column.size
    _require(at == len(payload), "the columns do not add up to the payload")
    codes, src_ts, seq, ingest_ts = arrays[:4]
    scaled = [
        Scaled(a, column.scale) for a, column in zip(arrays[4:], header.columns[4:], strict=True)
    ]
    narrow = np.uint16 if len(header.symbols) <= 1 << 16 else np.uint32
    batch = EventBatch(
        header.provider,
        header.kind,
        header.interval,
        tuple(header.symbols),
        codes.astype(narrow),
        src_ts,
        seq,
        ingest_ts,
        scaled[0],
        scaled[1],
        (scaled[2], scaled[3], scaled[4]) if len(scaled) == 5 else None,
    )
    _check(batch, codes)
    return batch


def _check(batch: EventBatch, codes: NDArray[Any]) -> None:
    """What our own producers guarantee, asserted again for what came from the log."""
    symbols = batch.symbols
    _require(codes.min() >= 0 and codes.max() < len(symbols), "a symbol code has no symbol")
    text = "\n".join(symbols)
    _require(text == text.upper(), "a symbol is not in upper case")
    _require(len(set(symbols)) == len(symbols), "a symbol is named twice")
    _require(is_provider(batch.provider), PROVIDER_RULE)
    lengths = list(map(len, symbols))
    _require(min(lengths) > 0 and max(lengths) <= NAME_MAX, SYMBOL_RULE)
    bad_interval = batch.kind == "bar" and not _is_interval(batch.interval)
    _require(not bad_interval, "the interval is not in its usual form")
    times = batch.src_ts
    _require(
        times.min() >= SRC_TS_MIN and times.max() < SRC_TS_MAX,
        "a time is outside the years 1900 to 2200",
    )
    for column in _scaled_columns(batch):
        _require(0 <= column.scale <= _SCALE_MAX, "a column has a wrong number of decimals")
        _require(column.mantissa.min() >= 0, "a price or size is negative")
        if column.mantissa.dtype == object:
            _require(np.isfinite(column.to_floats()).all(), "a price or size is not finite")
        else:
            _require(column.mantissa.max() < _MANTISSA_LIMIT, "a price or size is too precise")
    if batch.ohl:
        o, h, low, c = (x.to_floats() for x in (*batch.ohl, batch.close))
        highest = (h >= o) & (h >= c) & (h >= low) & (low <= o) & (low <= c)
        _require(highest.all(), "a high is not the highest price")


@lru_cache(1024)
def _is_interval(text: str) -> bool:
    try:
        return canonical_interval(text) == text
    except UsageError:
        return False


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _checked_mark(mark: Mark) -> Mark:
    _require(SRC_TS_MIN <= mark.ts < SRC_TS_MAX, "a mark's time is outside the years 1900 to 2200")
    _require((mark.count or 0) >= 0, "a mark counts fewer than no events")
    return mark


def oldest_ingest(payload: bytes, /) -> int | None:
    """When the oldest of a payload's events was first seen, from its header alone.

    Returns:
        UTC ns; None if the payload does not tell.
    """
    magic = payload[:4]
    if magic in (_MARK, _REJECTED):
        return None
    try:
        if magic != _COLUMNS:
            seen = decode_event(payload).ingest_ts
            return parse_ts(seen) if seen else None
        at = len(_COLUMNS) + _HEADER_LENGTH
        size = int.from_bytes(payload[len(_COLUMNS) : at], "little")
        return _peek_decoder.decode(payload[at : at + size]).columns[3].base or None
    except (msgspec.MsgspecError, RejectedError, IndexError):
        return None


def decode(payload: bytes, /) -> EventBatch | Mark | Rejected | StreamEvent:
    """Whatever a payload holds.

    Raises:
        RejectedError: the payload cannot be read; its reason says why.
    """
    magic = payload[:4]
    try:
        if magic == _COLUMNS:
            return _decode_columns(payload)
        if magic == _MARK:
            return _checked_mark(_mark_decoder.decode(payload[4:]))
        if magic == _REJECTED:
            wire = _rejected_decoder.decode(payload[4:])
            _require(wire.reason in REASONS, f"unknown reason {wire.reason!r}")
            return Rejected(wire.reason, wire.detail, wire.original, wire.where)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        msg = f"damaged payload: {error}"[:200]
        raise RejectedError(reason="malformed", message=msg) from error
    return decode_event(payload)
