"""The command line in a deployment of its own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import DATABASES, LOGS
from tests.faults.lab import Lab
from tests.property._signals_world import World

_MDP = "from market_data_pipeline.cli import main; main()"
_CONFIG = "version: 1\ntelemetry: {metrics_port: 0}\nmicro_batch: {lease_ms: 600}\n"
VALUES = "open, high, low, close, volume, vwap, trade_count"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A folder with a configuration, a bus and a store."""

    folder: Path

    def mdp(
        self, *arguments: object, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-c", _MDP, *map(str, arguments)],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=90,
        )
        texts = (done.stdout.decode(), done.stderr.decode())
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def ok(self, *arguments: object, stdin: bytes | None = None) -> str:
        """What a command that has to succeed prints."""
        done = self.mdp(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def raw(self, *arguments: object) -> bytes:
        """What a command writes, as bytes."""
        command = [sys.executable, "-c", _MDP, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, check=True, timeout=90
        ).stdout

    def query(self, sql: str) -> list[Any]:
        """Rows of the store."""
        with sqlite3.connect(self.folder / ".mdp" / "store.db") as db:
            return db.execute(sql).fetchall()

    def bars(self) -> list[Any]:
        """All bars: key and values."""
        return self.query(
            f"SELECT provider, symbol, interval, ts, {VALUES} FROM bars_ohlcv ORDER BY 1, 2, 3, 4"
        )


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return new_deployment(tmp_path, "one")


def new_deployment(parent: Path, name: str) -> Deployment:
    """Another deployment beside the first."""
    folder = parent / name
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "streaming.yaml").write_text(_CONFIG)
    return Deployment(folder)


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A deployment of real processes: on files, or on the servers that a test is given."""
    bus, store = getattr(request, "param", "embedded-sqlite").split("-")
    made = Lab(tmp_path / "lab", DATABASES[store](request)(), LOGS[bus](request)())
    yield made
    made.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Bars in a store and a log in memory, for workers of inference that run in this process."""
    made = World(tmp_path)
    await made.open()
    yield made
    await made.store.close()
