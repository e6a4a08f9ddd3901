"""Vendor bars: stored as they came, each identity once, the highest seq of a bar winning.

A vendor's bar is complete when it comes, so nothing waits. The bars above the final watermark
are remembered, to tell a copy from a correction; they travel in the checkpoint rather than being
read again, because two of a vendor's days would otherwise hold back the whole log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from market_data_core.bars import BarBatch
from market_data_core.events import OFFICIAL_SUFFIX, EventBatch, concat_batches
from market_data_core.intervals import parse_interval
from market_data_pipeline.windows.aggregate import Events, Index, order_events
from market_data_pipeline.windows.assigner import NEVER, WindowSpec, running_greatest
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.group import Decided

_NONE: Index = np.empty(0, np.intp)


@dataclass(slots=True)
class OfficialTaken:
    """What taking vendor bars gave: bars to write, and indices of the rest of the batch."""

    bars: list[Decided]
    stored: int
    deduplicated: int
    late: Index
    conflicts: Index


class OfficialBars:
    """Bars of one provider and interval in one partition.

    Args:
        spec: lateness and horizon; the horizon is at least two bars long.
        provider: the feed.
        interval: canonical interval of its bars.
        state: where a checkpoint left off.
        decode: turns the checkpoint's bytes back into a batch.
    """

    def __init__(
        self,
        spec: WindowSpec,
        provider: str,
        interval: str,
        state: StreamState | None = None,
        decode: Callable[[bytes], EventBatch] | None = None,
    ) -> None:
        self._spec = spec
        self._provider = provider
        self._interval = interval
        self._horizon = max(spec.revise_horizon_ns, 2 * parse_interval(interval))
        self._watermark = state.watermark if state else NEVER
        self._recent = decode(state.bars) if state and state.bars and decode else None

    def state(self, encode: Callable[[EventBatch], bytes]) -> StreamState:
        """What a checkpoint has to hold."""
        return StreamState(
            provider=self._provider,
            kind="bar",
            interval=self._interval,
            watermark=self._watermark,
            bars=encode(self._recent) if self._recent is not None else b"",
        )

    def take(self, batch: EventBatch) -> OfficialTaken:
        """Take bars as they stand in the log."""
        before = running_greatest(batch.src_ts - self._spec.allow_late_ns, self._watermark)
        late = batch.src_ts < before - self._horizon
        self._watermark = max(self._watermark, int(batch.src_ts.max()) - self._spec.allow_late_ns)
        fresh = np.flatnonzero(~late)
        if not len(fresh):
            return OfficialTaken([], 0, 0, np.flatnonzero(late), _NONE)
        old = self._recent
        known = 0 if old is None else len(old)
        taken = batch.take(fresh)
        joined = taken if old is None else concat_batches([old, taken])
        ordered = order_events(_events(joined))
        duplicates = ordered.duplicates[ordered.duplicates >= known]
        conflicts = ordered.conflicts[ordered.conflicts >= known]
        new = ordered.arrival >= known
        # in total order the last row of a (symbol, ts) has the highest seq: it is the bar
        codes, ts = ordered.events.codes, ordered.events.ts
        last = np.ones(len(ts), bool)
        last[:-1] = (codes[1:] != codes[:-1]) | (ts[1:] != ts[:-1])
        write = joined.take(ordered.arrival[new & last])
        # every version of a bar is an event: those that came now stand or fall with its row
        ends = np.flatnonzero(last)
        counts = np.add.reduceat(new.astype(np.int64), np.concatenate(([0], ends[:-1] + 1)))
        keep = joined.take(np.sort(ordered.arrival))
        keep = keep.take(keep.src_ts >= self._watermark - self._horizon)
        self._recent = keep if len(keep) else None
        return OfficialTaken(
            [Decided(_bars(write), counts[new[ends]])] if len(write) else [],
            int(new.sum()),
            len(duplicates),
            np.flatnonzero(late),
            fresh[np.sort(conflicts) - known],
        )


def _events(batch: EventBatch) -> Events:
    return Events(batch.codes, batch.src_ts, batch.seq, batch.close, batch.volume, batch.prices())


def _bars(batch: EventBatch) -> BarBatch:
    o, h, low = (column.to_floats() for column in batch.prices())
    n = len(batch)
    return BarBatch(
        provider=batch.provider + OFFICIAL_SUFFIX,
        interval=batch.interval,
        state="final",
        symbols=batch.symbols,
        codes=batch.codes,
        ts=batch.src_ts,
        open=o,
        high=h,
        low=low,
        close=batch.close.to_floats(),
        volume=batch.volume.to_floats(),
        vwap=np.full(n, np.nan),
        trade_count=np.full(n, -1, np.int64),
    )
