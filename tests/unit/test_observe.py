"""What the observer says is what an operator may rely on."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import Claim, PartitionKey
from market_data_core.events import Rejected, make_batch
from market_data_core.intervals import format_interval
from market_data_core.records import Mark, Record
from market_data_pipeline import metrics
from market_data_pipeline.bus import codec
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows.checkpoint import Checkpoint
from market_data_pipeline.windows.group import Decided, PartitionGroup

S = 10**9
T = 1_700_000_000 * S
EVENTS = make_batch(
    "p", ["A"] * 3, [T, T, T], [0, 1, 2], [1.0] * 3, [1.0] * 3, ingest_ts=[T + 3 * S, T + S, T]
)


def record(payload: bytes, count: int, append_s: float = 4.0) -> Record:
    return Record(0, 0, payload, T + round(append_s * S), count)


def lag(member: str) -> float | None:
    labels = {"topic": "t", "group": "g", "consumer": member}
    return REGISTRY.get_sample_value("stream_consumer_lag_ms", labels)


def observer(member: str, live: bool = True) -> Observer:
    return Observer("t", "g", member, live, 0, codec.oldest_ingest)


@pytest.mark.parametrize("form", ["columnar", "json", "msgpack"])
def test_lag_counts_from_the_ingest_of_the_oldest_unread_event(form: str) -> None:
    watch = observer(f"ingest {form}")
    batch = EVENTS.take(np.array([2] if form != "columnar" else [0, 1, 2]))
    (payload,) = codec.encode_events(batch, form)  # type: ignore[arg-type]
    mark = codec.encode_mark(Mark(kind="progress", provider="p", ts=T))
    newer = codec.encode_columns(EVENTS.take(slice(0, 1)))
    found = {0: [record(mark, 0), record(payload, 1)], 1: [record(newer, 1)]}
    watch.consumed(found, T + 5 * S)
    assert lag(f"ingest {form}") == 5_000
    watch.consumed({}, T + 6 * S)
    assert lag(f"ingest {form}") == 0


@pytest.mark.parametrize(
    "payload",
    [
        codec.encode_rejected(Rejected("malformed", "", b"")),
        codec.encode_columns(EVENTS)[:9],
        b'{"ver":1,"provider":"p","symbol":"A","src_ts":"2023","o":1,"h":1,"l":1,"c":1,"v":1}',
        b'{"ver":1,"provider":"p","symbol":"A","src_ts":"","ingest_ts":"soon",'
        b'"o":1,"h":1,"l":1,"c":1,"v":1}',
        b"nonsense",
    ],
)
def test_lag_of_what_does_not_tell_counts_from_its_append(payload: bytes) -> None:
    observer("append").consumed({0: [record(payload, 1)]}, T + 5 * S)
    assert lag("append") == 1_000


def test_lag_of_a_recording_counts_from_its_append() -> None:
    found = {0: [record(codec.encode_columns(EVENTS), 3)]}
    observer("lane", live=False).consumed(found, T + 5 * S)
    assert lag("lane") == 1_000


def test_the_header_tells_what_the_columns_hold() -> None:
    wide = make_batch("p", ["A", "B"], [T, T], [0, 1], [1.0, 2.0], [1.0, 2.0], ingest_ts=[T, 0])
    assert codec.oldest_ingest(codec.encode_columns(EVENTS)) == T
    assert codec.oldest_ingest(codec.encode_columns(EVENTS.take(slice(0, 1)))) == T + 3 * S
    assert codec.oldest_ingest(codec.encode_columns(wide)) is None


def test_lengths_of_vendors_bars_do_not_grow_without_bound() -> None:
    watch = observer("lengths")
    ones = np.ones(1)
    bars = [
        BarBatch("p", format_interval((1000 + n) * S), "final", ("A",), np.zeros(1, np.uint16),
                 np.array([T]), *(ones,) * 6, np.ones(1, np.int64))
        for n in range(metrics.VALUES_MAX + 5)
    ]  # fmt: skip
    group = PartitionGroup(
        Claim(PartitionKey("g", "t", 0), 1, 0, None),
        [Decided(b, np.ones(1, np.int64)) for b in bars],
        "",
        Checkpoint(log_id="l"),
        [],
        [],
        "",
    )
    watch.committed(group, T)
    other = {"window_ms": "other", "symbol": "other"}
    assert REGISTRY.get_sample_value("microbatch_flush_total", other) == 5


def test_providers_do_not_grow_without_bound() -> None:
    label = metrics.BoundedLabel(metrics.VALUES_MAX)
    assert [label(str(n)) for n in range(102)][-3:] == ["99", "other", "other"]
    assert metrics.PROVIDER("one that is known") == "one that is known"
