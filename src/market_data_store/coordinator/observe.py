"""What a coordinator has done: plain numbers for `health`, and the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import structlog

from market_data_core.feedback import FeedbackLevel
from market_data_core.redaction import redact
from market_data_store import metrics
from market_data_store.coordinator.policy import CircuitState
from market_data_store.coordinator.queue import WriteQueue

log = structlog.get_logger("coordinator")

_CIRCUIT = {"closed": 0, "open": 1, "half_open": 2}


@dataclass(frozen=True, slots=True)
class CoordinatorHealth:
    """A coordinator at one moment; counts are of items since it was made.

    Attributes:
        workers_alive: workers that are running, of `workers`.
        queue_size: rows that wait, of `capacity`.
        in_flight: batches that are being written or held until the store is back.
        circuit_state: ``closed``, ``open`` or ``half_open``.
        level: feedback level.
        submitted: taken into the queue; = written + dead_lettered + dropped + what is inside.
        refused: not taken, because the queue was full; their submitters got an error.
        retries: attempts made again.
        restarts: workers started again after a crash.
        last_error: of the latest failed attempt, "" if there was none.
    """

    coord_id: str
    running: bool
    workers: int
    workers_alive: int
    queue_size: int
    capacity: int
    in_flight: int
    circuit_state: CircuitState
    level: FeedbackLevel
    submitted: int
    written: int
    dead_lettered: int
    dropped: int
    refused: int
    retries: int
    restarts: int
    callback_errors: int
    last_error: str

    @property
    def ok(self) -> bool:
        """Whether all workers run and the store takes what they write."""
        return (
            self.running and self.workers_alive == self.workers and self.circuit_state == "closed"
        )


class Observer:
    """Counts for one coordinator.

    Items are counted in plain integers, and given to the metrics once for each batch: to raise a
    metric takes as long as to submit an item.
    """

    def __init__(self, coord_id: str, workers: int) -> None:
        self.coord_id = coord_id
        self.written = self.dead_lettered = self.dropped = self.refused = 0
        self.retries = self.restarts = self.callback_errors = 0
        self.last_error = ""
        self._told: Counter[str] = Counter()
        self._submitted = metrics.COORD_ITEMS_SUBMITTED.labels(coord_id)
        self._refused = metrics.COORD_ITEMS_REFUSED.labels(coord_id)
        self._dropped = metrics.COORD_ITEMS_DROPPED.labels(coord_id, "drop_oldest")
        self._restarts = metrics.COORD_WORKER_RESTARTS.labels(coord_id)
        self._depth = metrics.COORD_QUEUE_DEPTH.labels(coord_id)
        self._alive = metrics.COORD_WORKERS_ALIVE.labels(coord_id)
        self._circuit = metrics.COORD_CIRCUIT_STATE.labels(coord_id)
        ids = [str(number) for number in range(workers)]
        self._batches = [metrics.WORKER_BATCHES_WRITTEN.labels(coord_id, i) for i in ids]
        self._latency = [metrics.WORKER_WRITE_LATENCY_SECONDS.labels(coord_id, i) for i in ids]
        self._retries = [metrics.WORKER_RETRIES.labels(coord_id, i) for i in ids]

    def tell(self, queue: WriteQueue[Any]) -> None:
        """Bring the metrics up to date with the queue and the counts."""
        self._depth.set(queue.depth)
        for name, metric, now in (
            ("submitted", self._submitted, queue.arrived),
            ("refused", self._refused, self.refused),
            ("dropped", self._dropped, self.dropped),
        ):
            if now != self._told[name]:
                metric.inc(now - self._told[name])
                self._told[name] = now

    def batch_written(self, worker: int, items: int, seconds: float) -> None:
        """A batch, or a part of one, is stored."""
        self.written += items
        self._batches[worker].inc()
        self._latency[worker].observe(seconds)

    def write_failed(self, worker: int, error: BaseException) -> None:
        """An attempt failed."""
        self.last_error = f"{type(error).__name__}: {redact(str(error))[:500]}"
        kind = metrics.error_type(error)
        metrics.WORKER_WRITE_ERRORS.labels(self.coord_id, str(worker), kind).inc()

    def retried(self, worker: int) -> None:
        """A batch is tried again."""
        self.retries += 1
        self._retries[worker].inc()

    def set_aside(self, items: int, reason: str) -> None:
        """Items are in the dead-letter file."""
        self.dead_lettered += items
        metrics.COORD_ITEMS_DEAD_LETTERED.labels(self.coord_id, reason).inc(items)

    def workers_alive(self, count: int) -> None:
        """So many workers run."""
        self._alive.set(count)

    def worker_restarted(self, worker: int, error: BaseException | None) -> None:
        """A worker crashed and is started again."""
        self.restarts += 1
        self._restarts.inc()
        log.error("worker_restarted", coord_id=self.coord_id, worker=worker, error=repr(error))

    def circuit_state(self, state: CircuitState) -> None:
        """The breaker is in this state."""
        self._circuit.set(_CIRCUIT[state])

    def circuit(self, state: CircuitState) -> None:
        """The breaker has changed."""
        self.circuit_state(state)
        log.warning("circuit", coord_id=self.coord_id, state=state, last_error=self.last_error)

    def callback_failed(self, name: str, error: BaseException) -> None:
        """Something of the user's raised, or took too long."""
        self.callback_errors += 1
        metrics.COORD_CALLBACK_ERRORS.labels(self.coord_id, name).inc()
        log.error("callback_failed", coord_id=self.coord_id, callback=name, error=repr(error))
