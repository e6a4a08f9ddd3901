"""Which windows there are, and which one an event belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.errors import UsageError
from market_data_core.intervals import NS_PER_MS

FOREVER = 2**63 - 2**60
"""A time after every event (in 2225), with room for sums in 64 bits: the end of a lane."""
NEVER = -FOREVER
"""A time before every event: the watermark of a stream that has not begun."""


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """Tumbling windows of one or several lengths, aligned to 1970-01-01T00:00:00Z.

    Attributes:
        intervals_ns: lengths to give bars for, ascending; multiples of 1 ms.
        allow_late_ns: how far the watermark stays behind the greatest src_ts.
        revise_horizon_ns: how long a closed window can still be restated, in event time.
    """

    intervals_ns: tuple[int, ...]
    allow_late_ns: int
    revise_horizon_ns: int

    def __post_init__(self) -> None:
        if not self.intervals_ns or any(i <= 0 or i % NS_PER_MS for i in self.intervals_ns):
            msg = f"windows {self.intervals_ns} ns must be positive multiples of 1 ms"
            raise UsageError(msg)
        if self.allow_late_ns < 0 or self.revise_horizon_ns < 0:
            msg = "allowed lateness and revise horizon must not be negative"
            raise UsageError(msg)

    @property
    def base_ns(self) -> int:
        """Length of the base window, the greatest common divisor of all intervals."""
        return gcd(*self.intervals_ns)

    @property
    def wide_ns(self) -> tuple[int, ...]:
        """Intervals that are merged from base bars."""
        return tuple(i for i in self.intervals_ns if i != self.base_ns)

    @property
    def widest_ns(self) -> int:
        """The longest interval."""
        return max(self.intervals_ns)


def floor_to(ts: int, length_ns: int) -> int:
    """Start of the window of `length_ns` that `ts` lies in; NEVER and FOREVER stay as they are."""
    return ts if abs(ts) >= FOREVER else ts - ts % length_ns


def window_starts(ts: NDArray[np.int64], length_ns: int) -> NDArray[np.int64]:
    """Start of each event's window, shape (n,), UTC ns."""
    return ts // length_ns * length_ns


def running_greatest(ts: NDArray[np.int64], before: int) -> NDArray[np.int64]:
    """Greatest time read before each event, shape (n,), `before` for the first one."""
    out = np.empty(len(ts), np.int64)
    out[0] = before
    np.maximum.accumulate(ts[:-1], out=out[1:])
    return np.maximum(out, before, out=out)


def window_keys(codes: NDArray[Any], starts: NDArray[np.int64], length_ns: int) -> NDArray[Any]:
    """One integer for each (symbol, window), shape (n,), int64, ordered by symbol, then time."""
    return codes.astype(np.int64) * (1 << 44) + (starts // length_ns)
