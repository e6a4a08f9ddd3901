"""Which events belong to a partition: those of its symbols, in its generation's time."""

from __future__ import annotations

import numpy as np

from market_data_core.events import EventBatch
from market_data_core.partitioning import partition_of
from market_data_pipeline.windows.aggregate import Index
from market_data_pipeline.windows.group import Topics

_CHECKED_MAX = 1024


class Belonging:
    """Tells events of one partition from others.

    Args:
        topics: what is read; its generation may end while it is being read.
        number: of the partition.
    """

    def __init__(self, topics: Topics, number: int) -> None:
        self._topics, self._number = topics, number
        self._checked: dict[tuple[str, ...], Index | None] = {}

    def rows(self, batch: EventBatch) -> Index | None:
        """Which rows belong here, a mask of shape (n,); None if all do."""
        mask, home = self._symbols(batch.symbols), self._topics.home
        if mask is None and home.holds_all(batch.src_ts):
            return None
        mine = home.holds(batch.src_ts)
        mine = mine if mask is None else mine & mask[batch.codes]
        return None if mine.all() else mine

    def _symbols(self, names: tuple[str, ...]) -> Index | None:
        if names not in self._checked:
            count = self._topics.partitions
            mine = np.array([partition_of(s, count) == self._number for s in names])
            if len(self._checked) > _CHECKED_MAX:
                self._checked.clear()
            self._checked[names] = None if mine.all() else mine
        return self._checked[names]
