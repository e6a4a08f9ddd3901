"""A deployment in one folder, whose stages are run one after the other in this process."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from market_data_core.clock import SystemClock
from market_data_core.config import Settings, load_config
from market_data_core.events import Tick
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.signals import Signal
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.cli import app
from market_data_pipeline.flow import Flow
from market_data_pipeline.producer import Producer, ProducerSettings
from market_data_pipeline.signals.assembly import evaluator_of

T = TypeVar("T")

START = 1_761_314_400 * NS_PER_S  # 2025-10-24T14:00:00Z
SYMBOLS = ("AAPL", "MSFT", "SPY")
HORIZON_S = 60
END = START + 100 * NS_PER_S
CONFIG = f"""\
bus: {{partitions: 2}}
micro_batch: {{windows: [2s, 10s], revise_horizon_ms: {HORIZON_S * 1_000}}}
telemetry: {{metrics_port: 0}}
inference: {{adapters: {{rules: {{file: rules.yaml}}}}}}
"""
RULES = """\
- {name: up, condition: "momentum > 0.002", signal: 1, score: 0.8}
- {name: down, condition: "ret < -0.001 or rsi < 30", signal: -1, meta: [rsi, ret, close]}
- {name: seldom, condition: "volatility > 0 and close > 0", signal: 0, cooldown: 7s}
- {name: wide, condition: "cross_up(close, open) or ret > 0", signal: 1, interval: 10s}
"""


def ticks() -> list[Tick]:
    """A walk of three prices, two ticks a second for 100 seconds."""
    chance, prices = random.Random(3), dict.fromkeys(SYMBOLS, 100.0)
    made: list[Tick] = []
    for step in range(200):
        for symbol in SYMBOLS:
            prices[symbol] = round(prices[symbol] * (1 + chance.gauss(0, 0.003)), 2)
            ts = START + step * NS_PER_S // 2
            made.append(Tick(symbol, ts, prices[symbol], 10.0, len(made)))
    return made


TICKS = ticks()
LATE = [Tick(s, START + 76 * NS_PER_S - NS_PER_MS, 101.5, 3.0, 10**6) for s in SYMBOLS[:2]]
CLOSING = [Tick(s, END + 300 * NS_PER_S, 100.0, 1.0, 2 * 10**6) for s in SYMBOLS]
"""What closes every window before; it stays open itself."""


@dataclass(frozen=True)
class Place:
    """A deployment in the present folder: the one that ``MDP_HOME`` names."""

    home: Path

    @property
    def settings(self) -> Settings:
        return load_config(Path("config.yaml"), {})

    def work(self, call: Callable[[Backends, Settings], Awaitable[T]]) -> T:
        async def run() -> T:
            settings = self.settings
            async with open_backends(settings) as backends:
                return await call(backends, settings)

        return asyncio.run(run())

    def feed(self, some: Sequence[Tick]) -> None:
        """Append to the live topic."""

        async def append(backends: Backends, settings: Settings) -> None:
            bus = settings.bus
            info = await backends.bus.create_topic(bus.events_topic, bus.partitions)
            how = ProducerSettings("columnar", 10**6, NS_PER_S, 2 * NS_PER_S, 0, "test")
            producer = Producer(backends.bus, codec, info, "feed", how, SystemClock())
            for tick in some:
                producer.add(tick)
            await producer.flush()

        self.work(append)

    def batch(self) -> None:
        """Cut all that there is into windows."""

        async def run(backends: Backends, settings: Settings) -> None:
            await Flow(settings, backends).micro_batch(ended(), drain=True)

        self.work(run)

    def infer(self) -> None:
        """Evaluate all bars that there are."""

        async def run(backends: Backends, settings: Settings) -> None:
            evaluator = evaluator_of(settings)
            assert evaluator is not None
            await Flow(settings, backends).infer(ended(), evaluator, drain=True)

        self.work(run)

    def live(self, *parts: Sequence[Tick]) -> None:
        for part in parts:
            self.feed(part)
            self.batch()
            self.infer()

    def store(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with closing(sqlite3.connect(self.home / "store.db")) as db, db:
            return db.execute(sql, values).fetchall()

    def active(self) -> dict[Any, Any]:
        """Key -> value, score and metadata of the signals up to :data:`END`."""
        rows = self.store(
            "SELECT provider, symbol, ts, name, value, score, metadata FROM signals "
            "WHERE state = 'active' AND ts <= ?",
            [END],
        )
        return {row[:4]: (*row[4:6], json.loads(row[6])) for row in rows}

    def signal_topics(self) -> list[str]:
        """The topics of signals, of live inference and of recordings."""

        async def names(backends: Backends, settings: Settings) -> list[str]:
            topics = await backends.bus.topics()
            return [t.name for t in topics if t.name.startswith(settings.bus.signals_topic)]

        return self.work(names)

    def published(self, topic: str) -> set[Any]:
        """Keys of the signals up to :data:`END` that a reader of a topic takes for active."""

        async def read(backends: Backends, _: Settings) -> list[Signal]:
            info, found = await backends.bus.find_topic(topic), list[Signal]()
            for partition in range(info.partitions if info else 0):
                records = await backends.bus.poll(topic, {partition: 0}, 1 << 30, 0)
                found += [Signal.decode(r.payload) for r in records.get(partition, ())]
            return found

        states = {s.key: s.state for s in self.work(read) if s.ts <= END}
        return {key for key, state in states.items() if state == "active"}

    def verify(self, *options: str) -> Result:
        result = CliRunner().invoke(
            app, ["verify", "--signals", "--config", "config.yaml", *options]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    def agree(self, *options: str) -> int:
        """How many signals a verification without differences finds."""
        result = self.verify(*options)
        assert result.exit_code == 0, result.output
        assert result.output.endswith("no difference\n"), result.output
        return number(result.output, "signals")

    def differences(self, *options: str) -> list[list[str]]:
        """The cells of the differences' table."""
        result = self.verify(*options)
        assert result.exit_code == 1, result.output
        lines = result.output.split("problem")[1].splitlines()[2:]
        return [line.split() for line in lines if line]


def ended() -> asyncio.Event:
    stop = asyncio.Event()
    stop.set()
    return stop


def number(output: str, title: str) -> int:
    (line,) = [text for text in output.splitlines() if text[:16].strip() == title]
    return int(line[16:].split()[0].replace(",", ""))


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Place:
    """Work in a folder, which gets a configuration if it has none."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MDP_HOME", str(folder / "home"))
    if not Path("config.yaml").exists():
        Path("config.yaml").write_text(CONFIG, encoding="utf-8")
        Path("rules.yaml").write_text(RULES, encoding="utf-8")
    return Place(folder / "home")
