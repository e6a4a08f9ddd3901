"""Keeps the micro-batcher's metrics; every number is taken where it becomes true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from market_data_core.contracts.store import WriteCounts
from market_data_core.intervals import NS_PER_MS, parse_interval
from market_data_core.records import Record
from market_data_pipeline import metrics
from market_data_pipeline.windows.checkpoint import Counts
from market_data_pipeline.windows.group import PartitionGroup
from market_data_store.metrics import STORE_BARS_WRITE_LATENCY_SECONDS, STORE_BARS_WRITTEN

_OUTCOMES = ("received", "stored", "deduplicated", "late", "dead_lettered", "lost")


class Waiting:
    """What waits in all micro-batchers of a process, by topic; their sums are gauges."""

    def __init__(self) -> None:
        self._windows: dict[str, int] = {}
        self._events: dict[str, int] = {}

    def windows(self, topic: str, count: int) -> None:
        """So many windows of the topic are open."""
        self._windows[topic] = count
        metrics.MICROBATCH_OPEN_WINDOWS.set(sum(self._windows.values()))

    def events(self, topic: str, count: int) -> None:
        """So many events of the topic are open."""
        self._events[topic] = count
        metrics.PIPELINE_EVENTS_OPEN.set(sum(self._events.values()))


class Observer:
    """The metrics of one worker.

    Args:
        topic: what it reads.
        group: its consumer group.
        member: its name.
        live: whether wall-clock latencies mean something (not on a lane).
        symbols_max: how many symbols get a label of their own.
        oldest_ingest: when the oldest event of a payload was first seen, UTC ns; None if the
            payload does not tell.
        waiting: shared by the workers of a process; None for one that is alone.
    """

    def __init__(
        self,
        topic: str,
        group: str,
        member: str,
        live: bool,
        symbols_max: int,
        oldest_ingest: Callable[[bytes], int | None] = lambda _: None,
        waiting: Waiting | None = None,
    ) -> None:
        self._topic, self._waiting = topic, waiting or Waiting()
        self._live = live
        self._oldest_ingest = oldest_ingest
        self._length = metrics.BoundedLabel(metrics.VALUES_MAX)
        self._lag = metrics.STREAM_CONSUMER_LAG_MS.labels(topic, group, member)
        self._symbol = metrics.BoundedLabel(symbols_max)
        self._before: dict[int, Counts] = {}

    def alive(self, now_ns: int, open_windows: int) -> None:
        """The worker went round its loop."""
        metrics.PIPELINE_HEARTBEAT_TIMESTAMP_SECONDS.labels("micro_batcher").set(now_ns / 1e9)
        self._waiting.windows(self._topic, open_windows)

    def adopted(self, partition: int, counts: Counts) -> None:
        """A partition was taken over; what its earlier owners counted is not counted again."""
        self._before[partition] = counts

    def consumed(self, found: Mapping[int, Sequence[Record]], now_ns: int) -> None:
        """Records were read; none found means that nothing is unread."""
        oldest = min(map(self._first_seen, found.values()), default=now_ns)
        self._lag.set(max(0, now_ns - oldest) / NS_PER_MS)

    def _first_seen(self, records: Sequence[Record]) -> int:
        """When the first of the events was seen; of a recording, when it was appended."""
        first = next((record for record in records if record.count), records[0])
        seen = self._oldest_ingest(first.payload) if self._live else None
        return first.append_ts if seen is None else seen

    def store_write(self, seconds: float) -> None:
        """A transaction was tried."""
        metrics.STORE_WRITE_DURATION_SECONDS.labels("bars_ohlcv").observe(seconds)
        STORE_BARS_WRITE_LATENCY_SECONDS.labels("upsert").observe(seconds)

    def committed(self, group: PartitionGroup, now_ns: int) -> None:
        """A group is in the store."""
        number = group.claim.key.partition
        counts, before = group.checkpoint.counts, self._before.get(number, Counts())
        for outcome in _OUTCOMES:
            grown = getattr(counts, outcome) - getattr(before, outcome)
            metrics.PIPELINE_EVENTS.labels("window", outcome).inc(max(0, grown))
        self._before[number] = counts
        for batch in group.bars:
            length = self._length(str(parse_interval(batch.interval) // NS_PER_MS))
            metrics.MICROBATCH_FLUSH_ROWS.labels(length).inc(len(batch))
            for symbol in set(batch.symbol_column()):
                metrics.MICROBATCH_FLUSH.labels(length, self._symbol(symbol)).inc()
            if self._live and batch.state == "final":
                for start in set(batch.ts.tolist()):
                    metrics.MICROBATCH_WINDOW_LATENCY_MS.observe((now_ns - start) / NS_PER_MS)

    def written(self, counts: WriteCounts, open_events: int) -> None:
        """What the store did with the bars of a commit."""
        for status in ("inserted", "updated", "unchanged", "kept", "bad"):
            STORE_BARS_WRITTEN.labels("upsert", status).inc(getattr(counts, status))
        self._waiting.events(self._topic, open_events)

    @staticmethod
    def error(reason: str) -> None:
        """Something went wrong that an operator should see."""
        metrics.ERRORS.labels("micro_batcher", reason).inc()

    @staticmethod
    def retried() -> None:
        """A call is made again."""
        metrics.RETRIES.labels("micro_batcher").inc()
