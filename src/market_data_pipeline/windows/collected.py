"""What waits in windows, and what closing and restating them gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from market_data_pipeline.windows.aggregate import Bars, Events
from market_data_pipeline.windows.assigner import NEVER


@dataclass(slots=True)
class Part:
    """Events of one record that wait for their window.

    Attributes:
        position: log offset; -1 if they are not from our log.
        before: watermark before the record was read.
    """

    events: Events
    position: int
    before: int = NEVER


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
    return Block(events, position, int(events.ts.max()))


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
