"""A hand-written loop, tuned: rows are only collected, and a window is worked out as it closes.

One pass, bounded state: the watermark is the greatest event time so far minus the lateness. The
set of a window's rows removes duplicates and one sort gives open and close; both run in C.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.contender import BarRow, Contender, Result, answer_of
from benchmarks.workload import LATENESS_NS, WINDOW_NS, Cache

Row = tuple[Any, int, float, float]
"""src_ts, seq, price, size; src_ts is anything that sorts as the times do."""


def bar_of(rows: list[Row]) -> BarRow:
    """The bar of one window's rows, in any order and with duplicates."""
    unique = sorted(set(rows))
    _, _, prices, sizes = zip(*unique, strict=True)
    volume = sum(sizes)
    notional = sum([price * size for _, _, price, size in unique])
    high, low = max(prices), min(prices)
    return prices[0], high, low, prices[-1], volume, notional / volume, len(unique)


def run_dicts(events: list[dict[str, Any]]) -> Result:
    started = perf_counter()
    row_of = itemgetter("src_ts", "seq", "price", "size")
    windows: dict[int, dict[str, list[Row]]] = {}
    bars: list[BarRow] = []
    due = 0  # event time at which the oldest open window closes
    for event in events:
        row = row_of(event)
        ts = row[0]
        if ts >= due:
            due = _close(windows, bars, ts)
        start = ts // WINDOW_NS
        try:
            windows[start][event["symbol"]].append(row)
        except KeyError:
            windows.setdefault(start, {})[event["symbol"]] = [row]
    _close(windows, bars, 1 << 63)
    seconds = perf_counter() - started
    return Result(seconds, answer_of(bars, len(events) - sum(bar[6] for bar in bars)))


def _close(windows: dict[int, dict[str, list[Row]]], bars: list[BarRow], ts: int) -> int:
    """Close what the watermark of `ts` has passed; returns when to come back."""
    closed = (ts - LATENESS_NS) // WINDOW_NS
    for start in sorted(windows):
        if start < closed:
            bars += [bar_of(rows) for rows in windows.pop(start).values()]
    return (closed + 1) * WINDOW_NS + LATENESS_NS


class Wire(msgspec.Struct, gc=False):
    """The fields that the loop needs; the decoder skips the others."""

    symbol: str
    src_ts: str
    seq: int
    c: float
    v: float


class Seconds(dict[str, int]):
    """Nanoseconds of a time's first 19 characters; all but the first of a second are looked up."""

    def __missing__(self, text: str) -> int:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
        self[text] = value = int(moment.timestamp()) * 10**9
        return value


Parsed = list[tuple[str, int, Row]]
"""Symbol, time floored to the second (ns), row."""


def _parsed_by_msgspec(lines: list[bytes], seconds: Seconds) -> Parsed:
    """The time stays text inside the row: texts of one width sort as their times do."""
    events = msgspec.json.Decoder(Wire).decode_lines(b"".join(lines))
    return [(e.symbol, seconds[e.src_ts[:19]], (e.src_ts, e.seq, e.c, e.v)) for e in events]


def _parsed_by_json(lines: list[bytes], seconds: Seconds) -> Parsed:
    events = json.loads(b"[" + b",".join(lines) + b"]")
    return [
        (e["symbol"], seconds[e["src_ts"][:19]], (e["src_ts"], e["seq"], e["c"], e["v"]))
        for e in events
    ]


def run_ndjson(path: Path, parse: Callable[[list[bytes], Seconds], Parsed]) -> Result:
    started = perf_counter()
    windows: dict[int, dict[str, list[Row]]] = {}
    bars: list[BarRow] = []
    due = events = 0
    whole = Seconds()
    with path.open("rb") as file:
        while lines := file.readlines(1 << 20):
            events += len(lines)
            for symbol, ts, row in parse(lines, whole):
                if ts >= due:
                    due = _close(windows, bars, ts)
                start = ts // WINDOW_NS
                try:
                    windows[start][symbol].append(row)
                except KeyError:
                    windows.setdefault(start, {})[symbol] = [row]
    _close(windows, bars, 1 << 63)
    seconds = perf_counter() - started
    return Result(seconds, answer_of(bars, events - sum(bar[6] for bar in bars)))


def ready_dicts(cache: Cache) -> list[dict[str, Any]]:
    """The dicts, kept out of the garbage collector's way."""
    events = cache.load().dicts()
    gc.collect()
    gc.freeze()
    return events


CONTENDERS = (
    Contender("loop", "engine", run_dicts, ready_dicts, cores=1, remark="ready dicts, float sums"),
    Contender(
        "loop-msgspec",
        "ndjson",
        lambda path: run_ndjson(path, _parsed_by_msgspec),
        Cache.write_ndjson,
        cores=1,
        remark="nothing durable, float sums",
    ),
    Contender(
        "loop-json",
        "ndjson",
        lambda path: run_ndjson(path, _parsed_by_json),
        Cache.write_ndjson,
        cores=1,
        remark="standard library only, nothing durable, float sums",
    ),
)
