"""Bytewax: a keyed dataflow with tumbling event-time windows on one worker.

Rows are collected per window and worked out as it closes, by the same function as the hand-written
loop's; folding row by row is slower, and Bytewax has no window operator that removes duplicates.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks import servers
from benchmarks.contender import BarRow, Contender, Result, answer_of
from benchmarks.python_loop import bar_of
from benchmarks.servers import PARTITIONS, TOPIC, Messages
from benchmarks.workload import BATCH_ROWS, LATENESS_NS, WINDOW_NS, Cache
from market_data_core.intervals import NS_PER_S


class _Wire(msgspec.Struct, gc=False):
    """The fields that the flow needs; the decoder skips the others."""

    symbol: str
    src_ts: datetime
    seq: int
    c: float
    v: float


_decode = msgspec.json.Decoder(_Wire).decode
_ALIGN = datetime(2025, 1, 1, tzinfo=UTC)
_NEVER = datetime(2200, 1, 1, tzinfo=UTC)
Source = Any


def _run(
    source: Source, keyed: Callable[[Any], Any], events: int, end: datetime = _NEVER
) -> Result:
    """One run; what is later than `end` belongs to no workload."""
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.operators import windowing as win
    from bytewax.testing import TestingSink, run_main

    clock = win.EventClock(
        ts_getter=itemgetter(0),
        wait_for_system_duration=timedelta(microseconds=LATENESS_NS / 1e3),
        # its watermark moves with the clock on the wall too, and what a broker holds back is late
        now_getter=lambda: _ALIGN,
    )
    windower = win.TumblingWindower(align_to=_ALIGN, length=timedelta(microseconds=WINDOW_NS / 1e3))
    bars: list[BarRow | None] = []
    flow = Dataflow("bars")
    rows = op.input("in", flow, source)
    if keyed is not _as_it_is:
        rows = op.map("parse", rows, keyed)
    windows = win.collect_window("window", rows, clock, windower)

    def worked(item: Any) -> BarRow | None:
        rows = item[1][1]
        return bar_of(rows) if rows[0][0] < end else None

    worked_out = op.map("bar", windows.down, worked)
    op.output("out", worked_out, TestingSink(bars))
    started = perf_counter()
    run_main(flow)
    seconds = perf_counter() - started
    found = [bar for bar in bars if bar]
    return Result(seconds, answer_of(found, events - sum(bar[6] for bar in found)))


def _as_it_is(item: Any) -> Any:
    return item


def ready_rows(cache: Cache) -> list[tuple[str, tuple[datetime, int, float, float]]]:
    """Keyed rows with the datetimes that Bytewax's event clock asks for."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return [
        (
            event["symbol"],
            (
                epoch + timedelta(microseconds=event["src_ts"] // 1_000),
                event["seq"],
                event["price"],
                event["size"],
            ),
        )
        for event in cache.load().dicts()
    ]


def run_rows(rows: list[tuple[str, tuple[datetime, int, float, float]]]) -> Result:
    from bytewax.testing import TestingSource

    return _run(TestingSource(rows, batch_size=BATCH_ROWS), _as_it_is, len(rows))


def _ndjson(cache: Cache) -> tuple[Path, int]:
    return cache.write_ndjson(), cache.events


def run_ndjson(prepared: tuple[Path, int]) -> Result:
    from bytewax.connectors.files import FileSource

    path, events = prepared
    return _run(FileSource(path, batch_size=BATCH_ROWS), _keyed, events)


def _keyed(data: bytes | str) -> tuple[str, tuple[datetime, int, float, float]]:
    event = _decode(data)
    return event.symbol, (event.src_ts, event.seq, event.c, event.v)


def _end(prepared: Messages) -> datetime:
    return datetime.fromtimestamp(prepared.end_ts // NS_PER_S, UTC)


def run_kafka(prepared: Messages) -> Result:
    """Single JSON messages from a broker, by its own connector; nothing is stored."""
    from bytewax.connectors.kafka import KafkaSource

    with servers.kafka() as broker:
        servers.topic(broker)
        broker.fill(prepared.rows)
        source = KafkaSource([broker.address], [broker.topic], tail=False, batch_size=BATCH_ROWS)
        return _run(source, lambda message: _keyed(message.value), prepared.events, _end(prepared))


def run_redis(prepared: Messages) -> Result:
    """Single JSON messages from a Redis stream; Bytewax has no connector of its own for it."""
    import redis
    from bytewax.inputs import DynamicSource, StatelessSourcePartition

    class Stream(StatelessSourcePartition[bytes]):
        def __init__(self, address: str) -> None:
            self._client, self._after = (
                redis.Redis.from_url(address),
                {f"{TOPIC}:{p}": b"0" for p in range(PARTITIONS)},
            )

        def next_batch(self) -> list[bytes]:
            found = self._client.xread(self._after, count=BATCH_ROWS)
            if not found:
                raise StopIteration
            rows = []
            for name, entries in found:
                self._after[name.decode()] = entries[-1][0]
                rows += [fields[b"data"] for _, fields in entries]
            return rows

    class Streams(DynamicSource[bytes]):
        def __init__(self, address: str) -> None:
            self._address = address

        def build(self, step_id: str, worker_index: int, worker_count: int) -> Stream:
            return Stream(self._address)

    with servers.redis() as broker:
        broker.fill(prepared.rows)
        return _run(Streams(broker.address), _keyed, prepared.events, _end(prepared))


_REQUIRES = ("bytewax",)
CONTENDERS = (
    Contender(
        "bytewax",
        "engine",
        run_rows,
        ready_rows,
        cores=1,
        requires=_REQUIRES,
        optional=True,
        rounds_max=3,
        remark="ready tuples with datetimes, float sums",
    ),
    Contender(
        "bytewax-ndjson",
        "ndjson",
        run_ndjson,
        _ndjson,
        cores=1,
        requires=_REQUIRES,
        optional=True,
        rounds_max=3,
        remark="nothing durable, float sums",
    ),
    Contender(
        "bytewax-kafka",
        "kafka",
        run_kafka,
        servers.messages,
        requires=_REQUIRES,
        optional=True,
        rounds_max=1,
        remark="from single JSON messages; nothing stored, float sums",
    ),
    Contender(
        "bytewax-redis",
        "redis",
        run_redis,
        servers.messages,
        requires=_REQUIRES,
        optional=True,
        rounds_max=1,
        remark="from single JSON messages; nothing stored, float sums",
    ),
)
