"""NDJSON whose lines are all of one shape: same keys, same order, same spaces.

That is how one program writes its events, and it makes a parser unnecessary: the commas cut every
line into the same fields, what stands before a value is compared with the first line, and values
are read a column at a time. Whatever is not plain gives None, and the caller takes a parser that
knows all of JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.text.counting import count_byte, count_unprintable, find_byte
from market_data_core.text.words import (
    LOW_BYTES,
    WORD,
    ZEROS,
    Index,
    Text,
    Words,
    all_digits,
    eight_digits,
    without_dot,
    word_of,
)

_DIGITS_MAX = 15
"""So many digits are exact in float64, and a power of ten below 10**22 is too (Clinger, 1990)."""
_TEXT_WORDS_MAX = 8
_MIX = np.uint64(0x9E3779B97F4A7C15)
_POWERS = 10.0 ** np.arange(_DIGITS_MAX + 1)
_FIELD = re.compile(rb'[{,] ?"(\w+)": ?("[^"\\]*"|[^",{}\[\] ]+)')


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of every line.

    Attributes:
        prefix: what stands before the value: comma or brace, key, colon, the quote of a text.
        is_text: whether the value is in quotes.
    """

    prefix: bytes
    is_text: bool


@dataclass(frozen=True, slots=True)
class Numbers:
    """Plain decimals, ``mantissa / 10**places``.

    Attributes:
        mantissa: shape (n,), int64.
        places: shape (n,), int64, digits after the point.
    """

    mantissa: NDArray[np.int64]
    places: NDArray[np.int64]

    def to_floats(self) -> NDArray[np.float64]:
        """The nearest float64 of each: one correctly rounded division of two exact numbers."""
        return self.mantissa / _POWERS[self.places]


class UniformLines:
    """The fields of a block of lines; made by :func:`uniform_lines`.

    Attributes:
        keys: the fields' names.
        text_keys: names of those whose values are in quotes.
    """

    def __init__(
        self, text: Text, data: bytes, fields: dict[str, _Field], begins: Index, lengths: Index
    ) -> None:
        self._text, self._data = text, data
        self._row = {key: row for row, key in enumerate(fields)}
        self.text_keys = {key for key, field in fields.items() if field.is_text}
        self._begins, self._lengths = begins, lengths
        self._heads = text.words(begins) & LOW_BYTES[np.minimum(lengths, WORD)]
        self.keys = self._row.keys()

    def words(self, key: str) -> list[Words]:
        """The values, left-aligned, in as many words as the longest one needs; zeros behind.

        No byte of a value is zero, so equal words mean equal values.
        """
        row = self._row[key]
        begin, length = self._begins[row], self._lengths[row]
        words = [self._heads[row]]
        shortest, longest = int(length.min()), int(length.max())
        for offset in range(WORD, longest, WORD):
            word = self._text.words(begin + offset)
            if shortest < offset + WORD:
                word &= LOW_BYTES[np.clip(length - offset, 0, WORD)]
            words.append(word)
        return words

    def length(self, key: str) -> int:
        """The length of the values in bytes; -1 if they differ."""
        lengths = self._lengths[self._row[key]]
        first = int(lengths[0])
        return first if (lengths == first).all() else -1

    def are(self, key: str, value: bytes) -> bool:
        """Whether all values are `value`, of at most eight bytes."""
        return self.length(key) == len(value) and bool(
            (self._heads[self._row[key]] == word_of(value)).all()
        )

    def same(self, key: str, other: str) -> bool:
        """Whether two fields hold the same bytes in every line."""
        row, at = self._row[key], self._row[other]
        return (
            np.array_equal(self._heads[row], self._heads[at])
            and np.array_equal(self._lengths[row], self._lengths[at])
            and all(map(np.array_equal, self.words(key), self.words(other)))
        )

    def texts(self, key: str) -> tuple[list[str], Index] | None:
        """Distinct values, and the index of each line's value among them; None if one is long."""
        words = self.words(key)
        if len(words) > _TEXT_WORDS_MAX:
            return None
        mixed = words[0]
        for word in words[1:]:
            mixed = (mixed * _MIX) ^ word
        first: Index = np.zeros(1, np.intp)
        codes: Index = np.zeros(len(mixed), np.uint32)
        if (mixed != mixed[0]).any():
            _, first, codes = np.unique(mixed, return_index=True, return_inverse=True)
        if len(words) > 1 and any((word != word[first][codes]).any() for word in words):
            return None  # two values mixed into one
        row = self._row[key]
        spans = zip(
            self._begins[row][first].tolist(), self._lengths[row][first].tolist(), strict=True
        )
        return [self._data[at : at + length].decode() for at, length in spans], codes

    def numbers(self, key: str) -> Numbers | None:
        """The values as decimals; None if one is signed, has an exponent or too many digits."""
        row = self._row[key]
        begin, length = self._begins[row], self._lengths[row]
        longest, end = int(length.max()), begin + length
        if longest > _DIGITS_MAX + 1 or not _well_formed(self._heads[row], length):
            return None
        low, places = without_dot(self._digits(end - WORD, np.minimum(length, WORD)))
        if longest <= WORD:
            return _numbers([low], places)
        high = self._digits(end - 2 * WORD, np.clip(length - WORD, 0, WORD))
        dotted = places >= 0
        # taking the point out of the lower word makes room for a digit of the upper one
        low = np.where(dotted, low | (high >> np.uint64(56)), low)
        shorter, more = without_dot(high)
        if (dotted & (more >= 0)).any():
            return None
        high = np.where(dotted, high << np.uint64(8), shorter)
        return _numbers([high, low], np.where(more >= 0, more + WORD, places))

    def _digits(self, at: Index, length: Index) -> Words:
        """The last `length` of the eight bytes from `at` on, less "0"; zeros before them."""
        kept: Words = ~LOW_BYTES[WORD - length]
        return (self._text.words(at) ^ ZEROS) & kept


