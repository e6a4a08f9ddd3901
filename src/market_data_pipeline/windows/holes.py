"""What a partition's log has lost in its middle: how much of it counts, and what it may spoil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from market_data_core.contracts.store import Gap
from market_data_pipeline.windows.assigner import floor_to
from market_data_pipeline.windows.recovery import fenced, gaps_of
from market_data_pipeline.windows.stream import WindowStream

_CAUSE = "log_hole"


class Loss(NamedTuple):
    """What is told of holes.

    Attributes:
        lost: events that are in no bar and will be in none.
        unread: those of them that nobody has counted as received.
        gaps: for the ledger.
    """

    lost: int
    unread: int
    gaps: list[Gap]


@dataclass(slots=True)
class Holes:
    """The holes of one partition, from when its reader meets them until they are told.

    Args:
        where: the partition, as the ledger names it.
        base_ns: the base window.
        first_new: position of the first record that no earlier owner has counted.
        open_before: events below it that an earlier owner had in open windows.
    """

    where: str
    base_ns: int
    first_new: int
    open_before: int
    _torn: bool = False
    _unread: int = 0
    _silent: set[str] = field(default_factory=set)

    def miss(self, position: int, events: int) -> None:
        """Note that `events` are missing before the record at `position`."""
        if position < self.first_new:  # they were counted once, as open or as something final
            self._torn = True
        else:
            self._unread += events

    def due(self, restored: bool, behind: bool) -> bool:
        """Whether there is something to tell.

        Args:
            restored: everything that an earlier owner has counted was read again.
            behind: a record that is new comes next. What nobody has read is told together with
                one, so that whoever reads from there does not do it again.
        """
        return bool((self._torn or self._unread) if behind else (self._torn and restored))

    def tell(self, streams: Mapping[str, WindowStream]) -> Loss:
        """What was lost; marks the windows that may lack some of it.

        Which stream's events are missing cannot be told, so all are marked. Where records that
        were read once are gone, stored bars must not be made again from what is left.
        """
        torn, unread = self._torn, self._unread
        self._torn, self._unread = False, 0
        lost = unread
        if torn:
            lost += self.open_before - sum(stream.open_events for stream in streams.values())
        gaps: list[Gap] = []
        for provider, stream in streams.items():
            restatable = torn and stream.final < stream.closed
            if not (lost or restatable):
                continue
            state = stream.state(provider)
            gaps += gaps_of([state], self.base_ns, _CAUSE, self.where)
            marked = fenced(state, self.base_ns)
            stream.taint = marked.taint
            stream.fence = marked.fence if torn else stream.fence
        if unread:
            self._silent |= streams.keys()
        return Loss(lost, unread, gaps)

    def reached(self, provider: str, stream: WindowStream, ts: int) -> list[Gap]:
        """Take the first sign of a provider behind a hole: what is missing reaches up to `ts`."""
        if provider not in self._silent:
            return []
        self._silent.remove(provider)
        begin, end = stream.taint, floor_to(ts, self.base_ns) + self.base_ns
        if end <= begin:
            return []
        stream.taint = end
        return [Gap(provider, "*", begin, end, _CAUSE, self.where)]
