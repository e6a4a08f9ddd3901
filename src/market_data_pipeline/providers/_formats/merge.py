"""Joining inputs that are in order, and cutting the result into blocks of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from market_data_pipeline.providers._formats.order import REJECTED_BYTES_MAX, Piece
from market_data_pipeline.providers._formats.rows import Deferred, Rows, Session

BLOCK_ROWS = 1 << 15


def merged(inputs: Sequence[Iterator[Piece]]) -> Iterator[Rows]:
    """Rows of all inputs by key; rows of equal key in the order of the inputs.

    Only the input that holds the others up is read on, so no more than one piece of each is in
    memory.

    Raises:
        UsageError: the first error of any input, after everything that could be read.
    """
    sources = [_Source(pieces) for pieces in inputs]
    while live := [source for source in sources if source.fill()]:
        slowest = min(range(len(live)), key=lambda i: (live[i].last_key, i))
        bound = live[slowest].last_key
        # rows at the bound may still come from the slowest input, and go before later inputs'
        parts = [source.pop(bound, inclusive=i <= slowest) for i, source in enumerate(live)]
        yield Piece.concat(parts).sorted().rows
    for source in sources:
        source.deferred.check()


class _Source:
    """What is in memory of one input."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.deferred = Deferred(pieces)
        self._pieces = iter(self.deferred)
        self._piece: Piece | None = None

    def fill(self) -> bool:
        """Read on if nothing is left in memory; False at the end."""
        while self._piece is None or not len(self._piece.keys):
            self._piece = next(self._pieces, None)
            if self._piece is None:
                return False
        return True

    @property
    def last_key(self) -> int:
        """Nothing below this comes after what is in memory."""
        return int(self._current.keys[-1])

    def pop(self, bound: int, *, inclusive: bool) -> Piece:
        """Take the rows up to `bound` out of memory."""
        piece = self._current
        cut = int(np.searchsorted(piece.keys, bound, side="right" if inclusive else "left"))
        self._piece = piece.take(slice(cut, None))
        return piece.take(slice(cut))

    @property
    def _current(self) -> Piece:
        assert self._piece is not None  # noqa: S101
        return self._piece


def blocks(parts: Iterator[Rows], session: Session) -> Iterator[Rows]:
    """The same rows in blocks of `BLOCK_ROWS`, whatever the sizes they come in.

    A block ends early, at a place that depends on the rows alone, where the rejected pieces in it
    become too large to hold.
    """
    held: list[Rows] = []
    held_count = held_bytes = 0
    deferred = Deferred(parts)
    for rows in deferred:
        at, sizes = session.rejected_sizes(rows)
        pending = list(zip(at.tolist(), sizes, strict=True))[::-1]
        start = 0
        while start < len(rows):
            end = min(len(rows), start + BLOCK_ROWS - held_count)
            while pending and pending[-1][0] < end and held_bytes < REJECTED_BYTES_MAX:
                position, size = pending.pop()
                held_bytes += size
                if held_bytes >= REJECTED_BYTES_MAX:
                    end = position + 1
            held.append(rows.take(slice(start, end)))
            held_count += end - start
            start = end
            if held_count == BLOCK_ROWS or held_bytes >= REJECTED_BYTES_MAX:
                yield Rows.concat(held)
                held, held_count, held_bytes = [], 0, 0
    if held_count:
        yield Rows.concat(held)
    deferred.check()
