"""Keeps the archiver's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from market_data_core.intervals import NS_PER_MS
from market_data_core.records import Record
from market_data_pipeline import metrics

_COMPONENT = "archive"


class ArchiveObserver:
    """The metrics of one worker.

    Args:
        group: its consumer group.
        member: its name.
    """

    def __init__(self, group: str, member: str) -> None:
        self._group, self._member = group, member

    @staticmethod
    def alive(now_ns: int, held: int) -> None:
        """The worker went round its loop, and so many bytes wait."""
        metrics.PIPELINE_HEARTBEAT_TIMESTAMP_SECONDS.labels(_COMPONENT).set(now_ns / 1e9)
        metrics.ARCHIVE_WAITING_BYTES.set(held)

    def consumed(self, topic: str, found: Mapping[int, Sequence[Record]], now_ns: int) -> None:
        """Records were read; none found means that nothing is unread."""
        oldest = min((records[0].append_ts for records in found.values()), default=now_ns)
        lag = metrics.STREAM_CONSUMER_LAG_MS.labels(topic, self._group, self._member)
        lag.set(max(0, now_ns - oldest) / NS_PER_MS)

    @staticmethod
    def written(events: int, set_aside: int, files: int, size: int) -> None:
        """Files were published."""
        metrics.ARCHIVE_ROWS.labels("events").inc(events)
        metrics.ARCHIVE_ROWS.labels("set_aside").inc(set_aside)
        metrics.ARCHIVE_FILES.inc(files)
        metrics.ARCHIVE_BYTES.inc(size)

    @staticmethod
    def error(reason: str) -> None:
        """Something went wrong that an operator should see."""
        metrics.ERRORS.labels(_COMPONENT, reason).inc()

    @staticmethod
    def retried() -> None:
        """A call is made again."""
        metrics.RETRIES.labels(_COMPONENT).inc()
