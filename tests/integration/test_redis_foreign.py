"""Messages that somebody else writes to Redis, on their way into bars, with real processes."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.conftest import Deployment, new_deployment
from tests.servers.redis import Server

from market_data_core.events import StreamEvent, format_ts, parse_ts
from market_data_core.intervals import NS_PER_S
from market_data_core.partitioning import partition_of
from market_data_core.testing.oracle import OracleBar, OracleEvent, batch_bars

pytestmark = pytest.mark.timeout(120)

START = 1_761_314_520 * NS_PER_S
SYMBOLS = ("SPY", "AAPL", "MSFT", "QQQ", "IBM", "GE")
PARTITIONS, EVENTS = 4, 3_000
_CONFIG = """\
version: 1
telemetry: {{metrics_port: 0}}
micro_batch: {{lease_ms: 600, window_ms: 2000, flush_timeout_ms: 300, revise_horizon_ms: 60000}}
bus:
  type: redis
  partitions: {partitions}
  redis: {{uri: "{uri}", key_prefix: "{prefix}"}}
"""
_MDP = "from market_data_pipeline.cli import main; main()"


class Home:
    """A deployment on Redis, and those who write to it with nothing but XADD."""

    def __init__(self, folder: Path, server: Server, partitions: int) -> None:
        self.prefix, self.client = server.new_prefix(), server.client()
        self.deployment: Deployment = new_deployment(folder, "one")
        text = _CONFIG.format(partitions=partitions, uri=server.uri, prefix=self.prefix)
        (self.deployment.folder / "configs" / "streaming.yaml").write_text(text)
        self._workers: list[subprocess.Popen[bytes]] = []

    def add(self, data: bytes, partition: int | None = None) -> None:
        """XADD to the plain name, or to a partition's stream."""
        key = f"{self.prefix}mdp.events" + ("" if partition is None else f":{partition}")
        self.client.xadd(key, {"data": data})

    def start(self) -> subprocess.Popen[bytes]:
        """One more micro-batcher."""
        folder = self.deployment.folder
        with (folder / "log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-c", _MDP, "stream", "micro-batch"],
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        self._workers.append(worker)
        return worker

    def end(self) -> None:
        """Ctrl-C for all of them."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        for worker in self._workers:
            worker.wait(30)

    def wait(self, check: Callable[[], bool]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + 60
        while not check():
            text = (self.deployment.folder / "log").read_text()
            assert time.monotonic() < deadline, text[-4_000:]
            time.sleep(0.05)

    def counts(self) -> dict[str, int]:
        """The terms of the conservation equation, over all partitions."""
        done = self.deployment.mdp("conservation", "--format", "json")
        rows = [r for r in json.loads(done.stdout or "[]") if r["topic"] == "mdp.events"]
        assert all(row["holds"] for row in rows)
        terms = ("received", "stored", "open", "deduplicated", "late", "dead_lettered", "lost")
        return {term: sum(row[term] for row in rows) for term in terms}

    def bars(self, provider: str) -> dict[tuple[str, str, int], OracleBar]:
        """The stored bars of a provider."""
        try:
            rows = [row for row in self.deployment.bars() if row[0] == provider]
        except sqlite3.OperationalError:  # the store is only just being made
            return {}
        return {(row[0], row[1], row[3]): OracleBar(*row[4:]) for row in rows}


@pytest.fixture(params=[PARTITIONS, 1])
def home(request: pytest.FixtureRequest, tmp_path: Path, redis_server: Server) -> Iterator[Home]:
    made = Home(tmp_path, redis_server, request.param)
    yield made
    made.end()
    made.client.close()


def trades() -> list[dict[str, Any]]:
    """Events of a foreign feed, in their order of time."""
    chance, price = random.Random(7), 100.0
    found = []
    for n in range(EVENTS):
        price = round(price * (1 + chance.gauss(0, 1e-3)), 2)
        prices = dict.fromkeys("ohlc", price)
        at = format_ts(START + n * 20_000_000)
        event = {"ver": 1, "provider": "them", "symbol": SYMBOLS[n % 6], "src_ts": at}
        found.append(event | prices | {"v": chance.randrange(1, 900), "seq": n})
    return found


def oracle_of(event: dict[str, Any]) -> OracleEvent:
    one = msgspec.convert(event, StreamEvent)
    return OracleEvent(
        one.provider, one.symbol, parse_ts(one.src_ts), one.seq, one.o, one.h, one.l, one.c, one.v
    )


def test_bars_of_what_others_write(home: Home) -> None:
    """Bit for bit those of a computation over all at once; every message is accounted for."""
    home.start()
    home.wait(lambda: bool(home.client.exists(f"{home.prefix}mdp.events:meta")))
    second = home.start()
    events = trades()
    one_partition = home.client.hget(f"{home.prefix}mdp.events:meta", "partitions") == b"1"
    twice, odd = 0, 0
    for n, event in enumerate(events):
        data = json.dumps(event).encode() if n % 3 else msgspec.msgpack.encode(event)
        direct = n % 5 == 0 and not one_partition
        owner = partition_of(event["symbol"], PARTITIONS)
        if direct:
            wrong = n % 10 == 0  # then it is sent on from there
            home.add(data, (owner + wrong) % PARTITIONS)
        else:
            home.add(data)
        if n % 100 == 0:
            home.add(data)
            twice += 1
        if n % 150 == 0:
            home.add(b"\xff not an event")
            home.client.xadd(f"{home.prefix}mdp.events", {"colour": "red"})
            odd += 2
        if n == EVENTS // 2:
            second.kill()
            home.start()
    bar = events[0] | {"kind": "bar", "interval": "1m", "seq": 0}
    home.add(json.dumps(bar).encode())
    wanted = batch_bars([oracle_of(event) for event in events], 2 * NS_PER_S)
    home.wait(lambda: home.bars("them") == wanted)
    home.end()
    assert len(home.bars("them:official")) == 1
    counts = home.counts()
    assert counts == {
        "received": EVENTS + twice + odd + 1, "stored": EVENTS + 1, "open": 0, "late": 0,
        "deduplicated": twice, "dead_lettered": odd, "lost": 0,
    }  # fmt: skip
    assert home.client.xlen(f"{home.prefix}mdp.events") == 0 or one_partition
    letters = home.deployment.mdp("dlq", "list", "--format", "json")
    assert letters.returncode == 0, letters.stderr
    assert len(json.loads(letters.stdout)) == odd
