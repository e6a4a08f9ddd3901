"""Which records of a partition may hold events of a time: for logs that have no such index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_OPEN_MAX = 65_536
_FIRST, _LAST, _MIN_TS, _MAX_TS, _PROVIDER = range(5)
_ANY = 0


def may_hold(
    provider: str, min_ts: int, max_ts: int, count: int, wanted: str, from_ts: int, to_ts: int
) -> bool:
    """Whether a record may hold events of provider `wanted` with from_ts <= src_ts < to_ts.

    Args:
        provider: the record's, "" where its events may be anybody's.
        min_ts: least src_ts inside, UTC ns.
        max_ts: greatest src_ts inside, UTC ns.
        count: events inside; a record without events never does.
        wanted: the provider that is looked for.
        from_ts: UTC ns.
        to_ts: UTC ns, exclusive.
    """
    return count > 0 and provider in {"", wanted} and max_ts >= from_ts and min_ts < to_ts


class TimeIndex:
    """Offsets of one partition by provider and event time, in memory.

    Records are told in the order of their offsets. An entry takes 40 bytes; where there would be
    more than `entries_max`, neighbours share one, which makes answers wider, never narrower.
    """

    def __init__(self, entries_max: int = 1 << 21) -> None:
        self._entries_max = entries_max
        self._columns: NDArray[np.int64] = np.empty((5, 0), np.int64)
        self._open: list[tuple[int, int, int, int, int]] = []
        self._codes = {"": _ANY}
        self._next = 0

    @property
    def next(self) -> int:
        """Position behind the last record that was told; 0 at first."""
        return self._next

    def add(self, offset: int, provider: str, min_ts: int, max_ts: int, count: int) -> None:
        """Tell of the next record; one without events only moves :attr:`next`.

        Raises:
            ValueError: `offset` is not behind the last one.
        """
        if offset < self._next:
            msg = f"offset {offset} was told before; the next is at least {self._next}"
            raise ValueError(msg)
        self._next = offset + 1
        if count <= 0:
            return
        code = self._codes.setdefault(provider, len(self._codes))
        self._open.append((offset, offset, min_ts, max_ts, code))
        if len(self._open) >= _OPEN_MAX:
            self._close()

    def forget(self, below: int) -> None:
        """Forget all records with an offset less than `below`, and do not ask for them again."""
        self._close()
        gone = int(np.searchsorted(self._columns[_LAST], below))
        if gone:
            self._columns = self._columns[:, gone:].copy()
        self._next = max(self._next, below)

    def find(self, provider: str, from_ts: int, to_ts: int) -> list[tuple[int, int]]:
        """Where events of `provider` with from_ts <= src_ts < to_ts (UTC ns) may be.

        Returns:
            Ranges (first offset, last offset), both inclusive, ascending and disjoint. They hold
            all such records, and may hold others: see :func:`may_hold`.
        """
        self._close()
        codes = self._columns[_PROVIDER]
        fits = (self._columns[_MAX_TS] >= from_ts) & (self._columns[_MIN_TS] < to_ts)
        fits &= (codes == _ANY) | (codes == self._codes.get(provider, _ANY))
        places = np.flatnonzero(fits)
        if not len(places):
            return []
        begins = np.flatnonzero(np.diff(places, prepend=-2) > 1)
        ends = np.append(begins[1:], len(places)) - 1
        firsts = self._columns[_FIRST][places[begins]]
        lasts = self._columns[_LAST][places[ends]]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def _close(self) -> None:
        if self._open:
            more = np.array(self._open, np.int64).T
            self._columns = np.concatenate([self._columns, more], axis=1)
            self._open.clear()
        while self._columns.shape[1] > self._entries_max:
            self._columns = _paired(self._columns)


def _paired(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two neighbours in one entry each; what they do not share is anybody's."""
    even = columns.shape[1] // 2 * 2
    left, right = columns[:, :even:2], columns[:, 1:even:2]
    both = left.copy()
    both[_LAST] = right[_LAST]
    both[_MIN_TS] = np.minimum(left[_MIN_TS], right[_MIN_TS])
    both[_MAX_TS] = np.maximum(left[_MAX_TS], right[_MAX_TS])
    both[_PROVIDER] = np.where(left[_PROVIDER] == right[_PROVIDER], left[_PROVIDER], _ANY)
    return np.concatenate([both, columns[:, even:]], axis=1)
