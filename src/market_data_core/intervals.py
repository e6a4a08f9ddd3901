"""Interval notation: ``500ms``, ``2s``, ``1m``, ``1h``, ``1d``; nanoseconds inside."""

from __future__ import annotations

import re
from functools import lru_cache

from market_data_core.errors import UsageError

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
_UNITS = {
    "d": 86_400 * NS_PER_S,
    "h": 3_600 * NS_PER_S,
    "m": 60 * NS_PER_S,
    "s": NS_PER_S,
    "ms": NS_PER_MS,
}
_PATTERN = re.compile(r"(\d{1,9})(ms|s|m|h|d)")


def parse_interval(text: str) -> int:
    """Length in nanoseconds of an interval such as ``2s`` or ``500ms``.

    Raises:
        UsageError: `text` is not a whole number with one of the units ms, s, m, h, d, or is zero.
    """
    match = _PATTERN.fullmatch(text.strip())
    length = int(match[1]) * _UNITS[match[2]] if match else 0
    if length <= 0:
        msg = f"interval {text!r} is not valid; write a number and a unit: 500ms, 2s, 1m, 1h, 1d"
        raise UsageError(msg)
    return length


def format_interval(length_ns: int) -> str:
    """The interval in the largest unit that divides it: 60 s is ``1m``.

    Raises:
        UsageError: `length_ns` is not a positive multiple of one millisecond.
    """
    if length_ns <= 0 or length_ns % NS_PER_MS:
        msg = f"interval of {length_ns} ns is not a positive multiple of 1 ms"
        raise UsageError(msg)
    for unit, size in _UNITS.items():
        if length_ns % size == 0:
            return f"{length_ns // size}{unit}"
    raise AssertionError(length_ns)  # a multiple of 1 ms always matches


@lru_cache(1_024)
def canonical_interval(text: str) -> str:
    """`text` in its one stored spelling (``60s`` becomes ``1m``)."""
    return format_interval(parse_interval(text))
