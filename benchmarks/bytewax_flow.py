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

from benchmarks.contender import BarRow, Contender, Result, answer_of
from benchmarks.python_loop import bar_of
from benchmarks.workload import BATCH_ROWS, LATENESS_NS, WINDOW_NS, Cache


class _Wire(msgspec.Struct, gc=False):
    """The fields that the flow needs; the decoder skips the others."""

    symbol: str
    src_ts: datetime
    seq: int
    c: float
    v: float


_ALIGN = datetime(2025, 1, 1, tzinfo=UTC)
Source = Any


def _run(source: Source, keyed: Callable[[Any], Any], events: int) -> Result:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.operators import windowing as win
    from bytewax.testing import TestingSink, run_main

    clock = win.EventClock(
        ts_getter=itemgetter(0), wait_for_system_duration=timedelta(microseconds=LATENESS_NS / 1e3)
    )
    windower = win.TumblingWindower(align_to=_ALIGN, length=timedelta(microseconds=WINDOW_NS / 1e3))
    bars: list[BarRow] = []
    flow = Dataflow("bars")
    rows = op.input("in", flow, source)
    if keyed is not _as_it_is:
        rows = op.map("parse", rows, keyed)
    windows = win.collect_window("window", rows, clock, windower)
    worked_out = op.map("bar", windows.down, lambda item: bar_of(item[1][1]))
    op.output("out", worked_out, TestingSink(bars))
    started = perf_counter()
    run_main(flow)
    seconds = perf_counter() - started
    return Result(seconds, answer_of(bars, events - sum(bar[6] for bar in bars)))


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
    decode = msgspec.json.Decoder(_Wire).decode

    def keyed(line: str) -> tuple[str, tuple[datetime, int, float, float]]:
        event = decode(line)
        return event.symbol, (event.src_ts, event.seq, event.c, event.v)

    return _run(FileSource(path, batch_size=BATCH_ROWS), keyed, events)


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
)
