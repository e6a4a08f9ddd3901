"""Keeps the metrics of inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from market_data_core.intervals import NS_PER_MS
from market_data_core.records import Record
from market_data_core.signals import Signal
from market_data_pipeline import metrics

_COMPONENT = "inference"


class SignalsObserver:
    """The metrics of one worker.

    Args:
        topic: what it reads.
        group: its consumer group.
        member: its name.
    """

    def __init__(self, topic: str, group: str, member: str) -> None:
        self._lag = metrics.STREAM_CONSUMER_LAG_MS.labels(topic, group, member)

    @staticmethod
    def alive(now_ns: int) -> None:
        """The worker went round its loop."""
        metrics.PIPELINE_HEARTBEAT_TIMESTAMP_SECONDS.labels(_COMPONENT).set(now_ns / 1e9)

    def consumed(self, found: Mapping[int, Sequence[Record]], now_ns: int) -> None:
        """Records were read; none found means that nothing is unread."""
        oldest = min((records[0].append_ts for records in found.values()), default=now_ns)
        self._lag.set(max(0, now_ns - oldest) / NS_PER_MS)

    @staticmethod
    def given(signals: Sequence[Signal]) -> None:
        """Signals were stored."""
        kinds = ((s.name, str(s.metadata.get("adapter", "")), s.state) for s in signals)
        for (name, adapter, state), number in Counter(kinds).items():
            retracted = state == "retracted"
            counter = metrics.SIGNALS_RETRACTED if retracted else metrics.SIGNALS_EMITTED
            counter.labels(metrics.SIGNAL(name), adapter).inc(number)

    @staticmethod
    def error(reason: str) -> None:
        """Something went wrong that an operator should see."""
        metrics.ERRORS.labels(_COMPONENT, reason).inc()

    @staticmethod
    def retried() -> None:
        """A call is made again."""
        metrics.RETRIES.labels(_COMPONENT).inc()
