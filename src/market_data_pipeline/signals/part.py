"""A partition of bars as its owner sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from market_data_core.contracts.store import Claim
from market_data_core.signals import Signal
from market_data_pipeline.signals.checkpoint import Series, SignalsCheckpoint, SignalsGroup

Key = tuple[str, str]
"""Provider and interval."""


@dataclass(slots=True)
class Part:
    """An owned partition.

    Attributes:
        position: from where to read on.
        checksum: of the record before.
        reached: start of the newest bar that was read, by provider and interval, UTC ns.
        changes: signals that wait to be written.
        dirty: whether there is something to commit.
    """

    claim: Claim
    checkpoint: SignalsCheckpoint
    position: int
    checksum: int
    reached: dict[Key, int]
    changes: list[Signal] = field(default_factory=list)
    dirty: bool = False

    def group(self, topic: str) -> SignalsGroup:
        """What waits, to be committed; its signals go to `topic`."""
        checkpoint = msgspec.structs.replace(
            self.checkpoint,
            position=self.position,
            checksum=self.checksum,
            series=[Series(*key, reached) for key, reached in sorted(self.reached.items())],
            signals=self.checkpoint.signals + sum(s.state == "active" for s in self.changes),
        )
        return SignalsGroup(self.claim, checkpoint, self.changes, topic)
