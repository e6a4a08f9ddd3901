"""Pathway: duplicates removed by a groupby, then a tumbling window per symbol.

The table is given whole and at once, which spares Pathway the lateness and the connector.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.contender import BarRow, Contender, Result, answer_of
from benchmarks.workload import TICK_SCALE, WINDOW_NS, Cache

if TYPE_CHECKING:
    import pandas as pd


def _frame(cache: Cache) -> pd.DataFrame:
    import pandas as pd

    names = ("code", "src_ts", "seq", "ticks", "lots")
    columns = cache.load()
    return pd.DataFrame({name: getattr(columns, name).astype("int64") for name in names})


def run(frame: pd.DataFrame) -> Result:
    os.environ.setdefault("PATHWAY_THREADS", "1")
    import pathway as pw

    ticks = pw.debug.table_from_pandas(frame)
    this = pw.this
    unique = ticks.groupby(this.code, this.src_ts, this.seq).reduce(
        this.code,
        this.src_ts,
        row=pw.make_tuple(this.src_ts, this.seq, pw.reducers.any(this.ticks)),
        price=pw.reducers.any(this.ticks),
        size=pw.reducers.any(this.lots),
    )
    windows = unique.windowby(
        this.src_ts, window=pw.temporal.tumbling(duration=WINDOW_NS), instance=this.code
    ).reduce(
        first=pw.reducers.min(this.row),
        last=pw.reducers.max(this.row),
        high=pw.reducers.max(this.price),
        low=pw.reducers.min(this.price),
        volume=pw.reducers.sum(this.size),
        notional=pw.reducers.sum(this.price * this.size),
        count=pw.reducers.count(),
    )
    bars: list[BarRow] = []
    power = 10**TICK_SCALE

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:  # noqa: ARG001
        if not is_addition:
            message = "a bar was changed, though all rows came at once"
            raise AssertionError(message)
        bars.append(
            (
                row["first"][2] / power,
                row["high"] / power,
                row["low"] / power,
                row["last"][2] / power,
                row["volume"],
                row["notional"] / row["volume"] / power,
                row["count"],
            )
        )

    pw.io.subscribe(windows, on_change=on_change)
    started = perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    seconds = perf_counter() - started
    return Result(seconds, answer_of(bars, len(frame) - sum(bar[6] for bar in bars)))


CONTENDERS = (
    Contender(
        "pathway",
        "engine",
        run,
        _frame,
        cores=1,
        requires=("pathway",),
        optional=True,
        rounds_max=2,
        fresh=True,
        remark="static table, integer sums",
    ),
)
