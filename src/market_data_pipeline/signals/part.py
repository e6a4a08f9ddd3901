"""Partitions of bars as their owner sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from market_data_core.contracts.store import Claim
from market_data_core.partitioning import partition_of
from market_data_core.signals import Signal
from market_data_pipeline.signals.checkpoint import (
    NEVER,
    Edition,
    Key,
    Series,
    SignalsCheckpoint,
    SignalsGroup,
)


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

    def group(self, topic: str, index: Mapping[int, int]) -> SignalsGroup:
        """What waits, to be committed.

        Args:
            topic: where its signals go.
            index: partition of an index -> from where on its changes were not followed.
        """
        checkpoint = msgspec.structs.replace(
            self.checkpoint,
            position=self.position,
            checksum=self.checksum,
            series=[Series(*key, reached) for key, reached in sorted(self.reached.items())],
            signals=self.checkpoint.signals + sum(s.state == "active" for s in self.changes),
            index=dict(index),
        )
        return SignalsGroup(self.claim, checkpoint, self.changes, topic)


class Parts(dict[int, Part]):
    """The owned partitions by number.

    Args:
        partitions: how many the topic has.
    """

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._partitions = partitions
        self._homes: dict[str, int] = {}

    def home(self, symbol: str) -> int:
        """The partition of a symbol."""
        if symbol not in self._homes:
            self._homes[symbol] = partition_of(symbol, self._partitions)
        return self._homes[symbol]

    def symbols(self, number: int) -> list[str]:
        """The symbols of a partition that were seen so far."""
        return [symbol for symbol, home in self._homes.items() if home == number]

    def reached(self, symbol: str, key: Key) -> int:
        """Start of the newest bar that was read of the symbol's partition, UTC ns."""
        part = self.get(self.home(symbol))
        return part.reached.get(key, NEVER) if part else NEVER

    def newest(self, key: Key) -> int:
        """Start of the newest bar of a kind that was read of any of them, UTC ns."""
        return max((part.reached.get(key, NEVER) for part in self.values()), default=NEVER)

    def editions(self, symbol: str) -> Sequence[Edition]:
        """Those of the symbol's partition."""
        part = self.get(self.home(symbol))
        return part.checkpoint.editions if part else ()

    def renewed(self, key: Key) -> int:
        """Start of the newest bar of a kind that is not for the present rules or models, UTC ns."""
        editions = (part.checkpoint.editions[-1] for part in self.values())
        return max((edition.after(key) for edition in editions), default=NEVER)

    def renewed_of(self, symbol: str, key: Key) -> int:
        """The same, of the symbol's partition."""
        editions = self.editions(symbol)
        return editions[-1].after(key) if editions else NEVER

    @property
    def changed(self) -> bool:
        """Whether signals wait to be written."""
        return any(part.changes for part in self.values())

    def add(self, changes: Sequence[Signal]) -> None:
        """Signals that are to be written; of partitions that are not owned any more none is."""
        for signal in changes:
            if part := self.get(self.home(signal.symbol)):
                part.changes.append(signal)
                part.dirty = True
