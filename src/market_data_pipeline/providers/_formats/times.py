"""Times in columns: ISO 8601 texts and epoch numbers to nanoseconds, without float error."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.errors import RejectedError
from market_data_core.events import check_src_ts, parse_ts
from market_data_pipeline.providers._formats.options import TimeUnit
from market_data_pipeline.providers._formats.words import (
    LOW_BYTES,
    WORD,
    ZEROS,
    Text,
    Words,
    all_digits,
    eight_digits,
    word_of,
)

Ints = NDArray[np.int64]
Details = dict[int, str]
"""Row number -> what is wrong with its time."""

_NS_PER_UNIT = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LIMITS = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
_LEAST_EPOCH_NS = 10**8 * 10**9
"""A number that means a time before 1973-03-03 is far more likely not a time at all."""
_HEAD = 19  # length of 2025-10-24T14:02:01
_BYTE = np.uint64(0xFF)
_MINUTE = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}")
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,2})?", re.ASCII)


def iso_column(texts: pl.Series) -> tuple[Ints, Details]:
    """Nanoseconds of ISO 8601 texts (no nulls), exactly as ``parse_ts`` reads each.

    Returns:
        Times of shape (n,), 0 where there is none, and the rows that are not times.
    """
    out = np.zeros(len(texts), np.int64)
    details: Details = {}
    lengths = texts.str.len_bytes().to_numpy()
    for length in np.unique(lengths).tolist():
        mask = lengths == length
        whole = bool(mask.all())
        group = texts if whole else texts.filter(pl.Series(mask))
        fast = uniform_times(_words(group, length), length)
        if fast is not None:
            out[mask] = fast
        else:
            _one_by_one(group, np.flatnonzero(mask), out, details)
    return out, details


def _words(texts: pl.Series, length: int) -> list[Words]:
    text = Text(texts.str.join("").item().encode() + bytes(WORD))
    begin = np.arange(len(texts)) * length
    kept = [min(WORD, length - at) for at in range(0, length, WORD)]
    return [text.words(begin + i * WORD) & LOW_BYTES[n] for i, n in enumerate(kept)]


def uniform_times(words: list[Words], length: int) -> Ints | None:
    """Nanoseconds of ISO 8601 texts of one length.

    Args:
        words: the texts eight bytes at a time, zeros behind them.
        length: in bytes.

    Returns:
        Shape (n,); None unless all have the one common spelling, such as 2025-10-24T14:02:01.5Z.
    """
    fraction = length - _HEAD - 2
    if not (length == _HEAD + 1 or 1 <= fraction <= 9):
        return None
    # from here on :01.5Z is left, digits are what is not named
    tail = b":00." + b"0" * fraction + b"Z" if fraction > 0 else b":00Z"
    digits = []
    for word, spelling in zip(words[2:], (tail[:WORD], tail[WORD:]), strict=False):
        marks = np.uint64(word_of(bytes(0 if x == ord("0") else 0xFF for x in spelling)))
        if ((word & marks) != (np.uint64(word_of(spelling)) & marks)).any():
            return None
        digits.append((word ^ (ZEROS & LOW_BYTES[len(spelling)])) & ~marks)
        if not all_digits(digits[-1]):
            return None
    minutes = _minutes(words[0], words[1])
    low, high = digits if len(digits) > 1 else (digits[0], np.zeros_like(digits[0]))
    seconds = ((low >> np.uint64(8)) & _BYTE) * np.uint64(10) + ((low >> np.uint64(16)) & _BYTE)
    if minutes is None or (seconds > 59).any():
        return None
    below = eight_digits((low >> np.uint64(32)) | (high << np.uint64(32))) * np.uint64(10)
    below += (high >> np.uint64(32)) & _BYTE
    found: Ints = minutes + (seconds * np.uint64(_NS_PER_UNIT["s"]) + below).astype(np.int64)
    return found


def _minutes(date: Words, hour: Words) -> Ints | None:
    """Nanoseconds of the texts' first sixteen characters, which seldom change."""
    changes = np.flatnonzero((date[1:] != date[:-1]) | (hour[1:] != hour[:-1])) + 1
    begins = np.concatenate(([0], changes))
    known: dict[tuple[int, int], int] = {}
    pairs = list(zip(date[begins].tolist(), hour[begins].tolist(), strict=True))
    for pair in set(pairs):
        text = b"".join(word.to_bytes(WORD, "little") for word in pair)
        if not _MINUTE.fullmatch(text):
            return None
        try:
            known[pair] = parse_ts(f"{text.decode()}:00Z")
        except RejectedError:
            return None
    values = np.array([known[pair] for pair in pairs], np.int64)
    return np.repeat(values, np.diff(begins, append=len(date)))


