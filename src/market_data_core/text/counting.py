"""Counting and finding single bytes in long data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_PIECE_BYTES = 1 << 17


def _pieces(data: bytes) -> Iterator[NDArray[np.uint8]]:
    """`data` in pieces small enough that what is made of one still is in the processor's cache."""
    view = np.frombuffer(data, np.uint8)
    for at in range(0, len(view), _PIECE_BYTES):
        yield view[at : at + _PIECE_BYTES]


def count_byte(data: bytes, value: int) -> int:
    """How often the byte `value` occurs; faster than bytes.count where it is frequent."""
    return sum(int(np.count_nonzero(piece == value)) for piece in _pieces(data))


def find_byte(data: bytes, value: int) -> NDArray[np.intp]:
    """Where the byte `value` occurs, ascending."""
    found = [
        np.flatnonzero(piece == value) + number * _PIECE_BYTES
        for number, piece in enumerate(_pieces(data))
    ]
    return np.concatenate(found) if found else np.empty(0, np.intp)


def count_unprintable(data: bytes) -> int:
    """How many bytes are control characters or not ASCII."""
    return sum(int(np.count_nonzero(piece.view(np.int8) < 32)) for piece in _pieces(data))
