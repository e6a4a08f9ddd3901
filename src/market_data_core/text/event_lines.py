"""Lines of version-1 events in columns, as strictly as each one is read alone (``wire``)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.errors import UsageError
from market_data_core.events import EVENT_VERSION, is_provider, is_symbol
from market_data_core.intervals import canonical_interval
from market_data_core.text.codes import Coded, text_codes
from market_data_core.text.counting import count_byte
from market_data_core.text.iso_times import Details, Ints, iso_column, uniform_times
from market_data_core.text.uniform_json import UniformLines, uniform_lines

Floats = NDArray[np.float64]

_NUMBERS = ("o", "h", "l", "c", "v")
_TEXTS = ("provider", "symbol", "kind", "interval", "src_ts", "ingest_ts", "event_id")
_SCHEMA = {
    "ver": pl.Int64(),
    "seq": pl.Int64(),
    **dict.fromkeys(_NUMBERS, pl.Float64()),
    **dict.fromkeys(_TEXTS, pl.String()),
}
_DEFAULTS: dict[str, str | int] = {"kind": "tick", "interval": "1s", "seq": 0}
_CODED = ("symbol", "provider", "kind", "interval")
_OPTIONAL = {*_DEFAULTS, "ingest_ts", "event_id"}
_REQUIRED = _SCHEMA.keys() - _OPTIONAL
_KINDS = frozenset({"tick", "bar"})
_QUOTE, _BRACE = ord('"'), ord("{")


@dataclass(frozen=True, slots=True)
class EventColumns:
    """The fields of events, one a row.

    Attributes:
        texts: symbol (as written), provider, kind and interval (canonical), each with the values
            that occur and their rows.
        src_ts: int64, UTC ns; 0 where `details` says what is wrong.
        ingest_ts: likewise; None if the events do not tell.
        details: what is wrong with a row's times.
        seq: int64.
        close: float64.
        volume: float64.
        ohl: open, high and low, float64; None if they equal the close.
    """

    texts: dict[str, Coded]
    src_ts: Ints
    ingest_ts: Ints | None
    details: Details
    seq: Ints
    close: Floats
    volume: Floats
    ohl: tuple[Floats, Floats, Floats] | None


def event_columns(data: bytes, lines: int) -> EventColumns | None:
    """The columns of a block in which every line is one event; None if that is not certain.

    Args:
        data: whole lines, each ending in a newline.
        lines: how many there are.
    """
    found = _uniform(data, lines) or _parsed(data, lines)
    if found is None or not (
        all(map(is_symbol, found.texts["symbol"][0]))
        and all(map(is_provider, found.texts["provider"][0]))
        and _KINDS.issuperset(found.texts["kind"][0])
    ):
        return None
    intervals, codes = found.texts["interval"]
    try:
        found.texts["interval"] = [canonical_interval(text) for text in intervals], codes
    except UsageError:
        return None
    return found


def _uniform(data: bytes, rows: int) -> EventColumns | None:
    """The columns of a block whose lines are all of one shape; None if they are not."""
    lines = uniform_lines(data, rows)
    if lines is None or not lines.keys <= _SCHEMA.keys() or not lines.keys >= _REQUIRED:
        return None
    if lines.text_keys != lines.keys & set(_TEXTS):
        return None  # a number in quotes, or a text without
    texts = {}
    for name in _CODED:
        coded = lines.texts(name) if name in lines.keys else _default(name, rows)
        if coded is None:
            return None
        texts[name] = coded
    src_ts = _times(lines, "src_ts")
    ingest_ts = None
    if "ingest_ts" in lines.keys:
        same = lines.same("src_ts", "ingest_ts")
        ingest_ts = src_ts if same else _times(lines, "ingest_ts")
        if ingest_ts is None:
            return None
    seq = lines.numbers("seq") if "seq" in lines.keys else None
    if src_ts is None or not lines.are("ver", b"%d" % EVENT_VERSION):
        return None
    if "seq" in lines.keys and (seq is None or seq.places.any()):
        return None
    prices = {"c": lines.numbers("c"), "v": lines.numbers("v")}
    for name in "ohl":
        prices[name] = prices["c"] if lines.same(name, "c") else lines.numbers(name)
    values = {name: found.to_floats() for name, found in prices.items() if found}
    if len(values) < len(prices):
        return None
    return EventColumns(
        texts,
        src_ts,
        ingest_ts,
        {},
        np.zeros(rows, np.int64) if seq is None else seq.mantissa,
        values["c"],
        values["v"],
        _ohl(values),
    )


def _times(lines: UniformLines, key: str) -> Ints | None:
    return uniform_times(lines.words(key), lines.length(key))


def _default(name: str, rows: int) -> Coded:
    return [_DEFAULTS[name]], np.zeros(rows, np.uint32)


def _ohl(values: Mapping[str, Floats]) -> tuple[Floats, Floats, Floats] | None:
    ohl = values["o"], values["h"], values["l"]
    return None if all(np.array_equal(x, values["c"]) for x in ohl) else ohl


def _parsed(data: bytes, lines: int) -> EventColumns | None:
    """The columns of a block that a JSON parser finds to be plain; None if it does not."""
    frame = _frame(data, lines)
    if frame is None:
        return None
    src_ts, details = iso_column(frame["src_ts"])
    ingest_ts = None
    if not frame["ingest_ts"].null_count():
        if (frame["ingest_ts"] == "").any():
            return None  # which says nothing, but only in its line
        ingest_ts, more = iso_column(frame["ingest_ts"])
        details = more | details
    values = {name: frame[name].to_numpy() for name in _NUMBERS}
    return EventColumns(
        {name: text_codes(frame[name]) for name in _CODED},
        src_ts,
        ingest_ts,
        details,
        frame["seq"].to_numpy(),
        values["c"],
        values["v"],
        _ohl(values),
    )


def _frame(data: bytes, lines: int) -> pl.DataFrame | None:
    """The block's columns, without nulls but for ingest_ts; None unless all lines are plain.

    The column parser overlooks unknown keys and the second of two equal ones, takes a number or a
    list where a text should be, and turns lone surrogates into NUL; it takes no text for a number.
    Every line has the keys that the columns found account for; if the block has not one more, and
    no quote less, no line has anything else.
    """
    if b"\\" in data or b"[" in data or count_byte(data, _BRACE) != lines:
        return None
    if any(space in data for space in (b" :", b"\t", b"\r")):
        return None  # what stands before a colon is to be a key's quote
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=_SCHEMA)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if len(frame) != lines:
        return None
    absent = {s.name for s in frame.iter_columns() if s.null_count() == lines}
    if not absent <= _OPTIONAL or (absent and b"null" in data):
        return None
    if any(s.null_count() for s in frame.iter_columns() if s.name not in absent):
        return None
    keys = len(_SCHEMA) - len(absent)
    texts = len(_TEXTS) - len(absent.intersection(_TEXTS))
    if data.count(b'":') != keys * lines or count_byte(data, _QUOTE) != 2 * (keys + texts) * lines:
        return None
    if not (frame["ver"] == EVENT_VERSION).all():
        return None
    defaults = [
        pl.lit(_DEFAULTS[name], dtype=_SCHEMA[name]).alias(name)
        for name in absent.intersection(_DEFAULTS)
    ]
    return frame.with_columns(defaults) if defaults else frame
