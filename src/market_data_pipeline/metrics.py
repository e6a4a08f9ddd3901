"""Every metric of the pipeline, by the names that dashboards and alerts use.

Units stand last in a name. Label sets are bounded: a label that could take any value (a symbol, a
provider, the length of a vendor's bar) goes through :class:`BoundedLabel`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# Windows are 0.5 to 10 s long and are to be committed within 1.5 times their length.
_WINDOW_MS = (
    100, 250, 500, 600, 750, 1000, 1250, 1500, 1750, 2000, 2250, 2500, 2750, 3000, 3500, 4000,
    5000, 6000, 7500, 8750, 10_000, 12_500, 15_000, 20_000, 30_000, 60_000,
)  # fmt: skip
_WRITE_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip

STREAM_EVENTS_INGESTED = Counter(
    "stream_events_ingested_total",
    "Events written to the bus; providers beyond the first hundred of a process are counted as "
    "'other'.",
    ["bus", "topic", "provider"],
)
STREAM_CONSUMER_LAG_MS = Gauge(
    "stream_consumer_lag_ms",
    "Now minus the ingest time of the oldest unread entry, in milliseconds; 0 when all is read. "
    "Of a recording, now minus the time at which the entry was appended.",
    ["topic", "group", "consumer"],
)

MICROBATCH_FLUSH = Counter(
    "microbatch_flush_total",
    "Windows committed, by window length in milliseconds; symbols beyond the configured bound, and "
    "lengths beyond the first hundred, are counted as 'other'.",
    ["window_ms", "symbol"],
)
# Only ever rises. The client library ends the name of every Counter in _total, which this name,
# known to dashboards, does not have.
MICROBATCH_FLUSH_ROWS = Gauge(
    "microbatch_flush_rows",
    "Bars committed since the start of the process, by window length in milliseconds.",
    ["window_ms"],
)
MICROBATCH_WINDOW_LATENCY_MS = Histogram(
    "microbatch_window_latency_ms",
    "From the start of a base window to the commit of its bars, in milliseconds.",
    buckets=_WINDOW_MS,
)
MICROBATCH_OPEN_WINDOWS = Gauge(
    "microbatch_open_windows",
    "Base windows that hold events and are not committed as final.",
)

STORE_WRITE_DURATION_SECONDS = Histogram(
    "store_write_duration_seconds",
    "Duration of one write transaction, in seconds, by the table it is for.",
    ["table"],
    buckets=_WRITE_S,
)

PIPELINE_HEARTBEAT_TIMESTAMP_SECONDS = Gauge(
    "pipeline_heartbeat_timestamp_seconds",
    "When the component last went round its loop, in seconds since 1970.",
    ["component"],
)
PIPELINE_EVENTS = Counter(
    "pipeline_events_total",
    "Events by stage and what became of them: received, stored, deduplicated, late, "
    "dead_lettered, lost.",
    ["stage", "outcome"],
)
PIPELINE_EVENTS_OPEN = Gauge(
    "pipeline_events_open",
    "Events that are received and wait in windows that are not committed yet.",
)
ERRORS = Counter(
    "errors_total",
    "Errors by component and reason.",
    ["component", "reason"],
)
RETRIES = Counter(
    "retries_total",
    "Calls that were made again after a transient error.",
    ["component"],
)

ARCHIVE_ROWS = Counter(
    "archive_rows_total",
    "Rows in files that the archiver has published: `events`, or `set_aside` (what was rejected, "
    "and dead letters).",
    ["kind"],
)
ARCHIVE_FILES = Counter(
    "archive_files_total",
    "Files that the archiver has published.",
)
ARCHIVE_BYTES = Counter(
    "archive_bytes_total",
    "Bytes of those files.",
)
ARCHIVE_WAITING_BYTES = Gauge(
    "archive_waiting_bytes",
    "Memory that events take which wait for the archiver to write them, in bytes, as it is "
    "reckoned against archive.memory_bytes_max.",
)

FEATURES_UPDATE_DURATION = Histogram(
    "features_update_duration_seconds",
    "Time to compute all features of the bars that came together, in seconds, by the bars' "
    "length; all symbols are computed at once, so that their label is `*`.",
    ["symbol", "window"],
    buckets=_WRITE_S,
)
INFERENCE_EVAL_DURATION = Histogram(
    "inference_eval_duration_seconds",
    "Time to evaluate one adapter on the bars that came together, in seconds.",
    ["adapter"],
    buckets=_WRITE_S,
)
INFERENCE_ROWS_UNKNOWN = Counter(
    "inference_rows_unknown_total",
    "Rows that a model was not shown, since a column was not known.",
    ["adapter"],
)
SIGNALS_EMITTED = Counter(
    "signals_emitted_total",
    "Signals stored that are new or have changed, by their name and adapter; names beyond the "
    "first hundred of a process are counted as 'other'.",
    ["name", "adapter"],
)
SIGNALS_RETRACTED = Counter(
    "signals_retracted_total",
    "Signals taken back because a bar was restated, by their name and adapter.",
    ["name", "adapter"],
)

# Feedback is handled in microseconds; above 10 ms an event loop is overloaded.
_FEEDBACK_MS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)

PIPELINE_RATE_SCALE_FACTOR = Gauge(
    "pipeline_rate_scale_factor",
    "Share of its usual rate that a provider may read at: 1 unless the store has fallen behind, "
    "then 0.5 or 0. The label is the provider's kind.",
    ["provider"],
)
PIPELINE_BACKPRESSURE_STATE = Gauge(
    "pipeline_backpressure_state",
    "What feedback asks of a provider: 0 ok, 1 soft (half of its rate), 2 hard (stop). The label "
    "is the provider's kind.",
    ["provider"],
)
PIPELINE_FEEDBACK_QUEUE_DEPTH = Gauge(
    "pipeline_feedback_queue_depth",
    "Rows that wait in the fullest queue of those that send feedback as this source, as it was "
    "last told; 0 once nothing was heard for ten seconds.",
    ["source"],
)
PIPELINE_FEEDBACK_PROCESSING_LATENCY_MS = Histogram(
    "pipeline_feedback_processing_latency_ms",
    "From taking a feedback event to all providers following it, in milliseconds.",
    buckets=_FEEDBACK_MS,
)

VALUES_MAX = 100
"""How many values a label takes that no setting bounds."""

OTHER = "other"
"""The label value that everything beyond a bound shares."""


class BoundedLabel:
    """At most `limit` values of a label; the first ones to come keep their names.

    A value keeps its label for the life of the process, so no counter ever changes its meaning.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """`value` itself, or ``other`` once `limit` values are taken."""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value


PROVIDER = BoundedLabel(VALUES_MAX)
"""The label of a provider's name, which anybody who writes to the bus may choose."""

SIGNAL = BoundedLabel(VALUES_MAX)
"""The label of a signal's name."""

SOURCE = BoundedLabel(VALUES_MAX)
"""The label of a feedback event's source, which likewise anybody may choose."""
