"""Which intervals give bars, and from when on."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from market_data_core.errors import UsageError
from market_data_core.intervals import format_interval
from market_data_pipeline.windows.assigner import NEVER, WindowSpec
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.collected import Closed


class IntervalsInUse:
    """The intervals that were asked for; one that is new begins with a whole window.

    Args:
        spec: the windows.
        state: what a checkpoint says of the intervals so far.
        begin: from where on events are there in full, UTC ns.

    Raises:
        UsageError: the new base window does not fit into the old one.
    """

    def __init__(self, spec: WindowSpec, state: StreamState, begin: int) -> None:
        self._asked_for = frozenset(spec.intervals_ns)
        self.since: dict[int, int] = {}
        known = state.intervals
        if not known or state.closed == NEVER:
            return
        old, base = gcd(*known), spec.base_ns
        if old % base:
            before, now = format_interval(old), format_interval(base)
            msg = (
                f"{state.provider}: windows were multiples of {before} so far and cannot become "
                f"multiples of {now}; keep {before} among micro_batch.windows, or use another "
                "consumer group and store"
            )
            raise UsageError(msg)
        self.since = {n: at for n, at in state.since.items() if n in self._asked_for}
        for length in self._asked_for - set(known):
            self.since[length] = -(-begin // length) * length

    def of(self, closed: Closed) -> Closed | None:
        """`closed` without windows that nobody asked for, or that began before somebody did."""
        if closed.length_ns not in self._asked_for:
            return None  # the base of 2s and 3s is 1s, which is nobody's interval
        if closed.length_ns not in self.since:
            return closed
        keep = closed.bars.start >= self.since[closed.length_ns]
        if keep.all():
            return closed
        left = replace(closed, bars=closed.bars.take(keep), fresh=closed.fresh[keep])
        return left if len(left.bars) else None