def _one_by_one(texts: pl.Series, at: NDArray[np.intp], out: Ints, details: Details) -> None:
    known: dict[str, int | str] = {}
    for row, text in zip(at.tolist(), texts.to_list(), strict=True):
        if text not in known:
            try:
                known[text] = parse_ts(text)
            except RejectedError as error:
                known[text] = str(error)
        found = known[text]
        if isinstance(found, int):
            out[row] = found
        else:
            details[row] = found


def epoch_ns(text: str, unit: TimeUnit) -> int:
    """Nanoseconds of a decimal number; digits below one nanosecond are cut off.

    Args:
        text: e.g. ``1723161255.342817``.
        unit: the number's unit; ``auto`` takes s below 1e11, ms below 1e14, us below 1e17.

    Raises:
        RejectedError: reason ``bad_timestamp``; not a number, or not a plausible time.
    """
    if not _NUMBER.fullmatch(text):
        msg = f"{text[:64]!r} is not a time"
        raise RejectedError(reason="bad_timestamp", message=msg)
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        msg = f"{text[:64]!r} is not a time"
        raise RejectedError(reason="bad_timestamp", message=msg) from error
    if unit == "auto":
        unit = _unit_of(abs(number))
    ts_ns = int(number * _NS_PER_UNIT[unit])
    if abs(ts_ns) < _LEAST_EPOCH_NS:
        msg = f"the number {text[:64]} is too small to be a time since 1970 (unit {unit})"
        raise RejectedError(reason="bad_timestamp", message=msg)
    return check_src_ts(ts_ns)


def _unit_of(magnitude: Decimal) -> TimeUnit:
    for limit, unit in _LIMITS:
        if magnitude < limit:
            return unit  # type: ignore[return-value]
    return "ns"


def time_column(column: pl.Series, unit: TimeUnit) -> tuple[Ints, Details]:
    """Nanoseconds of a column of texts, numbers, dates or datetimes; nulls are no times.

    Returns:
        Times of shape (n,), 0 where there is none, and the rows that are not times.
    """
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime):
        return _counted(column.to_physical(), dtype.time_unit)
    if dtype == pl.Date:
        return _counted(column.to_physical().cast(pl.Int64) * 86_400, "s")
    if dtype.is_integer():
        return _epoch_column(column.cast(pl.Int64, strict=False), unit)
    if dtype != pl.String:
        column = column.cast(pl.String, strict=False)  # floats print their shortest decimal
    return _text_column(column, unit)


def _counted(ticks: pl.Series, unit: str) -> tuple[Ints, Details]:
    """Typed times: the unit is known, and old times are meant."""
    missing = ticks.is_null().to_numpy()
    values = ticks.fill_null(0).to_numpy()
    factor = _NS_PER_UNIT[unit]
    outside = (values > 2**63 // factor - 1) | (values < -(2**63 // factor) + 1)
    details = {int(i): "the time is missing" for i in np.flatnonzero(missing)}
    details |= {int(i): f"time {values[i]} {unit} is absurd" for i in np.flatnonzero(outside)}
    return np.where(outside, 0, values) * factor, details


def _epoch_column(numbers: pl.Series, unit: TimeUnit) -> tuple[Ints, Details]:
    missing = numbers.is_null().to_numpy()
    values = numbers.fill_null(0).to_numpy()
    magnitude = np.abs(values)
    factor = np.ones(len(values), np.int64)
    if unit == "auto":
        for limit, name in reversed(_LIMITS):
            factor[magnitude < limit] = _NS_PER_UNIT[name]
    else:
        factor[:] = _NS_PER_UNIT[unit]
    fits = magnitude <= (2**63 - 1) // factor
    out = np.where(fits, values, 0) * factor
    wrong = np.flatnonzero(np.abs(out) < _LEAST_EPOCH_NS).tolist()
    details = {}
    for i in wrong:
        out[i] = 0
        details[i] = "the time is missing" if missing[i] else f"{values[i]} is not a plausible time"
    return out, details


def _text_column(texts: pl.Series, unit: TimeUnit) -> tuple[Ints, Details]:
    texts = texts.str.strip_chars()
    numbers = texts.cast(pl.Int64, strict=False)
    if not numbers.null_count():
        return _epoch_column(numbers, unit)
    filled = texts.fill_null("")
    numeric = filled.str.contains(r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$").to_numpy()
    if not numeric.any():
        return _named(iso_column(filled), filled)
    out = np.zeros(len(texts), np.int64)
    details: Details = {}
    at = np.flatnonzero(~numeric)
    out[at], found = _named(iso_column(filled.gather(at)), filled.gather(at))
    details |= {int(at[i]): text for i, text in found.items()}
    for i in np.flatnonzero(numeric).tolist():
        try:
            out[i] = epoch_ns(filled[i], unit)
        except RejectedError as error:
            details[i] = str(error)
    return out, details


def _named(found: tuple[Ints, Details], texts: pl.Series) -> tuple[Ints, Details]:
    out, details = found
    return out, {i: text if texts[i] else "the time is missing" for i, text in details.items()}
