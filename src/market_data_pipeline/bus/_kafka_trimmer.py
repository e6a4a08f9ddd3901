"""Trimming, for a log that tells nobody how large it is."""

from __future__ import annotations

from market_data_core.records import Bounds, TopicInfo
from market_data_pipeline.bus._kafka_browser import Browser
from market_data_pipeline.bus._kafka_topics import EARLIEST, LATEST, Topics

_SHARE = 10


class Trimmer:
    """Blocking; forgets records of topics.

    The size of a topic is what its records have without compression, by samples of them.
    """

    def __init__(self, topics: Topics, browser: Browser) -> None:
        self._topics, self._browser = topics, browser
        self._sampled: dict[tuple[str, int], tuple[int, float]] = {}

    def trim(
        self, info: TopicInfo, partition: int, before: int, older_than_ns: int, max_bytes: int
    ) -> bool:
        """Forget records below `before` that are too old, or the oldest tenth if too large.

        Returns:
            Whether it is still too large, though nothing below `before` is left.
        """
        name = info.name
        firsts = self._topics.offsets(name, range(info.partitions), EARLIEST)
        ends = self._topics.offsets(name, range(info.partitions), LATEST)
        first, before = firsts[partition], min(before, ends[partition])
        full = self._size(info, firsts, ends) > max_bytes
        if first < before:
            cut = self._topics.position_at(name, partition, older_than_ns)
            if full:
                cut = max(cut, first + max(1, (ends[partition] - first) // _SHARE))
            if min(cut, before) > first:
                firsts[partition] = min(cut, before)
                self._topics.trim(name, partition, firsts[partition])
        left = firsts[partition] < before
        return full and not left and self._size(info, firsts, ends) > max_bytes

    def _size(self, info: TopicInfo, firsts: dict[int, int], ends: dict[int, int]) -> float:
        """About how many bytes the topic's records have."""
        total = 0.0
        for p, first in firsts.items():
            if ends[p] <= first:
                continue
            at = info.log_id, p
            seen, size = self._sampled.get(at, (0, 0.0))
            if ends[p] > seen + (ends[p] - first) / _SHARE or not size:
                size = self._browser.size(info.name, p, Bounds(first, ends[p]))
                self._sampled[at] = ends[p], size
            total += (ends[p] - first) * size
        return total
