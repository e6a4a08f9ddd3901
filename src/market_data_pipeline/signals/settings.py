"""How a worker of inference behaves, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from market_data_core.contracts.store import WriteCounts
from market_data_core.signals import Signal


@dataclass(frozen=True, slots=True)
class SignalsSettings:
    """How a worker behaves.

    Attributes:
        group: consumer group of the workers.
        member: this worker's name.
        lease_ns: how long an owner may be silent before its partitions are taken over.
        commit_interval_ns: longest time between two checkpoints when no signals are given.
        poll_bytes: how much is read at once.
        topic: where signals are published.
        horizon_ns: how far back a restated bar may lie that was lost with the log.
    """

    group: str
    member: str
    lease_ns: int
    commit_interval_ns: int
    poll_bytes: int
    topic: str
    horizon_ns: int


@dataclass(slots=True)
class Signalled:
    """What a run did.

    Attributes:
        bars: bars that were evaluated; one that was restated counts again.
        signals: what the store did with the signals; retractions are among the updated.
        retracted: signals taken back.
        left: bars of a recording whose signals are live inference's to give, and wait for it.
        live: those that it has evaluated.
    """

    bars: int = 0
    signals: WriteCounts = field(default_factory=WriteCounts)
    retracted: int = 0
    left: int = 0
    live: int = 0

    def add(self, changes: Sequence[Signal], counts: WriteCounts) -> None:
        """Count what one commit wrote."""
        self.signals.add(counts)
        self.retracted += sum(signal.state == "retracted" for signal in changes)

    def include(self, other: Signalled) -> None:
        """Count what live inference has made of what was left to it."""
        self.left, self.live = 0, self.left
        self.bars += other.bars
        self.signals.add(other.signals)
        self.retracted += other.retracted
