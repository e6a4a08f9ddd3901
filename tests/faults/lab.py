"""A deployment in a folder of its own, and real processes that work, die and stand still on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tests.faults.buses import Files, Log
from tests.faults.doomed import boundaries
from tests.faults.stores import Database, SqliteFile, ordered

from market_data_core.config import BusSettings

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
EVENTS, BARS, LETTERS, SIGNALS = "mdp.events", "mdp.bars", "mdp.dlq", "mdp.signals"
BASE_MS, ALLOW_LATE_MS, HORIZON_MS = 2_000, 500, 5_000
WINDOWS = ("2s", "10s")
RULES = """
- {name: above, condition: "close > sma_3", signal: 1}
- {name: crossed, condition: "cross_up(close, vwap_10s)", signal: 1, score: 0.5}
- {name: held, condition: "ret_6s != 0", signal: 0, cooldown: 5s, meta: [ret_6s, volume]}
- {name: wide, condition: "not (vol_30s < 0.0001)", signal: -1, interval: 10s}
"""
FEATURES = {
    "session_gap": "30s",
    "windows": [
        {"name": "sma_3", "bars": 3},
        {"name": "vwap_10s", "horizon": "10s"},
        {"name": "ret_6s", "horizon": "6s"},
        {"name": "vol_30s", "horizon": "30s"},
    ],
}
KILLS = int(os.environ.get("MDP_FAULT_RUNS", "6"))
"""How many kills have to hit a live process."""
THOROUGH = KILLS >= 50
"""Whether this is the long campaign."""
_MDP = "from market_data_pipeline.cli import main; main()"
_DOOMED = "from tests.faults.doomed import main; main()"
_PAUSE_S = 0.01


def cases(values: Sequence[T], few: int) -> Sequence[T]:
    """All values in the long campaign, the first `few` of them otherwise."""
    return values if THOROUGH else values[:few]


def wait_until(holds: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Poll until `holds` gives something true.

    Raises:
        AssertionError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(_PAUSE_S)


@dataclass
class Worker:
    """A process of ours; its output is in `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def listens(self) -> bool:
        """Whether it handles SIGTERM by now; before, a signal ends the interpreter as it starts."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return False
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.M)
        return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def opened(self, folder: Path) -> bool:
        """Whether it has a file under `folder` open."""
        return any(path.is_relative_to(folder) for path in self._open)

    @property
    def _open(self) -> list[Path]:
        found = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(link.readlink())
        return found

    @property
    def runs(self) -> bool:
        """Whether its event loop is there, which wakes itself through a socket."""
        return any(path.name.startswith("socket:") for path in self._open)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> bool:
        """kill -9; whether it hit a live process."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait(10) == -signal.SIGKILL

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None

    def stop(self, number: signal.Signals = signal.SIGINT, *, doomed: bool = False) -> None:
        """Ask it to end, and require that it ends well, or by its own hand if it is doomed."""
        wait_until(lambda: not self.alive or self.listens, "the process has started")
        self.send(number)
        code = self.wait()
        ends = (0, -signal.SIGKILL) if doomed else (0,)
        assert code in ends, f"exit code {code} after {number.name}:\n{self.output}"
        assert "Traceback" not in self.output, self.output


@dataclass
class Lab:
    """One deployment: configuration and bus under `path`, and a store.

    Attributes:
        path: the folder.
        database: the store; None for a file under `path`.
        log: the bus; None for files under `path`.
        micro_batch: settings other than the lab's own.
        bus: likewise.
        synthetic: likewise.
        windows: the configured windows.
        block_rows: events of a recording that are handed on at a time; 0 for as many as usual.
    """

    path: Path
    database: Database | None = None
    log: Log | None = None
    micro_batch: Mapping[str, object] = field(default_factory=dict)
    bus: Mapping[str, object] = field(default_factory=dict)
    synthetic: Mapping[str, object] = field(default_factory=dict)
    windows: tuple[str, ...] = WINDOWS
    block_rows: int = 0
    workers: list[Worker] = field(default_factory=list)

    @property
    def store(self) -> Database:
        return self.database or SqliteFile(self.store_file)

    @property
    def topics(self) -> Log:
        return self.log or Files(self.home / "bus")

    @property
    def group(self) -> str:
        """Of the workers; the archive has another one."""
        return BusSettings.model_validate(self.topics.settings).group

    @property
    def boundaries(self) -> tuple[str, ...]:
        """Where a process can be told to die."""
        return boundaries(str(self.topics.settings["type"]))

    @property
    def home(self) -> Path:
        return self.path / "home"

    @property
    def store_file(self) -> Path:
        """Of a store that is a file."""
        return self.home / "store.db"

    @property
    def files(self) -> list[SqliteFile]:
        """Those of the bus, and of the store, where they are files."""
        topics = [SqliteFile(path) for path in (self.home / "bus").glob("*.db")]
        return [*topics, *([self.store] if isinstance(self.store, SqliteFile) else [])]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the store; none while it or the table is not there yet."""
        return self.store.query(sql)

    def number(self, sql: str) -> int:
        """The one number that a query of the store gives; 0 if there is none."""
        rows = self.query(sql)
        return int(rows[0][0] or 0) if rows else 0

    def table(self, name: str) -> list[str]:
        """All of a table of the store."""
        return ordered(self.query(f"SELECT * FROM {name}"))

    def topic_file(self, topic: str) -> Path:
        """Of a topic that is a file."""
        return self.home / "bus" / f"{topic}.db"

    def config(self, **synthetic: object) -> Path:
        """Write the configuration; `synthetic` changes the feed's settings."""
        return self.config_of_one(synthetic, {}, self.store.uri)

    def config_of_one(
        self, synthetic: Mapping[str, object], bus: Mapping[str, object], store: str
    ) -> Path:
        """Write a configuration that is not everybody's.

        Args:
            synthetic: settings of the feed, other than the lab's own.
            bus: likewise, of the bus.
            store: URI of the store.
        """
        settings = {
            "version": 1,
            "store": {"uri": store},
            "bus": {
                "partitions": 4,
                "linger_ms": 1,
                **self.topics.settings,
                **self.bus,
                **bus,
            },
            "producers": {"synthetic": {"enabled": True, **self.synthetic, **synthetic}},
            "micro_batch": {
                "windows": list(self.windows),
                "allow_late_ms": ALLOW_LATE_MS,
                "revise_horizon_ms": HORIZON_MS,
                "max_future_ms": 1_000,
                "lease_ms": 500,
                "commit_interval_ms": 50,
                "flush_timeout_ms": 300,
                **self.micro_batch,
            },
            "features": FEATURES,
            "inference": {"adapters": {"rules": {"file": str(self.path / "rules.yaml")}}},
            "telemetry": {"metrics_port": 0, "log_level": "WARNING"},
        }
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "rules.yaml").write_text(RULES)
        path = self.path / f"config{len(self.workers)}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def start(
        self,
        *arguments: str,
        config: Path | None = None,
        doom: str = "",
        file_bytes_max: int | None = None,
    ) -> Worker:
        """Start ``mdp`` with `arguments` and the lab's configuration.

        Args:
            arguments: of the command line.
            config: instead of the lab's own.
            doom: where the process kills itself (see ``tests.faults.doomed``).
            file_bytes_max: no file may grow beyond it.
        """
        changed = doom or self.block_rows
        command = [sys.executable, "-c", _DOOMED if changed else _MDP, *arguments]
        command += ["--config", str(config or self.config())]
        if file_bytes_max is not None:
            command = ["prlimit", f"--fsize={file_bytes_max}:unlimited", *command]
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "MDP_HOME": str(self.home),
            "MDP_DOOM": doom,
            "MDP_BLOCK_ROWS": str(self.block_rows or ""),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
        }
        log = self.path / f"process{len(self.workers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(process, log)
        self.workers.append(worker)
        return worker

    def run(self, *arguments: str, code: int = 0, config: Path | None = None) -> str:
        """Run ``mdp`` to its end, require the exit code, and give its output."""
        worker = self.start(*arguments, config=config)
        assert worker.wait() == code, worker.output
        assert "Traceback" not in worker.output, worker.output
        return worker.output

    def close(self) -> None:
        """End whatever still runs."""
        for worker in self.workers:
            if worker.alive:
                with suppress(ProcessLookupError):
                    worker.send(signal.SIGKILL)
                worker.process.wait(10)
        if self.log:
            self.log.close()
