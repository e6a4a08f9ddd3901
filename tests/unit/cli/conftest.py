"""A home folder of its own for every test, and lanes written into it by the real engine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from market_data_core.config import Settings, load_config
from market_data_core.contracts.provider import Item
from market_data_core.errors import MdpError
from market_data_core.events import parse_ts
from market_data_pipeline.assembly import Assembly
from market_data_pipeline.backends import open_backends
from market_data_pipeline.cli import app

START = parse_ts("2025-10-24T14:00:00Z")
NS = 10**9


@dataclass
class Home:
    """A folder with bus and store, and the command line on it."""

    path: Path

    def settings(self, **overrides: object) -> Settings:
        """The settings, with dots in keys written as double underscores."""
        given: dict[str, object] = {"bus.partitions": 3, "micro_batch.windows": ("2s", "3s", "1m")}
        return load_config(None, given | {k.replace("__", "."): v for k, v in overrides.items()})

    def lane(
        self,
        items: Sequence[Item],
        topic: str = "mdp.events.a",
        ended: bool = True,
        **overrides: object,
    ) -> None:
        """Carry `items` from a topic of their own into bars, up to the end mark if it `ended`.

        An unfinished lane goes on if it is given all items again.
        """

        async def run() -> None:
            settings = self.settings(**overrides)
            async with open_backends(settings) as backends:
                assembly = Assembly(settings, backends)
                await assembly.result_topics("mdp.bars")
                info = await backends.bus.create_topic(topic, settings.bus.partitions)
                held = [await backends.bus.source(topic, p) for p in range(info.partitions)]
                producer = assembly.producer(info, "", held)
                for item in items:
                    producer.add(item)
                    await producer.flush()
                stop = asyncio.Event()
                if ended:
                    await producer.end()
                else:
                    stop.set()
                batcher = assembly.batcher(info, "mdp.bars", live=False)
                await batcher.run(stop, drain_s=30)

        asyncio.run(run())

    def store(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run a statement on the store behind everybody's back."""
        return _sql(self.path / "store.db", sql, values)

    def topic(self, name: str, sql: str) -> list[Any]:
        """Run a statement on a topic's file."""
        return _sql(self.path / "bus" / f"{name}.db", sql, ())

    def run(self, *arguments: str) -> Result:
        """What a command does; an error meant for people is in `exception`."""
        return CliRunner().invoke(app, list(arguments))

    def ok(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def error(self, *arguments: str) -> MdpError:
        """The error of a command that fails with one."""
        result = self.run(*arguments)
        assert isinstance(result.exception, MdpError), (result.output, result.exception)
        return result.exception


def _sql(path: Path, sql: str, values: Sequence[Any]) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        found = db.execute(sql, values).fetchall()
        db.commit()
    finally:
        db.close()
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")
