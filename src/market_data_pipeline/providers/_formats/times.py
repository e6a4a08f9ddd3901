"""Times in columns of any type to nanoseconds, without float error."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

import numpy as np
import polars as pl

from market_data_core.errors import RejectedError
from market_data_core.events import check_src_ts
from market_data_core.text.iso_times import Details, Ints, iso_column
from market_data_pipeline.providers._formats.options import TimeUnit

_NS_PER_UNIT = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LIMITS = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
_LEAST_EPOCH_NS = 10**8 * 10**9
"""A number that means a time before 1973-03-03 is far more likely not a time at all."""
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,2})?", re.ASCII)


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
