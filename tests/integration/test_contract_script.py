"""The script that the client library is judged by, in a process of its own, on both stores."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from market_data_store.opening import open_store
from mds_client import AMDS

if TYPE_CHECKING:
    from tests.servers.postgres import Server

HEAD = """
from prometheus_client import start_http_server
from mds_client import AMDS
from mds_client.models import Bar
from market_data_store.sinks import BarsSink
from market_data_store.coordinator import (WriteCoordinator, DeadLetterQueue, RetryPolicy,
                                           CircuitBreaker, CoordinatorRuntimeSettings)
"""
BODY = """
start_http_server(9000)
cfg = CoordinatorRuntimeSettings()
dlq = DeadLetterQueue[Bar](".dlq/bars.ndjson")
sink = BarsSink(AMDS.from_env())
async with sink, WriteCoordinator[Bar](
    sink=sink, capacity=cfg.coordinator_capacity, workers=cfg.coordinator_workers,
    retry_policy=RetryPolicy(max_attempts=5), circuit_breaker=CircuitBreaker(failure_threshold=5),
    drop_callback=lambda item: dlq.save([item], RuntimeError("dropped"), {}),
    on_backpressure_high=lambda: print("high"), on_backpressure_low=lambda: print("low"),
    coord_id="production",
) as coord:
    for _ in range(BARS):
        await coord.submit(Bar(symbol="AAPL", open=190, high=192, low=189, close=191, volume=1000))
    h = coord.health()
    failed = await dlq.replay(10)
    await coord.submit_many(f.items for f in failed)
"""
# What a scrape of the metrics would find at the end.
TAIL = """
from urllib.request import urlopen
for line in urlopen("http://127.0.0.1:9000/metrics").read().decode().splitlines():
    if line.startswith(("store_bars_written_total", "sink_writes_total", "mds_coord_items")):
        print(line)
"""
PORT = 9000
BARS = {"sqlite": 100_000, "postgres": 20_000}


def run(script: str, uri: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script's end; it is begun again while somebody else has its port.

    It takes the port before it does anything else. Tests that need it wait for one another.
    """
    deadline = time.monotonic() + 60
    with (Path(tempfile.gettempdir()) / f"mdp-test-port-{PORT}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while True:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", script],
                env=os.environ | {"MDS_DSN": uri},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            taken = f"[Errno {errno.EADDRINUSE}]" in done.stderr
            if not taken or time.monotonic() > deadline:
                return done
            time.sleep(0.2)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_the_script_stores_all_its_bars(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = ""
    if backend == "postgres":
        server: Server = request.getfixturevalue("postgres")
        uri = server.new_schema()
        asyncio.run(_migrate(uri))
    script = f"{HEAD}BARS = {BARS[backend]}\nimport asyncio\nasync def main():\n"
    script += textwrap.indent(BODY, "    ") + "asyncio.run(main())\n" + TAIL
    done = run(script, uri, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    frame = asyncio.run(_stored(uri or f"sqlite:///{tmp_path}/.mdp/store.db"))
    counted = dict(re.findall(r"^(\S+) ([\d.e+]+)$", done.stdout, re.M))
    assert float(counted['mds_coord_items_submitted_total{coord_id="production"}']) == BARS[backend]
    written = {
        status: float(counted[f'store_bars_written_total{{method="upsert",status="{status}"}}'])
        for status in ("inserted", "unchanged", "updated", "kept")
    }
    # Bars made within one microsecond have one key.
    assert written["inserted"] + written["unchanged"] == BARS[backend]
    assert written["updated"] == written["kept"] == 0
    assert len(frame) == written["inserted"] > 0.99 * BARS[backend]
    key = frame.select("provider", "symbol", "interval", "state").unique()
    assert key.rows() == [("unknown", "AAPL", "1m", "final")]
    values = frame.select("open", "high", "low", "close", "volume", "vwap", "trade_count").unique()
    assert values.rows() == [(190.0, 192.0, 189.0, 191.0, 1000.0, None, None)]
    assert not (tmp_path / ".dlq" / "production.ndjson").exists()


async def _migrate(uri: str) -> None:
    store = open_store(uri)
    await store.migrate()
    await store.close()


async def _stored(uri: str) -> pl.DataFrame:
    async with AMDS(uri) as client:
        return await client.bars("AAPL", "1m")
