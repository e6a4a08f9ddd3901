"""What waits in windows, and what closing and restating them gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from market_data_pipeline.windows.aggregate import Bars, Events, Index, concat_events
from market_data_pipeline.windows.assigner import NEVER


@dataclass(slots=True)
class Part:
    """Events that wait for their window, from one record or from several that follow each other.

    Attributes:
        position: lowest log offset they came from; -1 if they are not from our log.
        before: watermark before that record was read.
        offsets: shape (n,), each event's log offset, if they came from several records.
        first: lowest src_ts inside.
        last: greatest src_ts inside.
    """

    events: Events
    position: int
    before: int = NEVER
    offsets: Index | None = None
    first: int = field(init=False)
    last: int = field(init=False)

    def __post_init__(self) -> None:
        # hundreds of small parts wait for a window: looking at each one's times again and again
        # would be most of what closing it costs
        self.first, self.last = int(self.events.ts.min()), int(self.events.ts.max())

    def split(self, at: int) -> tuple[Part | None, Part | None]:
        """What lies below `at`, and the rest."""
        if self.last < at:
            return self, None
        if self.first >= at:
            return None, self
        below = self.events.ts < at
        return self._take(below), self._take(~below)

    def _take(self, mask: NDArray[np.bool_]) -> Part:
        offsets = None if self.offsets is None else self.offsets[mask]
        return replace(self, events=self.events.take(mask), offsets=offsets)

    def offset(self, index: int) -> int:
        """Log offset of one event."""
        return self.position if self.offsets is None else int(self.offsets[index])


def merge_tail(parts: list[Part], count: int) -> None:
    """Put the last `count` parts together, so that closing a window need not handle hundreds."""
    tail = parts[-count:]
    if len(tail) < count or any(p.position < 0 or p.events.own is not None for p in tail):
        return
    columns = [np.full(len(p.events), p.position) if p.offsets is None else p.offsets for p in tail]
    first, events = tail[0], concat_events([p.events for p in tail])
    parts[-count:] = [Part(events, first.position, first.before, np.concatenate(columns))]


@dataclass(slots=True)
class Block:
    """Distinct events of closed windows in total order.

    Attributes:
        position: lowest log offset they came from, -1 if none is ours.
        last: greatest src_ts inside.
    """

    events: Events
    position: int
    last: int


def block_of(events: Events, parts: list[Part]) -> Block:
    """The block that the parts' distinct events make."""
    position = min((p.position for p in parts if p.position >= 0), default=-1)
    return Block(events, position, max(p.last for p in parts))


@dataclass(frozen=True, slots=True)
class Closed:
    """Bars of windows that closed, or that a late event restated.

    Attributes:
        length_ns: length of the windows.
        bars: the bars.
        fresh: shape (n,), int64, own events that count in a base bar for the first time; 0 for
            wider bars.
        revised: whether they replace an earlier version.
    """

    length_ns: int
    bars: Bars
    fresh: NDArray[np.int64]
    revised: bool


@dataclass(slots=True)
class Collected:
    """What closing and restating gave.

    Attributes:
        bars: in the order in which they were decided.
        stored: own events that newly count in a base bar.
        deduplicated: own events found to be copies of an earlier one.
        conflicts: own events found to contradict an earlier one of the same key, and the log
            offset each came from.
    """

    bars: list[Closed] = field(default_factory=list)
    stored: int = 0
    deduplicated: int = 0
    conflicts: list[tuple[Events, int]] = field(default_factory=list)


def fresh_events(bars: Bars, stored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of each bar's events are marked in `stored`, which is in the bars' order."""
    if stored.all():
        return bars.count
    ends = np.cumsum(bars.count)
    return np.add.reduceat(stored.astype(np.int64), ends - bars.count)


def hand_out(
    length_ns: int, bars: Bars, fresh: NDArray[np.int64], revised: bool, out: Collected
) -> None:
    """Hand out the bars that are ours to write."""
    mine = bars.own > 0
    if mine.all():
        out.bars.append(Closed(length_ns, bars, fresh, revised))
    elif mine.any():
        out.bars.append(Closed(length_ns, bars.take(mine), fresh[mine], revised))
