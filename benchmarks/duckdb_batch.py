"""One batch query in DuckDB over all ticks at once; nothing is durable, nothing is a stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.contender import Contender, Result, usable_cores
from benchmarks.workload import TICK_SCALE, WINDOW_NS, Answer, Cache

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BARS = f"""
CREATE OR REPLACE TEMP TABLE bars AS
SELECT *, notional / volume AS vwap FROM (
  SELECT symbol, src_ts // {WINDOW_NS} AS start,
    arg_min(price, (src_ts, seq)) AS open, max(price) AS high, min(price) AS low,
    arg_max(price, (src_ts, seq)) AS close, sum(size) AS volume,
    sum(price * size) AS notional, count(*) AS trades
  FROM (SELECT DISTINCT symbol, src_ts, seq, price, size FROM {{ticks}})
  GROUP BY ALL)
"""
_WIRE = "{symbol: 'VARCHAR', src_ts: 'TIMESTAMP', seq: 'BIGINT', c: 'DOUBLE', v: 'DOUBLE'}"


def _connect() -> DuckDBPyConnection:
    """As many threads as cores were granted to this process."""
    import duckdb

    return duckdb.connect(config={"threads": usable_cores()})


def _run(connection: DuckDBPyConnection, ticks: str, events: int, power: int) -> Result:
    started = perf_counter()
    connection.execute(_BARS.format(ticks=ticks))
    seconds = perf_counter() - started
    row = connection.execute(
        "SELECT count(*), sum(trades), sum(open), sum(high), sum(low), sum(close), "
        "sum(volume), sum(vwap) FROM bars"
    ).fetchone()
    if row is None:
        raise AssertionError
    bars, trades, *prices, volume, vwap = (float(value) for value in row)
    sums = (*(price / power for price in prices), volume, vwap / power)
    return Result(seconds, Answer(int(bars), int(trades), events - int(trades), *sums))


def _table(cache: Cache) -> tuple[DuckDBPyConnection, int]:
    connection = _connect()
    columns = cache.load()
    arrays = {
        "symbol": columns.code,
        "src_ts": columns.src_ts,
        "seq": columns.seq,
        "price": columns.ticks,
        "size": columns.lots,
    }
    connection.register("arrays", arrays)
    connection.execute("CREATE TABLE ticks AS SELECT * FROM arrays")
    return connection, cache.events


def run_table(prepared: tuple[DuckDBPyConnection, int]) -> Result:
    connection, events = prepared
    return _run(connection, "ticks", events, 10**TICK_SCALE)


def _ndjson(cache: Cache) -> tuple[Path, int]:
    return cache.write_ndjson(), cache.events


def run_ndjson(prepared: tuple[Path, int]) -> Result:
    path, events = prepared
    source = (
        f"(SELECT symbol, epoch_ns(src_ts) AS src_ts, seq, c AS price, v AS size "
        f"FROM read_ndjson('{path}', columns={_WIRE}))"
    )
    with _connect() as connection:
        return _run(connection, source, events, 1)


_FILE = Contender(
    "duckdb-ndjson",
    "ndjson",
    run_ndjson,
    _ndjson,
    requires=("duckdb",),
    remark="one batch query, nothing durable, float sums",
)
CONTENDERS = (
    Contender(
        "duckdb-1",
        "engine",
        run_table,
        _table,
        cores=1,
        requires=("duckdb",),
        remark="one batch query, integer sums",
    ),
    _FILE,
    replace(_FILE, name="duckdb-ndjson-1", cores=1),
)
