"""Which log of the live feeds an event belongs to, by its time; see ``generations``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.events import EventBatch
from market_data_pipeline.windows.assigner import FOREVER, NEVER


@dataclass(frozen=True, slots=True)
class Generation:
    """One log of the live feeds.

    Attributes:
        number: from 1.
        topic: its name.
        partitions: among which symbols are spread.
        from_ts: least src_ts of its events, UTC ns; NEVER for the first.
        until: src_ts from which on events belong to the next one; FOREVER for the newest.
    """

    number: int
    topic: str
    partitions: int
    from_ts: int = NEVER
    until: int = FOREVER

    def holds(self, ts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the event times, shape (n,), lie in its span."""
        return (ts >= self.from_ts) & (ts < self.until)

    def holds_all(self, ts: NDArray[np.int64]) -> bool:
        """Whether all of the event times, shape (n,), n > 0, lie in its span."""
        if self.from_ts == NEVER and self.until == FOREVER:
            return True
        return self.from_ts <= int(ts.min()) and int(ts.max()) < self.until

    def whole(self, starts: NDArray[np.int64], length_ns: int) -> NDArray[np.bool_]:
        """Which windows of a length, by their starts, shape (n,), lie in its span altogether."""
        return (starts >= self.from_ts) & (starts <= self.until - length_ns)


class Timeline:
    """Which generation an event belongs to.

    It may grow while it is in use; what it says of times below the newest generation's beginning
    does not change.
    """

    def __init__(self, *generations: Generation) -> None:
        self.generations = generations

    @classmethod
    def alone(cls, topic: str, partitions: int) -> Timeline:
        """Of a topic that has no other generation."""
        return cls(Generation(1, topic, partitions))

    @property
    def newest(self) -> Generation:
        """The one that has no end yet; it may not have begun."""
        return self.generations[-1]

    def of_topic(self, name: str) -> Generation | None:
        """The generation with that topic, None if it is none of these."""
        return next((g for g in self.generations if g.topic == name), None)

    def at(self, ts: int) -> Generation:
        """The generation of an event time, UTC ns."""
        return next(g for g in reversed(self.generations) if ts >= g.from_ts)

    def split(self, batch: EventBatch) -> Iterator[tuple[Generation, EventBatch]]:
        """A batch's events by generation, the oldest first; each part keeps its order."""
        for generation in reversed(self.generations):
            if generation.holds_all(batch.src_ts):
                yield generation, batch
                return
        for generation in self.generations:
            rows = generation.holds(batch.src_ts)
            if rows.any():
                yield generation, batch.take(rows)