def _well_formed(head: Words, length: Index) -> bool:
    """Whether JSON allows the beginnings: no point first, no zero before another digit."""
    first, second = head & np.uint64(0xFF), (head >> np.uint64(8)) & np.uint64(0xFF)
    leading = (first == ord("0")) & (length > 1) & (second != ord("."))
    return not ((first == ord(".")) | leading).any()


def _numbers(words: list[Words], places: NDArray[np.int64]) -> Numbers | None:
    mantissa = np.zeros(len(places), np.int64)
    for word in words:
        if not all_digits(word):
            return None
        mantissa = mantissa * 10**WORD + eight_digits(word).astype(np.int64)
    if (places == 0).any():
        return None  # nothing after the point
    return Numbers(mantissa, np.maximum(places, 0))


def uniform_lines(data: bytes, lines: int) -> UniformLines | None:
    """Cut a block of `lines` whole lines into fields; None unless all are like the first.

    Every line is then a JSON object with the same keys, whose texts are printable ASCII without
    escapes; what its numbers are is found out when they are read.
    """
    shape = _shape(data[: data.find(b"\n")])
    if shape is None or b"\\" in data:
        return None
    fields = list(shape.values())
    quotes = 2 * len(shape) + 2 * sum(field.is_text for field in fields)
    if count_byte(data, ord('"')) != quotes * lines or count_unprintable(data) != lines:
        return None
    newlines, commas = find_byte(data, ord("\n")), find_byte(data, ord(","))
    if len(newlines) != lines or len(commas) != (len(shape) - 1) * lines:
        return None
    cuts = np.empty((len(shape) + 1, lines), np.int64)
    cuts[0, 0], cuts[0, 1:] = 0, newlines[:-1] + 1
    cuts[1:-1] = commas.reshape(lines, -1).T
    cuts[-1] = newlines - 1
    if (cuts[1] <= cuts[0]).any() or (cuts[-2] >= cuts[-1]).any():
        return None  # a line has more commas than another
    begins = cuts[:-1] + np.array([[len(field.prefix)] for field in fields])
    ends = cuts[1:] - np.array([[int(field.is_text)] for field in fields])
    lengths = ends - begins
    if (lengths < np.array([[int(not field.is_text)] for field in fields])).any():
        return None
    text, raw = Text(data), np.frombuffer(data, np.uint8)
    texts = [row for row, field in enumerate(fields) if field.is_text]
    if (raw[cuts[-1]] != ord("}")).any() or (raw[ends[texts]] != ord('"')).any():
        return None
    if not _same_prefixes(text, fields, cuts):
        return None
    return UniformLines(text, data, shape, begins, lengths)


def _same_prefixes(text: Text, fields: list[_Field], cuts: Index) -> bool:
    """Whether every field begins as it does in the first line."""
    rows, offsets, wanted, masks = [], [], [], []
    for row, field in enumerate(fields):
        size = len(field.prefix)
        # words side by side, the last one reaching back over what was compared already
        for at in sorted({*range(0, size - WORD, WORD), max(0, size - WORD)}):
            piece = field.prefix[at : at + WORD]
            rows.append(row)
            offsets.append([at])
            wanted.append([word_of(piece)])
            masks.append([LOW_BYTES[len(piece)]])
    found = text.words(cuts[rows] + np.array(offsets)) & np.array(masks)
    return bool((found == np.array(wanted, np.uint64)).all())


def _shape(line: bytes) -> dict[str, _Field] | None:
    """The fields of a line, each with the comma or brace before it; None if it is not flat."""
    fields: dict[str, _Field] = {}
    at = 0
    while found := _FIELD.match(line, at):
        is_text = line[found.start(2)] == ord('"')
        key = found[1].decode()
        if key in fields:
            return None
        fields[key] = _Field(line[at : found.start(2) + is_text], is_text)
        at = found.end()
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return fields if fields and line[at:] == b"}" else None
