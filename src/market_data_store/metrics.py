"""Every metric of the store's coordinator and sinks, by the names that dashboards and alerts use.

Units stand last in a name. Labels are bounded: ``coord_id`` and ``sink`` are chosen by whoever
sets up the process, ``worker_id`` counts from 0, and ``error_type`` goes through
:func:`error_type`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_WRITE_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip

SINK_WRITES = Counter(
    "sink_writes_total",
    "Batches given to a sink, by outcome: success or failure.",
    ["sink", "status"],
)
SINK_WRITE_LATENCY_SECONDS = Histogram(
    "sink_write_latency_seconds",
    "Duration of one call of a sink's write, in seconds.",
    ["sink"],
    buckets=_WRITE_S,
)

STORE_BARS_WRITTEN = Counter(
    "store_bars_written_total",
    "Bars given to the store, by how (upsert: through a bars sink) and outcome: inserted, "
    "updated, unchanged, kept (the stored bar is made of more trades), or failure.",
    ["method", "status"],
)
STORE_BARS_WRITE_LATENCY_SECONDS = Histogram(
    "store_bars_write_latency_seconds",
    "Duration of one attempt to write a batch of bars, in seconds.",
    ["method"],
    buckets=_WRITE_S,
)

STORE_JOB_RUNS = Counter(
    "store_job_runs_total",
    "Runs that have ended, by status: success, failure (those too that this process found lost), "
    "or cancelled.",
    ["job_name", "provider", "mode", "status"],
)
STORE_JOB_AUDIT_ERRORS = Counter(
    "store_job_audit_errors_total",
    "Attempts to keep a run's row in job_runs that failed; they are made again.",
    ["error_type"],
)

COORD_ITEMS_SUBMITTED = Counter(
    "mds_coord_items_submitted_total", "Items that the queue took.", ["coord_id"]
)
COORD_ITEMS_DROPPED = Counter(
    "mds_coord_items_dropped_total",
    "Items that left the queue without being written, by reason: drop_oldest (given to "
    "drop_callback).",
    ["coord_id", "reason"],
)
COORD_ITEMS_REFUSED = Counter(
    "mds_coord_items_refused_total",
    "Items that a full queue did not take; their submitter got an error.",
    ["coord_id"],
)
COORD_ITEMS_DEAD_LETTERED = Counter(
    "mds_coord_items_dead_lettered_total",
    "Items set aside in the dead-letter file, by reason: permanent (the store refused them), "
    "exhausted (an error of unknown kind outlasted all attempts), shutdown (still unwritten when "
    "draining timed out).",
    ["coord_id", "reason"],
)
COORD_QUEUE_DEPTH = Gauge("mds_coord_queue_depth", "Rows that wait in the queue.", ["coord_id"])
COORD_WORKERS_ALIVE = Gauge("mds_coord_workers_alive", "Workers that are running.", ["coord_id"])
COORD_CIRCUIT_STATE = Gauge(
    "mds_coord_circuit_state", "Circuit breaker: 0 closed, 1 open, 2 half-open.", ["coord_id"]
)
COORD_WORKER_RESTARTS = Counter(
    "mds_coord_worker_restarts_total", "Workers started again after a crash.", ["coord_id"]
)
COORD_CALLBACK_ERRORS = Counter(
    "mds_coord_callback_errors_total",
    "Callbacks and feedback sinks that raised or did not return in time, by their name.",
    ["coord_id", "callback"],
)

WORKER_BATCHES_WRITTEN = Counter(
    "mds_worker_batches_written_total", "Batches written.", ["coord_id", "worker_id"]
)
WORKER_WRITE_ERRORS = Counter(
    "mds_worker_write_errors_total",
    "Attempts to write that failed, by type of error; types beyond the first hundred of a process "
    "are counted as 'other'.",
    ["coord_id", "worker_id", "error_type"],
)
WORKER_WRITE_LATENCY_SECONDS = Histogram(
    "mds_worker_write_latency_seconds",
    "Duration of one successful attempt to write a batch, in seconds.",
    ["coord_id", "worker_id"],
    buckets=_WRITE_S,
)
WORKER_RETRIES = Counter(
    "mds_worker_retries_total",
    "Batches that were tried again after a failure.",
    ["coord_id", "worker_id"],
)

_ERROR_TYPES_MAX = 100
_error_types: set[str] = set()


def error_type(error: BaseException) -> str:
    """The label of an error: its type's name, or ``other`` once a hundred names are taken."""
    name = type(error).__name__
    if name not in _error_types:
        if len(_error_types) >= _ERROR_TYPES_MAX:
            return "other"
        _error_types.add(name)
    return name
