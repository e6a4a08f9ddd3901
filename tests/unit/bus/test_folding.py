"""The write-ahead logs of topics are folded back in the background, whatever else happens."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import cast

import pytest
import structlog
from tests.unit.bus.conftest import TOPIC, Open

from market_data_core.records import Entry
from market_data_pipeline.bus import _topic_file, embedded

_APPENDS_MAX = 5_000


async def test_the_log_is_folded_while_all_work(
    open_bus: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shrinks again and again under appends without a pause, with somebody reading."""
    monkeypatch.setattr(embedded, "_FOLD_EVERY_S", 0.01)
    monkeypatch.setattr(_topic_file, "_FOLD_AT", 256 << 10)
    monkeypatch.setattr(_topic_file, "_FOLD_FORCED_AT", 1 << 20)
    bus, reader = open_bus(), open_bus()
    await bus.create_topic(TOPIC, 1)
    sizes, payload = [0], bytes(65_536)

    async def write() -> int:
        shrunk = 0
        while shrunk < 3 and len(sizes) < _APPENDS_MAX:
            await bus.append(TOPIC, [Entry(0, payload, 1)])
            sizes.append(Path(f"{path}-wal").stat().st_size)
            shrunk += sizes[-1] < sizes[-2]
        await bus.append(TOPIC, [Entry(0, b"last")])
        return shrunk

    async def read() -> int:
        position, last = 0, b""
        while last != b"last":
            found = await reader.poll(TOPIC, {0: position}, 1 << 20, 30)
            position, last = position + len(found[0]), found[0][-1].payload
        return position

    shrunk, position = await asyncio.gather(write(), read())
    assert shrunk == 3
    assert position == len(sizes)
    assert path.stat().st_size > 65_536 * 3


async def test_folding_survives_a_topic_that_was_dropped(
    open_bus: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FOLD_EVERY_S", 0.001)
    monkeypatch.setattr(_topic_file, "_FOLD_AT", 0)
    bus = open_bus()
    for _ in range(10):
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [Entry(0, b"x", 1)])
        await bus.drop_topic(TOPIC)
    await bus.create_topic("other", 1)
    await bus.append("other", [Entry(0, bytes(100_000), 1)])
    other = path.with_name("other.db")
    async with asyncio.timeout(20):
        while other.stat().st_size < 100_000:
            await asyncio.sleep(0.001)


async def test_trouble_with_folding_one_topic_is_told_and_does_not_end_it_for_others(
    open_bus: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FOLD_EVERY_S", 0.001)
    monkeypatch.setattr(_topic_file, "_FOLD_AT", 0)
    bus = open_bus()
    for name in (TOPIC, "other"):
        await bus.create_topic(name, 1)

    class Failing:
        def execute(self, _: str) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

    bus._files[TOPIC]._folding._db = cast("sqlite3.Connection", Failing())
    other = path.with_name("other.db")
    with structlog.testing.capture_logs() as logs:
        await bus.append("other", [Entry(0, bytes(100_000), 1)])
        async with asyncio.timeout(20):
            while other.stat().st_size < 100_000 or not logs:
                await asyncio.sleep(0.001)
    assert [entry["path"] for entry in logs] == [str(path)]
