"""Where verification finds a provider's events, and why it may not find them all."""

from __future__ import annotations

from dataclasses import dataclass

from market_data_core.partitioning import partition_of
from market_data_core.records import TopicInfo
from market_data_pipeline.timeline import Generation
from market_data_pipeline.windows.assigner import FOREVER, NEVER


@dataclass(frozen=True, slots=True)
class Source:
    """A partition that holds events of a provider.

    Attributes:
        info: its topic.
        home: the generation of the live topic that it is, or one of its own.
        partition: its number.
        counted: records below this offset are in the counts.
        closed: ticks below this time are in bars; FOREVER for vendor bars, which never wait.
        intervals_ns: windows that its owner computes; empty if that is not known.
        since: interval in ns -> UTC ns before which it was not computed yet.
    """

    info: TopicInfo
    home: Generation
    partition: int
    counted: int
    closed: int
    intervals_ns: tuple[int, ...]
    since: dict[int, int]

    def owes_from(self, length_ns: int) -> int:
        """From which start on (UTC ns) windows of `length_ns` must have bars; FOREVER for none."""
        if self.intervals_ns and length_ns not in self.intervals_ns:
            return FOREVER
        return self.since.get(length_ns, NEVER)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the log may not tell the whole story of some windows.

    Attributes:
        why: in words.
        until: windows that begin before this (UTC ns) are concerned.
        partition: the partition concerned.
        partitions: of its topic; 0 for all symbols.
        more: whether the log may also hold events that the bars rightly lack.
    """

    why: str
    until: int
    partition: int
    partitions: int
    more: bool = False

    def concerns(self, symbol: str, start: int) -> bool:
        """Whether the window of `symbol` that begins at `start` is concerned."""
        here = not self.partitions or partition_of(symbol, self.partitions) == self.partition
        return here and start < self.until
