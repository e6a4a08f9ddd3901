"""ISO 8601 times in columns, to nanoseconds."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.errors import RejectedError
from market_data_core.events import parse_ts
from market_data_core.intervals import NS_PER_S
from market_data_core.text.words import (
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

_HEAD = 19  # length of 2025-10-24T14:02:01
_BYTE = np.uint64(0xFF)
_MINUTE = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}")


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
    found: Ints = minutes + (seconds * np.uint64(NS_PER_S) + below).astype(np.int64)
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
