"""Texts in columns, eight bytes at a time.

A column of short texts is read as columns of 64-bit words, so that one NumPy operation handles
eight characters of every row ("SIMD within a register": Lamport, Multiple byte processing with
full-word instructions, CACM 18(8), 1975). The first character is a word's lowest byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Index = NDArray[Any]

WORD = 8
LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(WORD + 1)], np.uint64)
"""Masks of the lowest 0 to 8 bytes."""


def each(byte: int) -> np.uint64:
    """A word of eight equal bytes."""
    return np.uint64(byte * 0x0101010101010101)


def word_of(text: bytes) -> int:
    """At most eight bytes as a word; what is missing is zero."""
    return int.from_bytes(text.ljust(WORD, b"\0"), "little")


ZEROS = each(ord("0"))
_DOTS = each(ord("."))
_HIGH, _LOW7 = each(0x80), each(0x7F)
_TO_HIGH = each(0x7F - 9)


class Text:
    """Bytes that can be read a word at a time, from any position.

    Args:
        data: at least eight bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        # a word begins at every byte, so neighbours overlap
        self._at: Words = np.ndarray((len(data) - WORD + 1,), "<u8", buffer=data, strides=(1,))

    def words(self, at: Index) -> Words:
        """The eight bytes from each position on; zeros where that is outside of the data."""
        last = len(self._at) - 1
        if at.min() >= 0 and at.max() <= last:
            found: Words = self._at[at]
            return found
        words: Words = self._at[np.clip(at, 0, last)]
        for place in zip(*np.nonzero((at < 0) | (at > last)), strict=True):
            start = int(at[place])
            piece = bytes(max(0, -start)) + self._data[max(0, start) : max(0, start + WORD)]
            words[place] = word_of(piece)
        return words


def all_digits(words: Words) -> bool:
    """Whether all bytes are at most 9."""
    return not (((words + _TO_HIGH) | words) & _HIGH).any()


def eight_digits(words: Words) -> Words:
    """The number that eight digits (bytes 0 to 9) spell."""
    pairs = (words * np.uint64(10)) + (words >> np.uint64(8))
    mask = np.uint64(0x000000FF000000FF)
    outer = (pairs & mask) * np.uint64(0x000F424000000064)
    inner = ((pairs >> np.uint64(16)) & mask) * np.uint64(0x0000271000000001)
    return (outer + inner) >> np.uint64(32)


def without_dot(digits: Words) -> tuple[Words, NDArray[np.int64]]:
    """Close the gap that a point leaves, from the left.

    Args:
        digits: characters, less "0".

    Returns:
        The digits, and how many stand after the point; -1 if there is none.
    """
    x = digits ^ (_DOTS ^ ZEROS)
    # the high bit of each byte that is zero: exact, no carries between bytes
    mark = ~(((x & _LOW7) + _LOW7) | x | _LOW7)
    if not mark.any():
        return digits, np.full(len(digits), -1, np.int64)
    mark &= ~(mark - np.uint64(1))  # only the first; a second one is no digit
    none = mark == 0
    below = (mark >> np.uint64(7)) - np.uint64(1)
    below[none] = 0
    above = ~((mark << np.uint64(1)) - np.uint64(1))
    above[none] = ~np.uint64(0)
    places = 7 - (np.bitwise_count(below).astype(np.int64) >> 3)
    places[none] = -1
    return (digits & above) | ((digits & below) << np.uint64(8)), places
