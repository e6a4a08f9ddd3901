"""Putting one input's rows into time order, and counting events that bear no id.

A row's place is its **key**: its own time, but never more than `REORDER_NS` below the greatest time
that stood before it in the file. Keys depend on the file alone, not on how it is cut into chunks;
no later row can get a key below the greatest time so far minus `REORDER_NS`, so all rows up to
there can be handed out; and a row that is less late than that is put exactly where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from market_data_core.errors import OutOfOrder
from market_data_core.events import format_ts
from market_data_pipeline.providers._formats.rows import (
    BEFORE_ALL,
    REJECTED_STREAM,
    Array,
    Deferred,
    Ints,
    Rows,
    Session,
    with_seq,
)

REORDER_NS = 10**9
REJECTED_BYTES_MAX = 8 << 20
"""Rejected pieces held back at once; beyond that rows are handed out as soon as possible."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows in key order, after which no smaller key comes from the same input.

    Attributes:
        keys: shape (n,), int64, ascending.
        rows: n rows.
    """

    keys: Ints
    rows: Rows

    def take(self, index: Array | slice) -> Piece:
        """Rows at `index`."""
        return Piece(self.keys[index], self.rows.take(index))

    @classmethod
    def concat(cls, pieces: list[Piece]) -> Piece:
        """All rows of `pieces` (at least one), in the order given."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(np.concatenate([p.keys for p in pieces]), Rows.concat([p.rows for p in pieces]))

    def sorted(self) -> Piece:
        """The same rows by key; rows of equal key stay as they are."""
        if (self.keys[1:] >= self.keys[:-1]).all():
            return self
        return self.take(np.argsort(self.keys, kind="stable"))


def reordered(
    chunks: Iterator[Rows], session: Session, label: str, disorder_ns: int, buffer_events: int
) -> Iterator[Piece]:
    """One input in key order.

    Args:
        chunks: the input's rows in file order.
        session: tells how many rejected bytes are held back.
        label: the input, for messages.
        disorder_ns: how far a row may lie behind the rows already handed out.
        buffer_events: how many rows may be held back.

    Raises:
        OutOfOrder: a row is later than that, or too many rows lie within `REORDER_NS`.
        UsageError: the input is damaged; all before was yielded.
    """
    greatest = BEFORE_ALL
    held: list[Piece] = []
    held_count = new_count = 0
    deferred = Deferred(chunks)
    for rows in deferred:
        if not len(rows):
            continue
        keys, greatest = _keys(rows, greatest, label, disorder_ns)
        held.append(Piece(keys, rows))
        new_count += len(rows)
        # sorting only when the buffer has doubled keeps the cost of each row constant
        if new_count < held_count and session.rejected_bytes < REJECTED_BYTES_MAX:
            continue
        piece = Piece.concat(held).sorted()
        cut = int(np.searchsorted(piece.keys, greatest - REORDER_NS, side="right"))
        if cut:
            yield piece.take(slice(cut))
        held, held_count, new_count = [piece.take(slice(cut, None))], len(piece.keys) - cut, 0
        if held_count > buffer_events:
            msg = f"{label}: more than {buffer_events} events within {REORDER_NS // 10**9} s"
            raise OutOfOrder(msg)
    if sum(len(p.keys) for p in held):
        yield Piece.concat(held).sorted()
    deferred.check()


def _keys(rows: Rows, greatest: int, label: str, disorder_ns: int) -> tuple[Ints, int]:
    """Keys of the rows, and the greatest time after them."""
    running = np.maximum.accumulate(np.concatenate([[greatest], rows.src_ts]))
    floor = running[:-1] - REORDER_NS
    late = (rows.src_ts < floor - disorder_ns) & (rows.stream != REJECTED_STREAM)
    if late.any():
        at = int(late.argmax())
        msg = (
            f"{label}: an event of {format_ts(int(rows.src_ts[at]))} stands after one of "
            f"{format_ts(int(running[at]))}; the input must be sorted first"
        )
        raise OutOfOrder(msg)
    return np.maximum(rows.src_ts, floor), int(running[-1])


class SeqCounter:
    """Numbers events of equal stream, symbol and time from 0 in the order in which they come.

    Args:
        keep_ns: how far behind the greatest time so far an event may still come.
    """

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._greatest = BEFORE_ALL
        self._groups = np.empty(0, np.uint64)
        self._times = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)

    def number(self, rows: Rows) -> Rows:
        """`rows` with their numbers in ``seq``."""
        if not len(rows):
            return rows
        known = len(self._groups)
        new_groups = rows.stream.astype(np.uint64) << np.uint64(32) | rows.symbol
        groups = np.concatenate([self._groups, new_groups])
        times = np.concatenate([self._times, rows.src_ts])
        # stable: what was counted before comes first in its run, then the rows as they came
        order = np.lexsort((groups, times))
        groups, times = groups[order], times[order]
        first = np.ones(len(order), bool)
        first[1:] = (groups[1:] != groups[:-1]) | (times[1:] != times[:-1])
        starts = np.flatnonzero(first)
        lengths = np.diff(starts, append=len(order))
        # a run that was counted before begins with its state, which is no event itself
        head = order[starts]
        is_state = head < known
        before = np.zeros(len(starts), np.int64)
        before[is_state] = self._counts[head[is_state]] - 1
        position = np.arange(len(order)) - np.repeat(starts, lengths)
        numbers = np.empty(len(order), np.int64)
        numbers[order] = position + np.repeat(before, lengths)
        self._greatest = max(self._greatest, int(rows.src_ts.max()))
        keep = times[starts] >= max(self._greatest - self._keep_ns, BEFORE_ALL + 1)
        self._groups, self._times = groups[starts][keep], times[starts][keep]
        self._counts = (before + lengths)[keep]
        return with_seq(rows, numbers[known:])
