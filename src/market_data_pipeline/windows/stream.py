"""The window engine: one provider's ticks in one partition, from events to exact bars.

Pure state and arithmetic: it reads no clock, no log and no store, so that what it gives depends
only on the events and marks it was handed, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from market_data_core.events import EventBatch, code_dtype
from market_data_pipeline.windows.aggregate import (
    Events,
    Index,
    Ordered,
    bars_of,
    concat_events,
    order_events,
)
from market_data_pipeline.windows.assigner import (
    FOREVER,
    NEVER,
    WindowSpec,
    floor_to,
    running_greatest,
    window_keys,
)
from market_data_pipeline.windows.checkpoint import StreamState, pack_bars, unpack_bars
from market_data_pipeline.windows.collected import (
    Block,
    Collected,
    Part,
    block_of,
    fresh_events,
    hand_out,
    merge_tail,
)
from market_data_pipeline.windows.in_use import IntervalsInUse
from market_data_pipeline.windows.wide import WideWindows

_SMALL, _MERGE = 256, 32
"""So many parts of fewer events than that are put together, one after the other, as they come."""


class WindowStream:
    """Windows of one provider in one partition.

    Events wait in `pending` until the watermark passes their base window; then the window closes
    and gives its bar. Its distinct events are kept until the final watermark has passed it too,
    to recognise copies and to restate the bar when an event comes late.

    Args:
        spec: window lengths, lateness and horizon.
        state: where a checkpoint left the stream; None for a new one.
    """

    def __init__(self, spec: WindowSpec, state: StreamState | None = None) -> None:
        state = state or StreamState(provider="")
        self.spec = spec
        self.watermark = state.watermark
        self.closed = state.closed
        self.fence = state.fence
        self.taint = state.taint
        self.greatest = state.greatest
        self.paused = state.paused
        self.protected = NEVER  # stored bars that begin before it stay as they are
        self.symbols: dict[str, int] = {s: i for i, s in enumerate(state.symbols)}
        settled = {length: unpack_bars(bars) for length, bars in state.settled.items()}
        self.wide = WideWindows(spec.base_ns, spec.wide_ns, settled)
        # up to here everything is in settled rows; it follows the final watermark at each collect
        self._settled_to = min(self.final, self.closed)
        self._in_use = IntervalsInUse(spec, state, max(self._settled_to, self.closed))
        self._replayed = state.replay
        self._maps: dict[tuple[str, ...], Index] = {}
        self._pending: list[Part] = []
        self._small = 0
        self._late: list[Part] = []
        self._restored: list[Part] = []
        self._blocks: list[Block] = []

    @property
    def final(self) -> int:
        """The final watermark: base windows that end at or below it can no longer change."""
        return self.final_at(self.watermark)

    def state(self, provider: str) -> StreamState:
        """What a checkpoint has to hold, so that the log above `final` gives the rest."""
        self._settle()  # the final watermark may have moved on without closing a window
        settled = {length: pack_bars(b) for length, b in self.wide.settled.items() if len(b)}
        return StreamState(
            provider=provider,
            watermark=self.watermark,
            closed=self.closed,
            fence=self.fence,
            taint=self.taint,
            greatest=self.greatest,
            paused=self.paused,
            replay=self._replay_from(),
            intervals=list(self.spec.intervals_ns),
            since=self._in_use.since,
            symbols=list(self.symbols) if settled else [],
            settled=settled,
        )

    def _replay_from(self) -> int:
        """Watermark before the first record that is read again; NEVER if F alone decides."""
        if self.final <= self.closed:
            return NEVER
        held = [p for p in (*self._pending, *self._late) if p.position >= 0]
        return min(held, key=lambda p: p.position).before if held else NEVER

    def final_at(self, watermark: int) -> int:
        """The final watermark that belongs to a `watermark`."""
        if abs(watermark) >= FOREVER:
            return max(watermark, self.fence)
        final = floor_to(watermark - self.spec.revise_horizon_ns, self.spec.base_ns)
        return max(final, self.fence)

    @property
    def open_events(self) -> int:
        """Own events read but not yet decided on."""
        parts = (*self._pending, *self._late)
        return sum(len(p.events) if p.events.own is None else 0 for p in parts)

    @property
    def open_windows(self) -> int:
        """Distinct (symbol, base window) pairs that wait to be closed."""
        keys = [window_keys(p.events.codes, p.events.ts, self.spec.base_ns) for p in self._pending]
        return len(np.unique(np.concatenate(keys))) if keys else 0

    def next_end(self) -> int:
        """End of the window that is next to close, FOREVER if no window is open."""
        base = self.spec.base_ns
        first = min((p.first for p in self._pending), default=FOREVER)
        pending = FOREVER if first >= FOREVER else floor_to(first, base) + base
        return min(pending, self.wide.next_end(self.closed))

    def release_at(self) -> int:
        """Watermark at which nothing of the closed windows is held any more."""
        held = [*(b.last for b in self._blocks), *(p.last for p in self._restored)]
        last = max(held, default=FOREVER)
        if last >= FOREVER:
            return FOREVER
        return floor_to(last, self.spec.base_ns) + self.spec.base_ns + self.spec.revise_horizon_ns

    def known_until(self) -> int:
        """End of the last window that anything read so far lies in."""
        last = max((p.last + 1 for p in self._pending), default=self.closed)
        last = max(last, self.closed)
        if abs(last) >= FOREVER:
            return last
        return max(-(-last // n) * n for n in (self.spec.base_ns, *self.spec.wide_ns))

    def history_from(self) -> int:
        """From where on a lane needs to know what others stored.

        A resumed stream has everything below its final watermark in its settled rows; a new one
        begins with the widest window that any event that is not late can lie in.
        """
        if self.closed > NEVER:
            return self._settled_to
        first = min((p.first for p in self._pending), default=FOREVER)
        return self._begun_before(min(first, self.final))

    def unsettled_from(self) -> int:
        """Begin of the earliest window that reaches above what is settled."""
        return self._begun_before(self._settled_to)

    def _begun_before(self, ts: int) -> int:
        return min(floor_to(ts, length) for length in (self.spec.base_ns, *self.spec.wide_ns))

    def resume_position(self) -> int | None:
        """Lowest log offset that still feeds a window above the final watermark."""
        parts = (*self._pending, *self._late, *self._restored)
        positions = (*(p.position for p in parts), *(b.position for b in self._blocks))
        return min((p for p in positions if p >= 0), default=None)

    def add(self, batch: EventBatch, position: int, offsets: Index | None = None) -> Index:
        """Take events read at log offset `position`, the watermark following them.

        Args:
            batch: the events.
            position: offset of the first record that they came from.
            offsets: each event's own, shape (n,), if they came from several records.

        Returns:
            Indices of events that came after the final watermark; they were not taken.
        """
        ts = batch.src_ts
        self.paused = False
        self.greatest = max(self.greatest, int(ts.max()))
        greatest = max(self.watermark, int(ts.max()) - self.spec.allow_late_ns)
        late: Index = np.empty(0, np.intp)
        events = self._events(batch)
        watermark, self.watermark = self.watermark, greatest
        if int(ts.min()) < self.final_at(greatest):
            late, events = self._split_late(events, watermark)
            offsets = offsets if offsets is None else np.delete(offsets, late)
        if len(events):
            self._place(Part(events, position, watermark, offsets), self._late)
            self._small = self._small + 1 if len(events) < _SMALL else 0
            if self._small == _MERGE:
                self._small = 0
                merge_tail(self._pending, _MERGE)
        return late

    def _split_late(self, events: Events, watermark: int) -> tuple[Index, Events]:
        before = running_greatest(events.ts - self.spec.allow_late_ns, max(watermark, NEVER // 2))
        base = self.spec.base_ns
        final = (before - self.spec.revise_horizon_ns) // base * base
        late = events.ts < np.maximum(final, self.fence)
        return np.flatnonzero(late), events.take(~late) if late.any() else events

    def restore(self, batch: EventBatch, position: int) -> None:
        """Take events that a checkpoint has already counted; those at or below F are skipped.

        Where closing was held back, F is above windows that are still open: what was late for
        them is found out again.
        """
        events, before = self._events(batch), self._replayed
        if before > NEVER:
            self.restore_mark(int(events.ts.max()) - self.spec.allow_late_ns)
            events = self._split_late(events, before)[1]
        keep = events.ts >= self._settled_to
        if keep.any():
            self._place(Part(events.take(keep), position, before), self._restored)

    def restore_mark(self, watermark: int) -> None:
        """Follow the watermark of what is read again."""
        if self._replayed > NEVER:
            self._replayed = max(self._replayed, watermark)

    def resettle(self, own: Sequence[EventBatch], known: Sequence[EventBatch]) -> None:
        """Make the settled rows anew.

        Args:
            own: everything of ours from `unsettled_from` to `history_from`.
            known: everything that others have stored there.
        """
        parts = [replace(self._events(b), own=np.zeros(len(b), bool)) for b in known]
        parts += [self._events(b) for b in own]
        if parts:
            base = bars_of(order_events(concat_events(parts)).events, self.spec.base_ns)
            self.wide.resettle(base, self._settled_to)

    def inject(self, batch: EventBatch) -> None:
        """Take events known from elsewhere: they make bars whole and are counted nowhere here."""
        events = replace(self._events(batch), own=np.zeros(len(batch), bool))
        keep = events.ts >= self._settled_to
        if keep.any():
            self._place(Part(events.take(keep), -1), self._restored)

    def _place(self, part: Part, closed: list[Part]) -> None:
        """Sort into open windows and `closed` ones."""
        below, above = part.split(self.closed)
        if below:
            closed.append(below)
        if above:
            self._pending.append(above)

    def _events(self, batch: EventBatch) -> Events:
        mapping = self._maps.get(batch.symbols)
        if mapping is None:
            index = self.symbols
            codes = [index.setdefault(s, len(index)) for s in batch.symbols]
            mapping = np.array(codes, code_dtype(max(len(index), 1)))
            if len(self._maps) > 256:
                self._maps.clear()
            self._maps[batch.symbols] = mapping
        return Events(
            mapping[batch.codes], batch.src_ts, batch.seq, batch.close, batch.volume, batch.ohl
        )

    def progress(self, ts: int) -> None:
        """The provider has reached `ts` elsewhere."""
        self.paused = False
        self.greatest = max(self.greatest, ts)
        self.advance(ts - self.spec.allow_late_ns)

    def advance(self, watermark: int) -> None:
        """Raise the watermark to at least `watermark` (a mark in the log said so)."""
        self.watermark = max(self.watermark, watermark)

    def due(self, limit: int = FOREVER) -> bool:
        """Whether :meth:`collect` has something to do."""
        return bool(self._late) or self._closing(limit) > self.closed

    def _closing(self, limit: int) -> int:
        return min(floor_to(self.watermark, self.spec.base_ns), limit)

    def collect(self, limit: int = FOREVER) -> Collected:
        """Close what the watermark has passed, restate what late events changed.

        Args:
            limit: windows that end above it stay open (a lane that must not overtake a feed).
        """
        out = Collected()
        if self._restored:
            self._rebuild()
        if self._late:
            self._restate(out)
        closing = self._closing(limit)
        if closing > self.closed:
            self._close(closing, out)
        self._settle()
        out.bars = [c for c in map(self._in_use.of, out.bars) if c]
        return out

    def _settle(self) -> None:
        """Let go of what can no longer change."""
        if self._restored:
            self._rebuild()
        self._settled_to = max(self._settled_to, min(self.final, self.closed))
        self.wide.settle(self._settled_to)
        self._blocks = [block for block in self._blocks if block.last >= self._settled_to]

    def _rebuild(self) -> None:
        parts, self._restored = self._restored, []
        # what is known from elsewhere was there first, so it wins against a copy of ours
        parts.sort(key=lambda part: part.events.own is None)
        ordered = order_events(concat_events([p.events for p in parts]))
        self.wide.keep(bars_of(ordered.events, self.spec.base_ns))
        self._blocks.append(block_of(ordered.events, parts))

    def _close(self, closing: int, out: Collected) -> None:
        assert closing >= FOREVER or closing % self.spec.base_ns == 0  # noqa: S101
        before, self.closed = self.closed, closing
        split = [part.split(closing) for part in self._pending]
        parts = [below for below, _ in split if below]
        self._pending = [above for _, above in split if above]
        if parts:
            parts.sort(key=lambda part: part.events.own is None)
            ordered, stored = self._decide(parts, 0, out)
            base = bars_of(ordered.events, self.spec.base_ns)
            hand_out(self.spec.base_ns, base, fresh_events(base, stored), False, out)
            self.wide.keep(base)
            self._blocks.append(block_of(ordered.events, parts))
        for length, bars in self.wide.closed(before, closing):
            hand_out(length, bars, np.zeros(len(bars), np.int64), False, out)

    def _restate(self, out: Collected) -> None:
        late, self._late = self._late, []
        fresh = concat_events([p.events for p in late])
        base = self.spec.base_ns
        keys = np.unique(window_keys(fresh.codes, fresh.ts, base))
        known = []
        for block in self._blocks:
            at = np.isin(window_keys(block.events.codes, block.events.ts, base), keys)
            if at.any():
                known.append(Part(block.events.take(at), -1))
        already = sum(len(p.events) for p in known)
        ordered, stored = self._decide([*known, *late], already, out)
        added = ordered.arrival >= already
        if not added.any():
            return
        new = ordered.events.take(added)
        self._blocks.append(block_of(new, late))
        bars = bars_of(ordered.events, base)
        counted = fresh_events(bars, stored)
        touched = np.isin(
            window_keys(bars.codes, bars.start, base), window_keys(new.codes, new.ts, base)
        )
        bars = bars.take(touched)
        hand_out(base, bars, counted[touched], True, out)
        self.wide.keep(bars)
        for length, wide in self.wide.restated(bars, self.closed):
            hand_out(length, wide, np.zeros(len(wide), np.int64), True, out)

    def _decide(
        self, parts: list[Part], already: int, out: Collected
    ) -> tuple[Ordered, NDArray[np.bool_]]:
        """Order the parts' events and count the own ones among those from `already` on.

        Returns:
            The distinct events, and which of them were counted as stored now.
        """
        events = concat_events([p.events for p in parts])
        ordered = order_events(events)
        duplicates, conflicts = ordered.duplicates, ordered.conflicts
        stored = ordered.arrival >= already
        if events.own is not None:
            stored &= events.own[ordered.arrival]
            duplicates, conflicts = (index[events.own[index]] for index in (duplicates, conflicts))
        out.stored += int(stored.sum())
        out.deduplicated += len(duplicates)
        if len(conflicts):
            ends = np.cumsum([len(p.events) for p in parts])
            for i in np.sort(conflicts).tolist():
                at = int(np.searchsorted(ends, i, side="right"))
                offset = parts[at].offset(i - int(ends[at]))  # counted from the part's end
                out.conflicts.append((events.take(np.array([i])), offset))
        return ordered, stored
